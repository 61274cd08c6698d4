/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * extents.h - which parts of a disk are data: a compact sorted list.
 *
 * The list is built from the front by appending and may be asked while it is
 * still growing: behind its end everything is unknown.  No locks of its own;
 * the owner serialises.
 */
#pragma once

#include <glib.h>

/**
 * BeExtentKind: what the flags of a list mean.
 */
typedef enum {
    BE_EXTENTS_ALLOCATION,     /* of base:allocation */
    BE_EXTENTS_DIRTY,          /* of a dirty bitmap */
} BeExtentKind;

/* Flags as they are on the wire of the two kinds of NBD contexts. */
#define BE_EXTENT_HOLE 1u      /* allocation: not allocated; says nothing of its content */
#define BE_EXTENT_ZERO 2u      /* allocation: reads as zeroes */
#define BE_EXTENT_DIRTY 1u     /* dirty bitmap: changed */

/* Offsets and sizes are below this: the two upper bits of an entry are flags. */
#define BE_EXTENTS_SIZE_MAX (G_GUINT64_CONSTANT(1) << 62)

/* More entries than this are not kept: the rest of the disk is then data. */
#define BE_EXTENTS_COUNT_MAX (4u * 1024 * 1024)

typedef struct {
    guint64 start;
    guint64 length;
    guint32 flags;
} BeExtent;

typedef enum {
    BE_NEXT_FOUND,
    BE_NEXT_NONE,              /* ENXIO: nothing of that sort up to the end of the disk */
    BE_NEXT_UNKNOWN,           /* the list does not reach far enough yet */
} BeNext;

typedef struct BeExtents BeExtents;

/**
 * be_extents_new:
 * @size: bytes of the disk, below BE_EXTENTS_SIZE_MAX
 * Returns: an empty list, to free with be_extents_free().
 */
BeExtents *be_extents_new(BeExtentKind kind, guint64 size);
void be_extents_free(BeExtents *extents);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeExtents, be_extents_free)

/**
 * be_extents_append: adds @length bytes behind the last ones.  Bytes behind
 * the end of the disk are cut off; flags that no kind knows are dropped.
 *
 * Returns: FALSE when nothing can be added: @length is 0 or the list is
 * complete.  So a caller that stops at FALSE always comes to an end.
 */
gboolean be_extents_append(BeExtents *extents, guint64 length, guint32 flags);

/**
 * be_extents_end: the first byte that is unknown; the size when complete.
 */
guint64 be_extents_end(const BeExtents *extents);
gboolean be_extents_complete(const BeExtents *extents);

/**
 * be_extents_lookup: the extent of the byte @offset, whole.
 * Returns: FALSE when it is unknown or behind the end.
 */
gboolean be_extents_lookup(const BeExtents *extents, guint64 offset, BeExtent *ret_extent);

/**
 * be_extents_is_data: data is what has to be read: what is not known to be
 * zero, or what is dirty.  A hole without the zero flag is data.
 */
gboolean be_extents_is_data(const BeExtents *extents, guint32 flags);

/**
 * be_extents_next: what SEEK_DATA (@data) and SEEK_HOLE want: the first byte
 * at or behind @offset that is data, or that is not.  The end of the disk
 * counts as a hole.
 * @ret_offset: set for BE_NEXT_FOUND, and for BE_NEXT_UNKNOWN to the byte from
 *   which on nothing is known
 */
BeNext be_extents_next(const BeExtents *extents, guint64 offset, gboolean data,
                       guint64 *ret_offset);

/**
 * be_extents_data_bytes: bytes known to be data.
 */
guint64 be_extents_data_bytes(const BeExtents *extents);

/**
 * be_extents_count, be_extents_get: the merged extents in order.
 */
guint be_extents_count(const BeExtents *extents);
void be_extents_get(const BeExtents *extents, guint index, BeExtent *ret_extent);
