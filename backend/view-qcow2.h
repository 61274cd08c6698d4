/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * view-qcow2.h - a disk as a qcow2 image, made on the fly: the whole of it, or what
 * changed.
 *
 * A view is a stream of its own, above the one of the disk: its size and its
 * metadata are computed from the maps, its data clusters are the disk's.  It
 * exists once somebody wanted it, because its size needs the maps.
 */
#pragma once

#include "backend/stream.h"

/**
 * be_view_new: Returns: a view of nothing yet, to free with be_view_free().
 */
BeView *be_view_new(void);
void be_view_free(BeView *view);

/**
 * be_view_stream: Returns: (transfer none): valid as long as the view; NULL when
 * nobody wanted it yet.
 */
BeStream *be_view_stream(BeView *view);

/**
 * be_view_fail, be_view_close: as be_stream_fail() and be_stream_close() for
 * the stream there is, and there will be none after that.  To be closed after
 * the disk's stream failed, which ends what is under way, and before that one
 * is closed.
 */
void be_view_fail(BeView *view, const char *reason);
void be_view_close(BeView *view);
