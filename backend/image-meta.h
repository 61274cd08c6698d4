/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-meta.h - what a qcow2 image says of itself beyond its header: its
 * persistent bitmaps, and some of its allocated clusters.
 *
 * Read by offset with every size checked, without opening the image in QEMU; so
 * also of one that a QEMU has open: what that has not written yet is then missing.
 *
 * Any thread; blocks on local files only.
 */
#pragma once

#include "backend.h"

/**
 * BeImageBitmap: one persistent bitmap (QEMU docs/interop/qcow2.txt, "Bitmaps").
 */
typedef struct {
    char *name;
    gboolean enabled;          /* "auto": QEMU records writes in it */
    gboolean in_use;           /* not saved properly, or a QEMU has it open for writing */
} BeImageBitmap;

/**
 * be_image_bitmaps:
 * @path: of a qcow2 image, absolute
 *
 * Returns: (element BeImageBitmap): none where QEMU would see none either (an old
 * program wrote to the image); NULL: EIO when the image is damaged, or the errno of
 * opening it.
 */
GPtrArray *be_image_bitmaps(const char *path, GError **error);

/**
 * be_image_bitmap: Returns: (nullable): the one of that name, owned by @bitmaps.
 */
const BeImageBitmap *be_image_bitmap(const GPtrArray *bitmaps, const char *name);

typedef struct {
    guint64 offset;            /* in the disk */
    guint64 length;
} BeImageRange;

/**
 * be_image_allocated: some clusters that the image itself holds, as data or as
 * zeroes; taken at random.  It looks at a bounded part of a large image.
 * @path: of a qcow2 image, absolute
 * @most: how many at most
 *
 * Returns: (element BeImageRange): empty when nothing is allocated in what was
 * looked at; NULL: as above.
 */
GArray *be_image_allocated(const char *path, guint most, GError **error);
