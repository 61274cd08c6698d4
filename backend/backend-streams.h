/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backend-streams.h - the part of backend.h about streams: asynchronous reads of
 * point-in-time data, and the views of a disk.
 *
 * To be had by including backend.h, whose rules on threads and errors hold here.
 */
#pragma once

#include "backend/backend.h"

BeStream *be_stream_ref(BeStream *stream);
void be_stream_unref(BeStream *stream);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeStream, be_stream_unref)

/**
 * be_stream_size: bytes; constant.
 */
guint64 be_stream_size(BeStream *stream);

/**
 * be_stream_allocated: bytes that are data: exact when the allocation map is
 * known, else the estimate the stream was made with.
 */
guint64 be_stream_allocated(BeStream *stream);

/**
 * BeReader: one open file on a stream: its own read-ahead and position.
 */
typedef struct BeReader BeReader;

/**
 * be_reader_new: starts nothing; the first read connects.
 */
BeReader *be_reader_new(BeStream *stream);
void be_reader_free(BeReader *reader);

/**
 * BeReadDone: the end of a read.
 * @iov: @count parts that together are the bytes read, valid only during the
 *   call; NULL on failure.  Fewer bytes than asked for only at the end.
 * @errnum: 0 or a positive errno: EIO, ETIMEDOUT, ECANCELED, EINVAL (over 4 MiB).
 */
typedef void (*BeReadDone)(const struct iovec *iov, int count, int errnum, gpointer user);

typedef struct BeRead BeRead;

/**
 * BeOnWait: this thread waits, and there may be other work for it.
 */
typedef void (*BeOnWait)(gpointer user);

/**
 * be_thread_on_wait: for the rest of this thread's life: while it waits for a server
 * inside of a call, @func is called when @fd becomes readable; and before it waits for
 * a disk.  Locks may be held then: @func must not block, nor call the backend.
 */
void be_thread_on_wait(int fd, BeOnWait func, gpointer user);

/**
 * BePolling: how long the waits of one kind took; zeroed at first, of one thread at a
 * time.
 */
typedef struct {
    gint64 usual_us;
    gint64 rest_until_us;      /* monotonic; others want the processor */
} BePolling;

/**
 * be_poll: poll(2).  Where such a wait usually is shorter than BeConfig.busy_poll_us it
 * looks again and again for that long, and only then sleeps: to be woken takes longer
 * than many an answer (as poll-max-ns of QEMU's threads).
 * @timeout_ms: as of poll(2), not 0.
 * Returns: as poll(2), with its errno.
 */
int be_poll(BePolling *polling, struct pollfd *fds, guint count, int timeout_ms);

/**
 * be_reader_read: reads @length bytes at @offset; clamped to the size.
 * The one function that may call @done from inside the call: where the bytes are
 * here already or known to be zeroes, behind the end, for a failure that is known
 * at once, and for a small read out of sequence, for which the caller waits, at
 * most 20 ms.
 * Returns: a handle for be_read_cancel(), owned by the caller, to be released
 * by be_read_unref() in or after @done.
 */
BeRead *be_reader_read(BeReader *reader, guint64 offset, gsize length, BeReadDone done,
                       gpointer user);

/**
 * be_read_cancel: ends a read with ECANCELED soon; the transfer below it is
 * left to finish.  Harmless after the end.
 */
void be_read_cancel(BeRead *read);
void be_read_unref(BeRead *read);

/**
 * BeSeekDone: @offset: what lseek(2) returns, or -1 with @errnum set (ENXIO at
 * or behind the end, EIO).
 */
typedef void (*BeSeekDone)(gint64 offset, int errnum, gpointer user);

/**
 * be_stream_seek: SEEK_DATA (@data TRUE) or SEEK_HOLE from @offset.  The
 * allocation map is fetched at the first call and kept.
 */
void be_stream_seek(BeStream *stream, guint64 offset, gboolean data, BeSeekDone done,
                    gpointer user);

/**
 * be_stream_map_fetch: the allocation map as text, the one that `qemu-img map
 * --output=json -f raw` prints of the same NBD export.  Shares the map with
 * be_stream_seek().  EIO, ETIMEDOUT; EFBIG: a text of more than 64 MiB.
 */
void be_stream_map_fetch(BeStream *stream, BeTextDone done, gpointer user);

/**
 * be_disk_full: the disk as a stand-alone qcow2 image: a stream of its own, with
 * the image's bytes.  Its size needs the allocation map.
 * Returns: (transfer none): valid as long as the disk's backup; NULL as long as
 *   be_disk_full_prepare() has not succeeded.
 */
BeStream *be_disk_full(const BeDisk *disk);

/**
 * be_disk_full_prepare: fetches the map and makes the stream, once for all who
 * want it.  EIO, ETIMEDOUT; EFBIG: a disk of more than 1 PiB.
 * @disk: of a backup that lives until @done
 */
void be_disk_full_prepare(const BeDisk *disk, BeDone done, gpointer user);

/**
 * be_disk_incremental: what changed on the disk since its base, as a qcow2 image
 * with disk->backing_name as its backing file: only the clusters that changed, those
 * that are nothing but zeroes now as zero clusters.  Of a disk without a base it is
 * be_disk_full().
 * Returns: as be_disk_full().
 */
BeStream *be_disk_incremental(const BeDisk *disk);

/**
 * be_disk_incremental_prepare: fetches both maps and makes the stream, once for all
 * who want it.  EIO, ETIMEDOUT; EFBIG as be_disk_full_prepare(); ENAMETOOLONG: the
 * backing name has more than 1023 bytes; EUCLEAN: the host does not say what changed,
 * so that no increment can be trusted.
 * @disk: of a backup that lives until @done
 */
void be_disk_incremental_prepare(const BeDisk *disk, BeDone done, gpointer user);

/**
 * be_disk_dirty_map_fetch: what changed on the disk since its base as JSON: an array
 * of objects with "start", "length" (bytes), "dirty" and "zero" (reads as zeroes now),
 * which together are the disk.  Errors as be_disk_incremental_prepare(); EFBIG: a text
 * of more than 64 MiB.
 */
void be_disk_dirty_map_fetch(const BeDisk *disk, BeTextDone done, gpointer user);
