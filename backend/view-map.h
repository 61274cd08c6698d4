/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * view-map.h - the whole maps of a stream, of what is allocated and of what has
 * changed, for the views made of them, and those that are their text.
 */
#pragma once

#include "backend/stream.h"

/**
 * BeMapReady: the map is known, or cannot be had.
 * @map: complete; constant from now on, valid as long as @stream; NULL on failure
 * @errnum: 0, EIO or ETIMEDOUT
 */
typedef void (*BeMapReady)(BeStream *stream, const BeExtents *map, int errnum, gpointer user);

/**
 * be_stream_with_map: fetches the map, once for all who want it, and calls
 * @ready, on a worker that may take its time when there is one, and on a thread
 * of the stream when there is none.  be_stream_close() waits for it.
 * Any thread; does not block.
 */
void be_stream_with_map(BeStream *stream, BeMapReady ready, gpointer user);

/**
 * BeDirtyReady: both maps are known, or one cannot be had.
 * @map, @dirty: complete; constant from now on, valid as long as @stream; NULL on failure
 * @errnum: 0, EIO, ETIMEDOUT, or EUCLEAN: the source does not say what has changed
 */
typedef void (*BeDirtyReady)(BeStream *stream, const BeExtents *map, const BeExtents *dirty,
                             int errnum, gpointer user);

/**
 * be_stream_with_dirty: as be_stream_with_map(), of both maps.
 */
void be_stream_with_dirty(BeStream *stream, BeDirtyReady ready, gpointer user);

/**
 * be_dirty_map_text: JSON in the manner of be_map_text(): an array of objects that
 * together are the disk, one a line, in order: "start" and "length" in bytes,
 * "dirty": whether it has changed, "zero": whether it reads as zeroes now.
 * @map, @dirty: complete
 *
 * Returns: the text, to free with g_free(), or NULL: EFBIG as be_map_text().
 */
char *be_dirty_map_text(const BeExtents *map, const BeExtents *dirty, GError **error);

/**
 * be_map_text: what `qemu-img map --output=json -f raw` (7.2) prints of an NBD
 * export with this map, byte for byte.
 * @map: complete, of base:allocation
 * @size: of the export
 *
 * Returns: the text, to free with g_free(), or NULL: EFBIG for more than
 *   BE_MAP_TEXT_MAX bytes.
 */
char *be_map_text(const BeExtents *map, guint64 size, GError **error);

/* Half a million extents. */
#define BE_MAP_TEXT_MAX (64u * 1024 * 1024)
