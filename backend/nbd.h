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
 * be_stream_new_nbd_prepared: the same for a server that is started when it is
 * needed.
 * @destroy: frees @user when the stream is closed; may be NULL
 */
BeStream *be_stream_new_nbd_prepared(BeNbdPrepare prepare, gpointer user, GDestroyNotify destroy,
                                     const char *export_name, guint64 size, guint64 allocated);
