/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * disk.h - a disk with its stream and views, for those who make and end one:
 * backups, snapshots.  What readers see is in backend.h.
 */
#pragma once

#include "backend/stream.h"

/**
 * be_disk_new:
 * @stream: its reference is taken; may be NULL and set later
 *
 * Starts nothing.  Returns: to be freed with be_disk_free().
 */
BeDisk *be_disk_new(const char *target, guint64 size, guint64 allocated, BeStream *stream);

/**
 * be_disk_set_backing: the disk has a base, which its incremental image names as its
 * backing file.  The stream must know what has changed since (BeNbdExport).  Before
 * anybody else has the disk.
 * @format: "raw" or "qcow2"
 */
void be_disk_set_backing(BeDisk *disk, const char *name, const char *format);

/**
 * be_disk_free: a GDestroyNotify; NULL is allowed.
 */
void be_disk_free(gpointer disk);

/**
 * be_disk_fail: as be_stream_fail() for the stream and all views.
 */
void be_disk_fail(const BeDisk *disk, const char *reason);

/**
 * be_disk_close: as be_stream_close() for the stream and all views.  Blocks; workers.
 * Twice is harmless.
 */
void be_disk_close(const BeDisk *disk);

/**
 * be_disk_bytes_read: as be_stream_bytes_read(), by the stream and all views.
 */
guint64 be_disk_bytes_read(const BeDisk *disk);

/**
 * be_disk_read_rate: bytes per second handed to readers lately, by stream and views.
 */
guint64 be_disk_read_rate(const BeDisk *disk);

/**
 * be_disk_progress: which part of the image that was read farthest was read: 0 to 1.
 */
double be_disk_progress(const BeDisk *disk);

/**
 * be_disk_set_rate: as be_stream_set_rate() for the stream and all views, those that
 * come later too; also after be_rate_set(), for what waits under the old limit.
 */
void be_disk_set_rate(const BeDisk *disk, BeRate *rate);

/**
 * be_disk_readers: how many readers have the stream or a view open.
 * be_disk_takers: without the quiet ones (be_reader_new_quiet()).
 */
guint be_disk_readers(const BeDisk *disk);
guint be_disk_takers(const BeDisk *disk);

/**
 * be_disk_was_taken: whether somebody read one image of the disk to its end without
 * an error, be it the raw, the full or the incremental one: be_stream_was_read_whole().
 * Also after be_disk_close().
 */
gboolean be_disk_was_taken(const BeDisk *disk);
