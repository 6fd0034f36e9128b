/* Prints what Linux's user-space headers say, one "name value" a line, for tests/tests/linux_headers.rs. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <linux/bpf.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_xdp.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/vhost.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/evtchn.h>
#include <xen/gntdev.h>

#define VALUE(x) printf("%s %lld\n", #x, (long long)(x))
#define SIZE(t) printf("%s %zu+0\n", #t, sizeof(struct t))
#define FIELD(t, f) printf("%s.%s %zu+%zu\n", #t, #f, offsetof(struct t, f), sizeof(((struct t *)0)->f))

int main(void)
{
    VALUE(IOCTL_GNTDEV_MAP_GRANT_REF);
    VALUE(IOCTL_GNTDEV_UNMAP_GRANT_REF);
    VALUE(IOCTL_GNTDEV_GRANT_COPY);
    VALUE(GNTCOPY_source_gref);
    VALUE(GNTCOPY_dest_gref);
    VALUE(GNTST_okay);
    VALUE(GNTST_general_error);
    VALUE(IOCTL_EVTCHN_BIND_INTERDOMAIN);
    VALUE(IOCTL_EVTCHN_UNBIND);
    VALUE(IOCTL_EVTCHN_NOTIFY);

    SIZE(ioctl_gntdev_map_grant_ref);
    FIELD(ioctl_gntdev_map_grant_ref, count);
    FIELD(ioctl_gntdev_map_grant_ref, index);
    FIELD(ioctl_gntdev_map_grant_ref, refs[0].domid);
    FIELD(ioctl_gntdev_map_grant_ref, refs[0].ref);
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

    VALUE(TUNSETIFF);
    VALUE(TUNSETPERSIST);
    VALUE(TUNSETOFFLOAD);
    VALUE(TUNSETVNETHDRSZ);
    VALUE(TUN_F_CSUM|TUN_F_TSO4|TUN_F_TSO6);
    VALUE(SIOCBRADDIF);
    VALUE(sizeof(struct virtio_net_hdr));
    VALUE(VIRTIO_NET_HDR_F_NEEDS_CSUM);
    VALUE(VIRTIO_NET_HDR_F_DATA_VALID);
    VALUE(VIRTIO_NET_HDR_GSO_NONE);
    VALUE(VIRTIO_NET_HDR_GSO_TCPV4);
    VALUE(VIRTIO_NET_HDR_GSO_TCPV6);
    VALUE(VIRTIO_NET_HDR_GSO_ECN);
    VALUE(VHOST_SET_OWNER);
    VALUE(VHOST_SET_FEATURES);
    VALUE(VHOST_SET_MEM_TABLE);
    VALUE(VHOST_SET_VRING_NUM);
    VALUE(VHOST_SET_VRING_ADDR);
    VALUE(VHOST_SET_VRING_BASE);
    VALUE(VHOST_SET_VRING_KICK);
    VALUE(VHOST_SET_VRING_CALL);
    VALUE(VHOST_NET_SET_BACKEND);
    VALUE(sizeof(struct vhost_memory)+sizeof(struct vhost_memory_region));
    VALUE(sizeof(struct vhost_vring_addr));
    VALUE(offsetof(struct vhost_vring_addr, avail_user_addr));
    VALUE(sizeof(struct vhost_vring_state));
    VALUE(sizeof(struct vhost_vring_file));
    VALUE(VRING_AVAIL_F_NO_INTERRUPT);
    VALUE(VRING_USED_F_NO_NOTIFY);
    VALUE(sizeof(struct vring_desc));
    VALUE(sizeof(struct vring_used_elem));
    VALUE(offsetof(struct vring_desc, len));
    VALUE(offsetof(struct vring_desc, flags));
    VALUE(offsetof(struct vring_avail, idx));
    VALUE(offsetof(struct vring_avail, ring));
    VALUE(offsetof(struct vring_used, idx));
    VALUE(offsetof(struct vring_used, ring));
    VALUE(RTM_SETLINK);
    VALUE(NLMSG_ERROR);
    VALUE(NLM_F_REQUEST|NLM_F_ACK);
    VALUE(IFLA_GSO_MAX_SIZE);
    VALUE(sizeof(struct nlmsghdr));
    VALUE(sizeof(struct ifinfomsg));

    VALUE(PACKET_RX_RING);
    VALUE(PACKET_VERSION);
    VALUE(PACKET_VNET_HDR);
    VALUE(PACKET_COPY_THRESH);
    VALUE(TPACKET_V3);
    VALUE(offsetof(struct tpacket_stats, tp_drops));
    VALUE(offsetof(struct tpacket_stats_v3, tp_drops));
    VALUE(sizeof(struct tpacket_req3));
    VALUE(sizeof(struct tpacket_block_desc));
    VALUE(offsetof(struct tpacket_block_desc, hdr.bh1.block_status));
    VALUE(offsetof(struct tpacket_block_desc, hdr.bh1.num_pkts));
    VALUE(offsetof(struct tpacket_block_desc, hdr.bh1.offset_to_first_pkt));
    VALUE(sizeof(struct tpacket3_hdr));
    VALUE(offsetof(struct tpacket3_hdr, tp_next_offset));
    VALUE(offsetof(struct tpacket3_hdr, tp_snaplen));
    VALUE(offsetof(struct tpacket3_hdr, tp_len));
    VALUE(offsetof(struct tpacket3_hdr, tp_status));
    VALUE(offsetof(struct tpacket3_hdr, tp_mac));
    VALUE(offsetof(struct tpacket3_hdr, hv1.tp_vlan_tci));
    VALUE(offsetof(struct tpacket3_hdr, hv1.tp_vlan_tpid));
    VALUE(PACKET_IGNORE_OUTGOING);
    VALUE(PACKET_ADD_MEMBERSHIP);
    VALUE(PACKET_STATISTICS);
    VALUE(PACKET_MR_PROMISC);
    VALUE(TPACKET_V2);
    VALUE(TP_STATUS_USER);
    VALUE(TP_STATUS_COPY);
    VALUE(TP_STATUS_VLAN_VALID);
    VALUE(TP_STATUS_VLAN_TPID_VALID);
    VALUE(sizeof(struct tpacket_req));
    VALUE(sizeof(struct tpacket2_hdr));
    VALUE(offsetof(struct tpacket2_hdr, tp_status));
    VALUE(offsetof(struct tpacket2_hdr, tp_len));
    VALUE(offsetof(struct tpacket2_hdr, tp_snaplen));
    VALUE(offsetof(struct tpacket2_hdr, tp_mac));
    VALUE(offsetof(struct tpacket2_hdr, tp_vlan_tci));
    VALUE(offsetof(struct tpacket2_hdr, tp_vlan_tpid));

    VALUE(AF_XDP);
    VALUE(XDP_MMAP_OFFSETS);
    VALUE(XDP_RX_RING);
    VALUE(XDP_TX_RING);
    VALUE(XDP_UMEM_REG);
    VALUE(XDP_UMEM_FILL_RING);
    VALUE(XDP_UMEM_COMPLETION_RING);
    VALUE(XDP_STATISTICS);
    VALUE(XDP_COPY);
    VALUE(XDP_ZEROCOPY);
    VALUE(XDP_USE_NEED_WAKEUP);
    VALUE(XDP_RING_NEED_WAKEUP);
    VALUE(XDP_PGOFF_RX_RING);
    VALUE(XDP_PGOFF_TX_RING);
    VALUE(XDP_UMEM_PGOFF_FILL_RING);
    VALUE(XDP_UMEM_PGOFF_COMPLETION_RING);
    VALUE(sizeof(struct xdp_umem_reg));
    VALUE(sizeof(struct sockaddr_xdp));
    VALUE(sizeof(struct xdp_mmap_offsets));
    VALUE(sizeof(struct xdp_statistics));
    VALUE(offsetof(struct xdp_statistics, rx_ring_full));
    VALUE(offsetof(struct xdp_desc, len));
    VALUE(sizeof(struct xdp_desc));
    VALUE(BPF_MAP_CREATE);
    VALUE(BPF_MAP_UPDATE_ELEM);
    VALUE(BPF_PROG_LOAD);
    VALUE(BPF_LINK_CREATE);
    VALUE(BPF_MAP_TYPE_XSKMAP);
    VALUE(BPF_PROG_TYPE_XDP);
    VALUE(BPF_XDP);
    VALUE(BPF_FUNC_redirect_map);
    VALUE(XDP_PASS);
    VALUE(XDP_FLAGS_SKB_MODE);
    VALUE(XDP_FLAGS_DRV_MODE);
    VALUE(offsetof(struct xdp_md, rx_queue_index));
    VALUE(offsetof(union bpf_attr, max_entries));
    VALUE(offsetof(union bpf_attr, value));
    VALUE(offsetof(union bpf_attr, insns));
    VALUE(offsetof(union bpf_attr, license));
    VALUE(offsetof(union bpf_attr, link_create.target_ifindex));
    VALUE(offsetof(union bpf_attr, link_create.attach_type));
    VALUE(offsetof(union bpf_attr, link_create.flags));
    return 0;
}
