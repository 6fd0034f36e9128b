/*
 * Replays a script of ring operations with the macros of Xen's ring.h, for tests/tests/xen_headers.rs.
 *
 * Arguments: "tx" or "rx", and the index at which everything starts. Each line of standard input is an
 * operation and five numbers (gref, offset, flags, id, size or status); each line of standard output is what
 * the operation returned, and a hash of the whole page after it.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* What ring.h calls its barriers for users of the oldest interface version. */
#define mb() __sync_synchronize()
#define rmb() __sync_synchronize()
#define wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/netif.h>

static uint8_t page[4096] __attribute__((aligned(4096)));

struct fields {
    uint32_t gref;
    uint16_t offset, flags, id, size;
};

static struct fields get_tx_req(const struct netif_tx_request *m)
{
    return (struct fields){ m->gref, m->offset, m->flags, m->id, m->size };
}
static struct fields get_rx_req(const struct netif_rx_request *m)
{
    return (struct fields){ m->gref, 0, 0, m->id, 0 };
}
static struct fields get_tx_rsp(const struct netif_tx_response *m)
{
    return (struct fields){ 0, 0, 0, m->id, (uint16_t)m->status };
}
static struct fields get_rx_rsp(const struct netif_rx_response *m)
{
    return (struct fields){ 0, m->offset, m->flags, m->id, (uint16_t)m->status };
}
static void put_tx_req(struct netif_tx_request *m, struct fields f)
{
    m->gref = f.gref; m->offset = f.offset; m->flags = f.flags; m->id = f.id; m->size = f.size;
}
static void put_rx_req(struct netif_rx_request *m, struct fields f)
{
    m->id = f.id; m->gref = f.gref;
}
static void put_tx_rsp(struct netif_tx_response *m, struct fields f)
{
    m->id = f.id; m->status = (int16_t)f.size;
}
static void put_rx_rsp(struct netif_rx_response *m, struct fields f)
{
    m->id = f.id; m->offset = f.offset; m->flags = f.flags; m->status = (int16_t)f.size;
}

static void answer(unsigned long value)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof(page); i++)
        hash = (hash ^ page[i]) * 0x100000001b3u;
    printf("%lu %016" PRIx64 "\n", value, hash);
}

static void show(struct fields f)
{
    printf("%" PRIu32 " %u %u %u %u: ", f.gref, f.offset, f.flags, f.id, f.size);
}

#define REPLAY(kind)                                                                        \
static void replay_##kind(RING_IDX start)                                                   \
{                                                                                           \
    struct netif_##kind##_front_ring front;                                                 \
    struct netif_##kind##_back_ring back;                                                   \
    struct netif_##kind##_sring *s = (void *)page;                                          \
    char op[16];                                                                            \
    unsigned long n[5];                                                                     \
                                                                                            \
    SHARED_RING_INIT(s);                                                                    \
    s->req_prod = s->rsp_prod = start;                                                      \
    s->req_event = s->rsp_event = start + 1;                                                \
    FRONT_RING_ATTACH(&front, s, start, sizeof(page));                                      \
    BACK_RING_ATTACH(&back, s, start, sizeof(page));                                        \
    while (scanf("%15s %lu %lu %lu %lu %lu", op, n, n + 1, n + 2, n + 3, n + 4) == 6) {     \
        struct fields f = { n[0], n[1], n[2], n[3], n[4] };                                 \
        int yes = 0;                                                                        \
        if (!strcmp(op, "push")) {                                                          \
            if (!RING_FULL(&front)) {                                                       \
                void *slot = RING_GET_REQUEST(&front, front.req_prod_pvt);                  \
                memset(slot, 0, sizeof(s->ring[0]));                                        \
                put_##kind##_req(slot, f);                                                  \
                front.req_prod_pvt++;                                                       \
                yes = 1;                                                                    \
            }                                                                               \
            answer(yes);                                                                    \
        } else if (!strcmp(op, "requests")) {                                               \
            if (front.req_prod_pvt != s->req_prod)                                          \
                RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, yes);                           \
            answer(yes);                                                                    \
        } else if (!strcmp(op, "respond")) {                                                \
            if (back.rsp_prod_pvt != back.req_cons) {                                       \
                void *slot = RING_GET_RESPONSE(&back, back.rsp_prod_pvt);                   \
                memset(slot, 0, sizeof(s->ring[0]));                                        \
                put_##kind##_rsp(slot, f);                                                  \
                back.rsp_prod_pvt++;                                                        \
                yes = 1;                                                                    \
            }                                                                               \
            answer(yes);                                                                    \
        } else if (!strcmp(op, "responses")) {                                              \
            if (back.rsp_prod_pvt != s->rsp_prod)                                           \
                RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, yes);                           \
            answer(yes);                                                                    \
        } else if (!strcmp(op, "taker")) {                                                  \
            unsigned there = XEN_RING_NR_UNCONSUMED_REQUESTS(&back);                        \
            if (there) {                                                                    \
                struct netif_##kind##_request copy;                                         \
                RING_COPY_REQUEST(&back, back.req_cons, &copy);                             \
                back.req_cons++;                                                            \
                show(get_##kind##_req(&copy));                                              \
            }                                                                               \
            answer(there);                                                                  \
        } else if (!strcmp(op, "takes")) {                                                  \
            unsigned there = XEN_RING_NR_UNCONSUMED_RESPONSES(&front);                      \
            if (there) {                                                                    \
                struct netif_##kind##_response copy;                                        \
                RING_COPY_RESPONSE(&front, front.rsp_cons, &copy);                          \
                front.rsp_cons++;                                                           \
                show(get_##kind##_rsp(&copy));                                              \
            }                                                                               \
            answer(there);                                                                  \
        } else if (!strcmp(op, "armr")) {                                                   \
            RING_FINAL_CHECK_FOR_REQUESTS(&back, yes);                                      \
            answer(!!yes);                                                                  \
        } else if (!strcmp(op, "arms")) {                                                   \
            RING_FINAL_CHECK_FOR_RESPONSES(&front, yes);                                    \
            answer(!!yes);                                                                  \
        } else if (!strcmp(op, "free")) {                                                   \
            answer(RING_FREE_REQUESTS(&front));                                             \
        } else if (!strcmp(op, "lier")) {                                                   \
            answer(RING_REQUEST_PROD_OVERFLOW(&back, s->req_prod + (RING_IDX)n[0]));        \
        } else {                                                                            \
            fprintf(stderr, "unknown operation %s\n", op);                                  \
            exit(2);                                                                        \
        }                                                                                   \
    }                                                                                       \
}

REPLAY(tx)
REPLAY(rx)

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    RING_IDX start = strtoul(argv[2], NULL, 10);
    if (!strcmp(argv[1], "tx"))
        replay_tx(start);
    else
        replay_rx(start);
    return 0;
}
