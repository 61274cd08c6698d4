/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * lease.h - which images of this host are being read straight from their files, so
 * that nobody in this process writes into one of them or deletes it meanwhile.
 *
 * Other programs are kept off by QEMU's image lock (imagelock.h).
 */
#pragma once

#include "backend/image.h"

/**
 * be_lease_take, be_lease_drop: an image is read from now on, and no longer.  They
 * count: two readers of one image take it twice.  Any thread; never blocks.
 */
void be_lease_take(const BeImage *image);
void be_lease_drop(const BeImage *image);

/**
 * be_lease_blocks: whether an image must not be written to or deleted now.  To be
 * asked after the caller closed the streams that he knows of (be_disk_close()).
 * @path: a local image; one that is not there is not read
 *
 * Any thread; blocks on the local file only.  Returns: TRUE with @error: EBUSY.
 */
gboolean be_lease_blocks(const char *path, GError **error);
