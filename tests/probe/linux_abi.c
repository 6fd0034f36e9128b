/* Prints what Linux's user-space headers say, one "name value" a line, for tests/tests/linux_headers.rs. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <sys/ioctl.h>
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#define VALUE(x) printf("%s %lld\n", #x, (long long)(x))
#define SIZE(t) printf("sizeof %s %zu\n", #t, sizeof(struct t))
#define FIELD(t, f) printf("%s.%s %zu+%zu\n", #t, #f, offsetof(struct t, f), sizeof(((struct t *)0)->f))

int main(void)
{
    VALUE(IOCTL_GNTDEV_MAP_GRANT_REF);
    VALUE(IOCTL_GNTDEV_UNMAP_GRANT_REF);
    VALUE(IOCTL_GNTDEV_SET_UNMAP_NOTIFY);
    VALUE(IOCTL_GNTDEV_GRANT_COPY);
    SIZE(ioctl_gntdev_map_grant_ref);
    FIELD(ioctl_gntdev_map_grant_ref, count);
    FIELD(ioctl_gntdev_map_grant_ref, index);
    FIELD(ioctl_gntdev_map_grant_ref, refs);
    SIZE(ioctl_gntdev_grant_ref);
    FIELD(ioctl_gntdev_grant_ref, domid);
    FIELD(ioctl_gntdev_grant_ref, ref);
    SIZE(ioctl_gntdev_unmap_grant_ref);
    FIELD(ioctl_gntdev_unmap_grant_ref, index);
    FIELD(ioctl_gntdev_unmap_grant_ref, count);
    SIZE(ioctl_gntdev_grant_copy);
    FIELD(ioctl_gntdev_grant_copy, count);
    FIELD(ioctl_gntdev_grant_copy, segments);
    SIZE(gntdev_grant_copy_segment);
    FIELD(gntdev_grant_copy_segment, source.virt);
    FIELD(gntdev_grant_copy_segment, source.foreign.ref);
    FIELD(gntdev_grant_copy_segment, source.foreign.offset);
    FIELD(gntdev_grant_copy_segment, source.foreign.domid);
    FIELD(gntdev_grant_copy_segment, dest.virt);
    FIELD(gntdev_grant_copy_segment, dest.foreign.ref);
    FIELD(gntdev_grant_copy_segment, dest.foreign.offset);
    FIELD(gntdev_grant_copy_segment, dest.foreign.domid);
    FIELD(gntdev_grant_copy_segment, len);
    FIELD(gntdev_grant_copy_segment, flags);
    FIELD(gntdev_grant_copy_segment, status);
    VALUE(GNTCOPY_source_gref);
    VALUE(GNTCOPY_dest_gref);
    VALUE(GNTST_okay);
    VALUE(GNTST_general_error);
    VALUE(GNTST_bad_domain);
    VALUE(GNTST_bad_gntref);
    VALUE(GNTST_bad_copy_arg);
    VALUE(GNTST_eagain);

    VALUE(IOCTL_EVTCHN_BIND_INTERDOMAIN);
    VALUE(IOCTL_EVTCHN_UNBIND);
    VALUE(IOCTL_EVTCHN_NOTIFY);
    VALUE(IOCTL_EVTCHN_RESTRICT_DOMID);
    SIZE(ioctl_evtchn_bind_interdomain);
    FIELD(ioctl_evtchn_bind_interdomain, remote_domain);
    FIELD(ioctl_evtchn_bind_interdomain, remote_port);
    SIZE(ioctl_evtchn_unbind);
    SIZE(ioctl_evtchn_notify);
    SIZE(ioctl_evtchn_restrict_domid);

    VALUE(TUNSETIFF);
    VALUE(TUNSETOFFLOAD);
    VALUE(TUNSETVNETHDRSZ);
    VALUE(TUNSETPERSIST);
    VALUE(TUNSETSNDBUF);
    VALUE(IFF_TAP);
    VALUE(IFF_NO_PI);
    VALUE(IFF_VNET_HDR);
    VALUE(IFF_TUN_EXCL);
    VALUE(TUN_F_CSUM);
    VALUE(TUN_F_TSO4);
    VALUE(TUN_F_TSO6);
    SIZE(ifreq);
    FIELD(ifreq, ifr_name);
    FIELD(ifreq, ifr_flags);
    SIZE(virtio_net_hdr);
    FIELD(virtio_net_hdr, flags);
    FIELD(virtio_net_hdr, gso_type);
    FIELD(virtio_net_hdr, hdr_len);
    FIELD(virtio_net_hdr, gso_size);
    FIELD(virtio_net_hdr, csum_start);
    FIELD(virtio_net_hdr, csum_offset);
    VALUE(VIRTIO_NET_HDR_F_NEEDS_CSUM);
    VALUE(VIRTIO_NET_HDR_F_DATA_VALID);
    VALUE(VIRTIO_NET_HDR_GSO_NONE);
    VALUE(VIRTIO_NET_HDR_GSO_TCPV4);
    VALUE(VIRTIO_NET_HDR_GSO_TCPV6);
    VALUE(VIRTIO_NET_HDR_GSO_ECN);
    return 0;
}
