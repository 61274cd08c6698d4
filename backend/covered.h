/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * covered.h - which bytes of something were seen: a set of ranges that never says
 * more than is true, and never grows beyond a bound.
 *
 * No locks of its own; the owner serialises.
 */
#pragma once

#include "backend/extents.h"

/* With more ranges than this the shorter half of them is forgotten. */
#define BE_COVERED_MAX 4096u

typedef struct BeCovered BeCovered;

/**
 * be_covered_new: Returns: an empty set, to free with be_covered_free().
 */
BeCovered *be_covered_new(void);
void be_covered_free(BeCovered *covered);

/**
 * be_covered_add: the bytes from @start to @end, without the last, were seen.
 */
void be_covered_add(BeCovered *covered, guint64 start, guint64 end);

/**
 * be_covered_all: whether every byte from @start to @end was seen.
 * @holes: what is not data in it need not be seen; may be incomplete; or NULL
 */
gboolean be_covered_all(const BeCovered *covered, guint64 start, guint64 end,
                        const BeExtents *holes);

/**
 * be_covered_bytes: how many bytes from @start to @end were seen.
 */
guint64 be_covered_bytes(const BeCovered *covered, guint64 start, guint64 end);

/**
 * be_covered_count: ranges in the set.
 */
guint be_covered_count(const BeCovered *covered);
