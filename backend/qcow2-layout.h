/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qcow2-layout.h - where everything is in the qcow2 image of a disk: computed,
 * never written.
 *
 * The image is version 3 with clusters of 64 KiB, has no backing file, and only
 * the clusters with data; all else reads as zeroes.  Its parts follow one
 * another, each of whole clusters, and every cluster is used exactly once:
 *
 *   header | refcount table | refcount blocks | L1 table | L2 tables | data
 *
 * (QEMU: docs/interop/qcow2.txt.)  A layout is immutable, so any thread may use
 * it; it does no I/O.
 */
#pragma once

#include "backend/extents.h"

#define BE_QCOW2_CLUSTER 65536u

/* The L1 table of a larger disk would be more than QEMU opens by a factor of 2. */
#define BE_QCOW2_DISK_MAX (G_GUINT64_CONSTANT(1) << 50)

typedef struct BeQcow2Layout BeQcow2Layout;

/**
 * be_qcow2_layout_new:
 * @extents: complete; not needed afterwards
 * @size: bytes of the disk
 *
 * Keeps 16 bytes for each run of data clusters and 4 for each 512 MiB of disk.
 *
 * Returns: the layout, or NULL: EFBIG when the disk is larger than
 *   BE_QCOW2_DISK_MAX.
 */
BeQcow2Layout *be_qcow2_layout_new(const BeExtents *extents, guint64 size, GError **error);
void be_qcow2_layout_free(BeQcow2Layout *layout);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeQcow2Layout, be_qcow2_layout_free)

/**
 * be_qcow2_layout_file_size: bytes of the image.
 */
guint64 be_qcow2_layout_file_size(const BeQcow2Layout *layout);

typedef enum {
    BE_QCOW2_METADATA,         /* made by be_qcow2_layout_fill() */
    BE_QCOW2_DATA,             /* the disk's bytes */
    BE_QCOW2_PADDING,          /* zeroes: the disk ends inside its last cluster */
} BeQcow2Kind;

typedef struct {
    BeQcow2Kind kind;
    guint64 length;            /* bytes of that kind from there on, in the disk's order too */
    guint64 disk_offset;       /* of DATA */
} BeQcow2Piece;

/**
 * be_qcow2_layout_find: what is at byte @offset of the image.
 * Returns: FALSE behind its end.
 */
gboolean be_qcow2_layout_find(const BeQcow2Layout *layout, guint64 offset,
                              BeQcow2Piece *ret_piece);

/**
 * be_qcow2_layout_locate: the other way: where byte @disk_offset of the disk is
 * in the image.
 * Returns: FALSE when it is not in it, and reads as zero.
 */
gboolean be_qcow2_layout_locate(const BeQcow2Layout *layout, guint64 disk_offset,
                                guint64 *ret_offset);

/**
 * be_qcow2_layout_fill: makes @length bytes of metadata, those at @offset.
 */
void be_qcow2_layout_fill(const BeQcow2Layout *layout, guint64 offset, gsize length,
                          void *buffer);
