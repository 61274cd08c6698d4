/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * view-map.h - the whole allocation map of a stream, for the views made of it, and
 * the one that is its text.
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
