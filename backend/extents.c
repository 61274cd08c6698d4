/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * extents.c - the allocation map of a disk; see extents.h.
 *
 * An entry is one 64-bit number: the first byte of the extent with its flags in
 * the two upper bits.  Its end is the start of the next entry.  A million
 * extents are 8 MiB.  Pure; the owner of a list serialises access.
 */
#include "backend/extents.h"

#define FLAGS_SHIFT 62
#define START_MASK ((G_GUINT64_CONSTANT(1) << FLAGS_SHIFT) - 1)

struct BeExtents {
    BeExtentKind kind;
    guint64 size;
    guint64 end;
    guint64 data_bytes;
    GArray *entries;           /* of guint64, ascending; the first starts at 0 */
};

static guint64 entry_at(const BeExtents *extents, guint index)
{
    return g_array_index(extents->entries, guint64, index);
}

static guint32 entry_flags(guint64 entry)
{
    return (guint32)(entry >> FLAGS_SHIFT);
}

BeExtents *be_extents_new(BeExtentKind kind, guint64 size)
{
    BeExtents *extents = g_new0(BeExtents, 1);

    extents->kind = kind;
    extents->size = MIN(size, BE_EXTENTS_SIZE_MAX - 1);
    extents->entries = g_array_new(FALSE, FALSE, sizeof(guint64));
    return extents;
}

void be_extents_free(BeExtents *extents)
{
    if (!extents) {
        return;
    }
    g_array_unref(extents->entries);
    g_free(extents);
}

gboolean be_extents_is_data(const BeExtents *extents, guint32 flags)
{
    switch (extents->kind) {
    case BE_EXTENTS_ALLOCATION:
        return !(flags & BE_EXTENT_ZERO);
    case BE_EXTENTS_DIRTY:
        return (flags & BE_EXTENT_DIRTY) != 0;
    }
    return TRUE;
}

/* The flags of a range of which nothing is known: it has to be read. */
static guint32 flags_of_unknown(const BeExtents *extents)
{
    return extents->kind == BE_EXTENTS_DIRTY ? BE_EXTENT_DIRTY : 0;
}

gboolean be_extents_append(BeExtents *extents, guint64 length, guint32 flags)
{
    guint count = extents->entries->len;
    guint64 entry;

    if (length == 0 || extents->end >= extents->size) {
        return FALSE;
    }
    flags &= BE_EXTENT_HOLE | BE_EXTENT_ZERO;
    length = MIN(length, extents->size - extents->end);
    if (count >= BE_EXTENTS_COUNT_MAX - 1) {
        flags = flags_of_unknown(extents);
        length = extents->size - extents->end;
    }
    if (count == 0 || entry_flags(entry_at(extents, count - 1)) != flags) {
        entry = extents->end | (guint64)flags << FLAGS_SHIFT;
        g_array_append_val(extents->entries, entry);
    }
    if (be_extents_is_data(extents, flags)) {
        extents->data_bytes += length;
    }
    extents->end += length;
    return TRUE;
}

guint64 be_extents_end(const BeExtents *extents)
{
    return extents->end;
}

gboolean be_extents_complete(const BeExtents *extents)
{
    return extents->end >= extents->size;
}

guint64 be_extents_data_bytes(const BeExtents *extents)
{
    return extents->data_bytes;
}

guint be_extents_count(const BeExtents *extents)
{
    return extents->entries->len;
}

void be_extents_get(const BeExtents *extents, guint index, BeExtent *ret_extent)
{
    guint64 entry = entry_at(extents, index);
    guint64 end = index + 1 < extents->entries->len ? entry_at(extents, index + 1) & START_MASK
                                                    : extents->end;

    ret_extent->start = entry & START_MASK;
    ret_extent->length = end - ret_extent->start;
    ret_extent->flags = entry_flags(entry);
}

/* The last entry that starts at or before @offset, which is below the end. */
static guint find_index(const BeExtents *extents, guint64 offset)
{
    guint low = 0;
    guint high = extents->entries->len;

    while (high - low > 1) {
        guint middle = low + (high - low) / 2;

        if ((entry_at(extents, middle) & START_MASK) <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

gboolean be_extents_lookup(const BeExtents *extents, guint64 offset, BeExtent *ret_extent)
{
    if (offset >= extents->end) {
        return FALSE;
    }
    be_extents_get(extents, find_index(extents, offset), ret_extent);
    return TRUE;
}

BeNext be_extents_next(const BeExtents *extents, guint64 offset, gboolean data,
                       guint64 *ret_offset)
{
    if (offset >= extents->size) {
        return BE_NEXT_NONE;
    }
    if (offset < extents->end) {
        for (guint i = find_index(extents, offset); i < extents->entries->len; i++) {
            guint64 entry = entry_at(extents, i);

            if (be_extents_is_data(extents, entry_flags(entry)) == !!data) {
                *ret_offset = MAX(offset, entry & START_MASK);
                return BE_NEXT_FOUND;
            }
        }
    }
    if (!be_extents_complete(extents)) {
        *ret_offset = MAX(offset, extents->end);
        return BE_NEXT_UNKNOWN;
    }
    if (data) {
        return BE_NEXT_NONE;
    }
    *ret_offset = extents->size;
    return BE_NEXT_FOUND;
}
