/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * retention.h - which points of a chain stay.  Pure; any thread.
 */
#pragma once

#include <glib.h>

/**
 * BeRetentionPoint: one checkpoint of a chain; the strings are the caller's.
 */
typedef struct {
    const char *name;
    gint64 time_us;            /* real time */
    const char *held;          /* why it stays whatever the rules say; NULL: it need not */
    gboolean useless;          /* no rule counts it */
} BeRetentionPoint;

/**
 * BeRetentionRules: 0: the rule keeps none.  With all at 0 nothing is removed.
 */
typedef struct {
    guint last;                /* the newest ones */
    guint daily;               /* the newest of each of so many days that have any */
    guint weekly;              /* the same of weeks by ISO 8601: Monday to Sunday */
    guint monthly;
} BeRetentionRules;

/**
 * be_retention_plan: a point stays when any rule wants it or it is held.
 * @points: (element BeRetentionPoint): of one chain, in any order
 * @zone: in which days, weeks and months begin; a day is a date, so one of 23 or 25
 *   hours is one day
 *
 * Of two points of the same time the later one in @points is the newer.  Times that
 * are no date count as the oldest.
 *
 * Returns: (element char *): for each point, in the order of @points, why it stays
 * ("last", "daily 2026-11-21", "weekly 2026-W47", "monthly 2026-11", joined by ", ", or
 * what it is held for), or NULL: it goes.
 */
GPtrArray *be_retention_plan(const GPtrArray *points, const BeRetentionRules *rules,
                             GTimeZone *zone);
