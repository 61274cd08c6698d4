/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-map.h - where the bytes of a disk are in the files of its chain of images,
 * for those that are there as they are: raw images, and clusters of qcow2 images that
 * are neither compressed nor odd in any way.
 *
 * What this does not understand is not guessed: it is QEMU's to read.  The tables of
 * qcow2 images are taken for hostile.
 */
#pragma once

#include "backend/image.h"

typedef struct BeImageMap BeImageMap;

/**
 * be_image_map_open: opens every image of a chain and reads its L1 table, under
 * QEMU's image lock and with a lease (lease.h), which both last as long as the map.
 * Blocks on local files.
 *
 * Returns: the map, to free with be_image_map_free(); NULL: EOPNOTSUPP when QEMU has
 * to read all of it (L1 tables of more than 64 MiB together, or outside the file),
 * EBUSY and the errnos of be_image_lock_take().
 */
BeImageMap *be_image_map_open(GPtrArray *chain, GError **error);
void be_image_map_free(BeImageMap *map);

typedef enum {
    BE_IMAGE_ZERO,             /* reads as zeroes */
    BE_IMAGE_PLAIN,            /* in a file, as it is */
    BE_IMAGE_OTHER,            /* for QEMU */
} BeImageKind;

typedef struct {
    BeImageKind kind;
    guint64 length;            /* bytes that this holds for, at least 1 */
    int fd;                    /* of PLAIN: the map's */
    guint64 offset;            /* of PLAIN: in that file */
    gboolean sparse;           /* of PLAIN: the file has holes, which may be here */
    gboolean raw;              /* of PLAIN: in a raw image */
} BeImagePiece;

/**
 * be_image_map_find: what is at @offset of the disk, and for how far, up to @length.
 * Any thread, several at once; blocks on local files, to read a part of an L2 table.
 * @offset, @length: inside the disk, at least one byte
 */
void be_image_map_find(BeImageMap *map, guint64 offset, guint64 length, BeImagePiece *ret);
