/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * covered.c - a bounded set of ranges; see covered.h.
 *
 * Pure; the owner serialises.  Readers go forward, several at once, so there are
 * few ranges, and a new one nearly always touches another.
 */
#include "backend/covered.h"

#include <stdlib.h>

typedef struct {
    guint64 start;
    guint64 end;
} Range;

struct BeCovered {
    GArray *ranges;            /* of Range: ascending, none touches another */
};

BeCovered *be_covered_new(void)
{
    BeCovered *covered = g_new(BeCovered, 1);

    covered->ranges = g_array_new(FALSE, FALSE, sizeof(Range));
    return covered;
}

void be_covered_free(BeCovered *covered)
{
    if (covered) {
        g_array_unref(covered->ranges);
        g_free(covered);
    }
}

guint be_covered_count(const BeCovered *covered)
{
    return covered->ranges->len;
}

static Range *range_at(const BeCovered *covered, guint index)
{
    return &g_array_index(covered->ranges, Range, index);
}

/* The first range that ends at or behind @offset, or their number. */
static guint first_behind(const BeCovered *covered, guint64 offset)
{
    guint low = 0;
    guint high = covered->ranges->len;

    while (low < high) {
        guint middle = low + (high - low) / 2;

        if (range_at(covered, middle)->end >= offset) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static guint64 length_of(const Range *range)
{
    return range->end - range->start;
}

static int compare_lengths(const void *one, const void *two)
{
    guint64 a = *(const guint64 *)one;
    guint64 b = *(const guint64 *)two;

    return a < b ? -1 : a > b;
}

/*
 * Half of them at once, the shortest: of random reads each makes a range, and looking
 * for the one to forget at each of them took longer than the read itself.
 */
static void forget_short(BeCovered *covered)
{
    guint count = covered->ranges->len;
    guint alike = count / 2;
    g_autofree guint64 *lengths = g_new(guint64, count);
    guint64 limit;
    guint kept = 0;

    for (guint i = 0; i < count; i++) {
        lengths[i] = length_of(range_at(covered, i));
    }
    qsort(lengths, count, sizeof(*lengths), compare_lengths);
    limit = lengths[alike - 1];
    /* Of those that are as long as the limit, as many as the half has room for. */
    for (guint i = 0; lengths[i] < limit; i++) {
        alike--;
    }
    for (guint i = 0; i < count; i++) {
        const Range *range = range_at(covered, i);

        if (length_of(range) > limit || (length_of(range) == limit && alike == 0)) {
            *range_at(covered, kept++) = *range;
        } else if (length_of(range) == limit) {
            alike--;
        }
    }
    g_array_set_size(covered->ranges, kept);
}

void be_covered_add(BeCovered *covered, guint64 start, guint64 end)
{
    guint first = first_behind(covered, start);
    guint next = first;
    Range added = {start, end};

    if (start >= end) {
        return;
    }
    while (next < covered->ranges->len && range_at(covered, next)->start <= end) {
        added.start = MIN(added.start, range_at(covered, next)->start);
        added.end = MAX(added.end, range_at(covered, next)->end);
        next++;
    }
    if (next > first) {
        *range_at(covered, first) = added;
        g_array_remove_range(covered->ranges, first + 1, next - first - 1);
        return;
    }
    g_array_insert_val(covered->ranges, first, added);
    if (covered->ranges->len > BE_COVERED_MAX) {
        forget_short(covered);
    }
}

gboolean be_covered_all(const BeCovered *covered, guint64 start, guint64 end,
                        const BeExtents *holes)
{
    while (start < end) {
        guint index = first_behind(covered, start + 1);
        guint64 data = start;

        if (index < covered->ranges->len && range_at(covered, index)->start <= start) {
            start = range_at(covered, index)->end;
            continue;
        }
        if (!holes) {
            return FALSE;
        }
        if (be_extents_next(holes, start, TRUE, &data) == BE_NEXT_NONE) {
            return TRUE;
        }
        if (data <= start) {
            return FALSE;
        }
        start = data;
    }
    return TRUE;
}

guint64 be_covered_bytes(const BeCovered *covered, guint64 start, guint64 end)
{
    guint64 bytes = 0;

    for (guint i = first_behind(covered, start); i < covered->ranges->len; i++) {
        const Range *range = range_at(covered, i);

        if (range->start >= end) {
            break;
        }
        bytes += MIN(range->end, end) - MAX(range->start, start);
    }
    return bytes;
}
