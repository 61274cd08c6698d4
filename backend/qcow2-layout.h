/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qcow2-layout.h - where everything is in the qcow2 image of a disk: computed,
 * never written.
 *
 * There are two sorts, both of version 3.  The full image has no backing file,
 * clusters of 64 KiB, and only those with data; all else reads as zeroes.  The
 * incremental image has a backing file, and only the clusters that changed: as data,
 * or, where nothing but zeroes is left, as zero clusters, which take no room.  Its
 * clusters are of the size that makes it small.
 *
 * The parts of an image follow one another, each of whole clusters, and every
 * cluster is used exactly once:
 *
 *   header | refcount table | refcount blocks | L1 table | L2 tables | data
 *
 * (QEMU: docs/interop/qcow2.txt.)  A layout is immutable, so any thread may use
 * it; it does no I/O.
 */
#pragma once

#include "backend/extents.h"

/* Of the full image, and the largest of an incremental one. */
#define BE_QCOW2_CLUSTER 65536u

/* The smallest of an incremental image. */
#define BE_QCOW2_CLUSTER_MIN 4096u

/* QEMU opens no image with a longer one. */
#define BE_QCOW2_BACKING_NAME_MAX 1023u

/* The L1 table of a larger disk would be more than QEMU opens by a factor of 2. */
#define BE_QCOW2_DISK_MAX (G_GUINT64_CONSTANT(1) << 50)

typedef struct BeQcow2Layout BeQcow2Layout;

/**
 * be_qcow2_layout_new:
 * @extents: complete; not needed afterwards
 * @size: bytes of the disk
 *
 * Keeps 24 bytes for each run of clusters and 4 for each 512 MiB of disk.
 *
 * Returns: the layout, or NULL: EFBIG when the disk is larger than
 *   BE_QCOW2_DISK_MAX.
 */
BeQcow2Layout *be_qcow2_layout_new(const BeExtents *extents, guint64 size, GError **error);

/**
 * BeQcow2Increment: what an incremental image is made of.
 */
typedef struct {
    const BeExtents *map;      /* complete, of the allocation; not needed afterwards */
    const BeExtents *dirty;    /* complete, of a dirty bitmap; not needed afterwards */
    guint64 size;              /* bytes of the disk */
    guint32 block_min;         /* clusters are no smaller: what the disk can be asked for */
    const char *backing_name;  /* as it is to stand in the image */
    const char *backing_format; /* "raw" or "qcow2" */
} BeQcow2Increment;

/**
 * be_qcow2_layout_new_incremental:
 * Returns: the layout, or NULL: EFBIG as above, ENAMETOOLONG when the backing name
 *   has more than BE_QCOW2_BACKING_NAME_MAX bytes, EINVAL when it is empty or the
 *   format is another one.
 */
BeQcow2Layout *be_qcow2_layout_new_incremental(const BeQcow2Increment *increment, GError **error);
void be_qcow2_layout_free(BeQcow2Layout *layout);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeQcow2Layout, be_qcow2_layout_free)

/**
 * be_qcow2_layout_file_size: bytes of the image.
 */
guint64 be_qcow2_layout_file_size(const BeQcow2Layout *layout);

/**
 * be_qcow2_layout_cluster: bytes of a cluster.
 */
guint32 be_qcow2_layout_cluster(const BeQcow2Layout *layout);

/**
 * be_qcow2_layout_essence: the bytes of the image that whoever wants to have the
 * disk has to read: its data without padding; all of it where there is no data.
 */
void be_qcow2_layout_essence(const BeQcow2Layout *layout, guint64 *ret_start, guint64 *ret_end);

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
 * Returns: FALSE when it is not in it as data.
 */
gboolean be_qcow2_layout_locate(const BeQcow2Layout *layout, guint64 disk_offset,
                                guint64 *ret_offset);

/**
 * be_qcow2_layout_fill: makes @length bytes of metadata, those at @offset.
 */
void be_qcow2_layout_fill(const BeQcow2Layout *layout, guint64 offset, gsize length,
                          void *buffer);
