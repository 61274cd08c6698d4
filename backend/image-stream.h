/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-stream.h - the stream of a disk that is held by local images.
 */
#pragma once

#include "backend/image.h"
#include "backend/stream.h"

/**
 * BeImageSource: which images, and what of them.
 */
typedef struct {
    GPtrArray *chain;          /* (element BeImage): as be_image_chain_inspect() gave it; shared */
    const char *directory;     /* private, for a socket; must be there from the first read on */
    const char *snapshot;      /* an internal snapshot of the top, by name; NULL: none */
    const char *bitmap;        /* a persistent bitmap of the top, for what changed; NULL: none */
    gboolean in_use;           /* a running machine has the images open: no image locks */

    /**
     * check: (nullable): before the images are opened and before each start of a server:
     * whether they still hold what they did.  Blocks; on a worker of the stream or its
     * poller.
     */
    gboolean (*check)(gpointer user, GError **error);
    gpointer check_user;
    GDestroyNotify check_destroy; /* with the stream; also when there will be none */
} BeImageSource;

/**
 * be_stream_new_image: the disk as a chain of images, or an internal snapshot of
 * its top, has it.
 * @source: needed during the call only; its chain gets a reference
 *
 * What is plain data in a local file is read straight from it, under QEMU's image lock
 * and with a lease (lease.h); all else, and internal snapshots, by qemu-nbd, which the
 * first read that needs it starts, and starts again when it died.  All of it belongs to
 * the stream: be_stream_close() ends the server, removes its socket from the directory
 * and gives lock and lease back.
 *
 * Whoever asks sees to it that nobody writes to the images: by a BeImageLock, or
 * because they are below the top of a machine, or with @snapshot.
 *
 * Any thread; with a snapshot it blocks on the local file, for the size of the disk
 * then.  Returns: NULL: the errnos of be_image_snapshot_find(), EOPNOTSUPP when the
 * image was made smaller since the snapshot, so that QEMU shows only a part of it.
 */
BeStream *be_stream_new_image(const BeImageSource *source, GError **error);

/**
 * BeImageServer: what serves such a stream, when it does.
 */
typedef struct BeImageServer BeImageServer;

/**
 * be_stream_new_image_served: the same, for images that others need when nobody reads:
 * lock and lease go when nobody has the stream open any more, and come again with the
 * next reader; the server can rest too.  It is a reference, to be given back with
 * be_image_server_unref().
 */
BeStream *be_stream_new_image_served(const BeImageSource *source, BeImageServer **ret_server,
                                     GError **error);
void be_image_server_unref(BeImageServer *server);

/**
 * be_image_server_is_up: whether there is a process now.  Any thread; never blocks.
 */
gboolean be_image_server_is_up(BeImageServer *server);

/**
 * be_image_server_rest: ends the process; the next read starts another.  What is read
 * at this moment is asked for again.  Blocks; workers.
 */
void be_image_server_rest(BeImageServer *server);
