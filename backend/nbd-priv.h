/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbd-priv.h - what nbd.c, nbd-poller.c and nbd-conn.c share.
 *
 * A handle has one owner at a time, and only that thread calls libnbd with it:
 * the worker in open(), the poller, or a reader that took an idle one for
 * read_now().  So libnbd's own lock is never waited for.
 */
#pragma once

#include <libnbd.h>

#include "backend/nbd.h"

/* What the poller spreads its requests over, when the server allows it. */
#define NBD_CONNECTIONS 4

/* More connections for small reads, one for each FUSE thread. */
#define NBD_DIRECT 4

/* Requests in flight on a connection; QEMU looks at 16 at a time. */
#define NBD_FLIGHT 16

/* The connections after the first are waited for no longer than this: a server may
 * allow fewer than we would like, and say so by saying nothing. */
#define NBD_MORE_US (2 * G_USEC_PER_SEC)

/* A dead server is asked again after this. */
#define NBD_RETRY_US G_USEC_PER_SEC

typedef enum {
    NBD_CONN_NONE,
    NBD_CONN_CONNECTING,
    NBD_CONN_READY,
} NbdConnState;

/**
 * NbdConn: a connection of the poller.
 */
typedef struct {
    NbdConnState state;
    struct nbd_handle *handle; /* NULL in the state NONE */
    gint64 deadline_us;        /* while connecting */
    GQueue flying;             /* of BeTransfer, not answered */
    GQueue landed;             /* of BeTransfer, answered; filled inside libnbd's callbacks */
} NbdConn;

/**
 * NbdDirect: a connection for read_now(), idle or with one thread.
 */
typedef struct {
    struct nbd_handle *handle;
    void *buffer;              /* mapped, NBD_DIRECT_BUFFER bytes */
    BePolling polling;
} NbdDirect;

/* A small read and its alignment to the largest minimum block. */
#define NBD_DIRECT_BUFFER (3 * 64 * 1024)

typedef struct {
    /* constant */
    char *export_name;
    guint64 size;
    gboolean larger;           /* the export may be larger than that */
    char *dirty_context;       /* "qemu:dirty-bitmap:NAME", or NULL */
    BeNbdPrepare prepare;      /* or NULL */
    gpointer prepare_user;
    GDestroyNotify prepare_destroy;

    /* set by open(), constant while there is a poller */
    int cancel_fd;             /* eventfd, readable for ever after cancel(); or -1 */
    int kick_fd;               /* eventfd, wakes the poller; or -1 */
    BeSourceLimits limits;
    gboolean multi_conn;
    gboolean can_allocation;
    gboolean can_dirty;
    gint64 timeout_us;
    GThread *poller;

    gint cancelled;            /* atomic */

    GMutex lock;
    /* guarded by lock */
    GQueue submitted;          /* of BeTransfer, for the poller */
    gboolean sleeping;         /* the poller wants a kick */
    gboolean stopping;
    GQueue idle;               /* of NbdDirect */
    gint64 direct_after_us;    /* monotonic; no read_now() before; guarded by lock */

    /* of the poller; before it runs, of open() */
    char *socket;
    NbdConn conns[NBD_CONNECTIONS];
    guint conns_max;
    guint generation;          /* of the connections: how often all were made anew */
    GQueue waiting;            /* of BeTransfer, for a connection */
    gint64 retry_us;           /* no reconnection before */
} NbdSource;

/**
 * NbdStatus: a request for block status; its transfer has no buffer.
 */
typedef struct {
    BeTransfer transfer;       /* first */
    gatomicrefcount refs;
    const char *context;       /* whose answer is wanted; the source's */
    GArray *pairs;             /* of guint32: length, flags; the poller's until ended */
    GMutex lock;
    GCond changed;
    gboolean ended;            /* guarded by lock */
    int errnum;                /* guarded by lock */
} NbdStatus;

/* ---- nbd.c ---- */

void be_nbd_kick(NbdSource *source);

/* ---- nbd-conn.c ---- */

/* Asks prepare() for the socket, if there is one. */
gboolean be_nbd_prepare(NbdSource *source, GError **error);

/* Returns: a handle that is connecting.  @plain: for reads of data alone; an
 * answer is then one header and the bytes, two system calls fewer each. */
struct nbd_handle *be_nbd_handle_new(NbdSource *source, gboolean plain, GError **error);

/* Looks at a handle that has just connected: the size must be ours. */
gboolean be_nbd_handle_check(NbdSource *source, struct nbd_handle *handle, GError **error);
void be_nbd_handle_learn(NbdSource *source, struct nbd_handle *handle);
gboolean be_nbd_handle_is_dead(struct nbd_handle *handle);

/* Lets libnbd go on after poll(2).  Returns: FALSE when the connection is lost. */
gboolean be_nbd_handle_notify(struct nbd_handle *handle, short revents);
short be_nbd_handle_events(struct nbd_handle *handle);

/* Waits until the handle is connected (@cookie 0) or has the answer.
 * Returns: 0; EIO: the server refused; EPIPE: lost; ETIMEDOUT; ECANCELED. */
int be_nbd_handle_wait(NbdSource *source, struct nbd_handle *handle, gint64 cookie,
                       gint64 deadline_us, BePolling *polling);

gboolean be_nbd_read_now(gpointer source, guint64 offset, guint32 length, gint64 timeout_us,
                         BeSourceNow sink, gpointer user);

/* Takes over a connected handle for read_now(); in open(). */
void be_nbd_direct_add(NbdSource *source, struct nbd_handle *handle);
void be_nbd_direct_free(NbdDirect *direct);

/* ---- nbd-poller.c ---- */

gpointer be_nbd_poller_run(gpointer source);
