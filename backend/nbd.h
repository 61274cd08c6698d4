/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbd.h - streams from an NBD export on a Unix socket.
 */
#pragma once

#include "backend/stream.h"

/**
 * be_stream_new_nbd:
 * @unix_socket: path of the server's socket
 * @export_name: name of the export
 * @size: bytes; a server that says anything else is refused
 * @allocated: estimate, see be_stream_allocated()
 *
 * Starts nothing; any thread.  The first read or seek connects, on a worker.
 */
BeStream *be_stream_new_nbd(const char *unix_socket, const char *export_name, guint64 size,
                            guint64 allocated);

/**
 * BeNbdPrepare: makes the server ready and returns the path of its socket, to
 * be freed with g_free().  Blocks; on a worker.  Called before the first
 * connection, again when that failed, and again when the server went away: then
 * on the poller of the stream.  Must end by itself: be_stream_close() waits.
 */
typedef char *(*BeNbdPrepare)(gpointer user, GError **error);

/**
 * BeNbdExport: where a stream comes from; strings are copied.
 */
typedef struct {
    const char *socket;        /* path of the server's socket; NULL with prepare */
    const char *name;          /* of the export */
    guint64 size;              /* bytes of the disk */
    guint64 allocated;         /* estimate, see be_stream_allocated() */
    const char *dirty_bitmap;  /* NAME of the context qemu:dirty-bitmap:NAME; NULL: none */
    gboolean larger;           /* the export may have more bytes, which are not the disk's */
    BeNbdPrepare prepare;      /* for a server that is started when it is needed; or NULL */
    gpointer prepare_user;
    GDestroyNotify prepare_destroy; /* frees prepare_user when the stream is closed; or NULL */
} BeNbdExport;

/**
 * be_stream_new_nbd_export: the same with all that can be said of an export.
 */
BeStream *be_stream_new_nbd_export(const BeNbdExport *nbd);

/**
 * be_nbd_source_new: the source alone, for a source that stands above it.
 * Returns: to be used and closed by @ret_ops.
 */
gpointer be_nbd_source_new(const BeNbdExport *nbd, const BeSourceOps **ret_ops);
