/* Prints what Xen's public headers say, one "name value" a line, for tests/tests/xen_headers.rs. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
/* What ring.h calls its barriers for users of the oldest interface version. */
#define mb() __sync_synchronize()
#define rmb() __sync_synchronize()
#define wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/netif.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>

#define VALUE(x) printf("%s %lld\n", #x, (long long)(x))
#define SIZE(t) printf("sizeof %s %zu\n", #t, sizeof(struct t))
#define FIELD(t, f) printf("%s.%s %zu+%zu\n", #t, #f, offsetof(struct t, f), sizeof(((struct t *)0)->f))

int main(void)
{
    static struct netif_tx_sring *tx;
    static struct netif_rx_sring *rx;
    static struct xen_netif_ctrl_sring *ctrl;

    SIZE(netif_tx_request);
    FIELD(netif_tx_request, gref);
    FIELD(netif_tx_request, offset);
    FIELD(netif_tx_request, flags);
    FIELD(netif_tx_request, id);
    FIELD(netif_tx_request, size);
    SIZE(netif_tx_response);
    FIELD(netif_tx_response, id);
    FIELD(netif_tx_response, status);
    SIZE(netif_rx_request);
    FIELD(netif_rx_request, id);
    FIELD(netif_rx_request, gref);
    SIZE(netif_rx_response);
    FIELD(netif_rx_response, id);
    FIELD(netif_rx_response, offset);
    FIELD(netif_rx_response, flags);
    FIELD(netif_rx_response, status);
    SIZE(netif_extra_info);
    FIELD(netif_extra_info, type);
    FIELD(netif_extra_info, flags);
    FIELD(netif_extra_info, u.gso.size);
    FIELD(netif_extra_info, u.gso.type);
    FIELD(netif_extra_info, u.mcast.addr);

    VALUE(NETTXF_csum_blank);
    VALUE(NETTXF_data_validated);
    VALUE(NETTXF_more_data);
    VALUE(NETTXF_extra_info);
    VALUE(NETRXF_data_validated);
    VALUE(NETRXF_csum_blank);
    VALUE(NETRXF_more_data);
    VALUE(NETRXF_extra_info);
    VALUE(NETRXF_gso_prefix);
    VALUE(XEN_NETIF_MAX_TX_SIZE);
    VALUE(XEN_NETIF_NR_SLOTS_MIN);
    VALUE(XEN_NETIF_EXTRA_TYPE_GSO);
    VALUE(XEN_NETIF_EXTRA_TYPE_MCAST_ADD);
    VALUE(XEN_NETIF_EXTRA_TYPE_MCAST_DEL);
    VALUE(XEN_NETIF_EXTRA_FLAG_MORE);
    VALUE(XEN_NETIF_GSO_TYPE_TCPV4);
    VALUE(XEN_NETIF_GSO_TYPE_TCPV6);
    VALUE(NETIF_RSP_DROPPED);
    VALUE(NETIF_RSP_ERROR);
    VALUE(NETIF_RSP_OKAY);
    VALUE(NETIF_RSP_NULL);

    SIZE(xen_netif_ctrl_request);
    FIELD(xen_netif_ctrl_request, id);
    FIELD(xen_netif_ctrl_request, type);
    FIELD(xen_netif_ctrl_request, data);
    SIZE(xen_netif_ctrl_response);
    FIELD(xen_netif_ctrl_response, id);
    FIELD(xen_netif_ctrl_response, type);
    FIELD(xen_netif_ctrl_response, status);
    FIELD(xen_netif_ctrl_response, data);
    SIZE(xen_netif_gref);
    FIELD(xen_netif_gref, ref);
    FIELD(xen_netif_gref, flags);
    FIELD(xen_netif_gref, status);
    VALUE(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE);
    VALUE(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING);
    VALUE(XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING);
    VALUE(XEN_NETIF_CTRL_STATUS_SUCCESS);
    VALUE(XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED);
    VALUE(XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER);
    VALUE(XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW);
    VALUE(XEN_NETIF_CTRLF_GREF_readonly);
    printf("gref list entries %zu\n", 4096 / sizeof(struct xen_netif_gref));
    printf("ctrl slots %u\n", (unsigned)__RING_SIZE(ctrl, 4096));
    printf("ctrl slot bytes %zu\n", sizeof(ctrl->ring[0]));
    printf("ctrl first slot %zu\n", offsetof(struct xen_netif_ctrl_sring, ring));

    printf("tx slots %u\n", (unsigned)__RING_SIZE(tx, 4096));
    printf("rx slots %u\n", (unsigned)__RING_SIZE(rx, 4096));
    printf("tx slot bytes %zu\n", sizeof(tx->ring[0]));
    printf("rx slot bytes %zu\n", sizeof(rx->ring[0]));
    printf("tx first slot %zu\n", offsetof(struct netif_tx_sring, ring));
    printf("rx first slot %zu\n", offsetof(struct netif_rx_sring, ring));

    VALUE(XenbusStateUnknown);
    VALUE(XenbusStateInitialising);
    VALUE(XenbusStateInitWait);
    VALUE(XenbusStateInitialised);
    VALUE(XenbusStateConnected);
    VALUE(XenbusStateClosing);
    VALUE(XenbusStateClosed);
    VALUE(XenbusStateReconfiguring);
    VALUE(XenbusStateReconfigured);

    SIZE(xsd_sockmsg);
    FIELD(xsd_sockmsg, type);
    FIELD(xsd_sockmsg, req_id);
    FIELD(xsd_sockmsg, tx_id);
    FIELD(xsd_sockmsg, len);
    VALUE(XENSTORE_PAYLOAD_MAX);
    VALUE(XENSTORE_ABS_PATH_MAX);
    VALUE(XENSTORE_RING_SIZE);
    VALUE(XS_DIRECTORY);
    VALUE(XS_READ);
    VALUE(XS_GET_PERMS);
    VALUE(XS_WATCH);
    VALUE(XS_UNWATCH);
    VALUE(XS_TRANSACTION_START);
    VALUE(XS_TRANSACTION_END);
    VALUE(XS_GET_DOMAIN_PATH);
    VALUE(XS_WRITE);
    VALUE(XS_MKDIR);
    VALUE(XS_RM);
    VALUE(XS_SET_PERMS);
    VALUE(XS_WATCH_EVENT);
    VALUE(XS_ERROR);
    return 0;
}
