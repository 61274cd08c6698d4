/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * retention.c - see retention.h.  Pure functions.
 */
#include "backend/retention.h"

/* A rule that keeps the newest point of each of the last periods. */
typedef struct {
    const char *word;
    const char *format;        /* of g_date_time_format(): the same within a period */
    gsize count;               /* offset of the number in BeRetentionRules */
} Period;

/* %G and %V belong together: the first days of January may be in the old year's week. */
static const Period periods[] = {
    {"daily", "%Y-%m-%d", G_STRUCT_OFFSET(BeRetentionRules, daily)},
    {"weekly", "%G-W%V", G_STRUCT_OFFSET(BeRetentionRules, weekly)},
    {"monthly", "%Y-%m", G_STRUCT_OFFSET(BeRetentionRules, monthly)},
};

static gint by_age(gconstpointer a, gconstpointer b, gpointer user)
{
    const GPtrArray *points = user;
    guint left = *(const guint *)a;
    guint right = *(const guint *)b;
    const BeRetentionPoint *first = g_ptr_array_index(points, left);
    const BeRetentionPoint *second = g_ptr_array_index(points, right);

    if (first->time_us != second->time_us) {
        return first->time_us > second->time_us ? -1 : 1;
    }
    return left > right ? -1 : 1;
}

/* Indexes of those @points that count, the newest first. */
static GArray *newest_first(const GPtrArray *points)
{
    GArray *order = g_array_new(FALSE, FALSE, sizeof(guint));

    for (guint i = 0; i < points->len; i++) {
        const BeRetentionPoint *point = g_ptr_array_index(points, i);

        if (!point->useless) {
            g_array_append_val(order, i);
        }
    }
    g_array_sort_with_data(order, by_age, (gpointer)points);
    return order;
}

static void keep(GPtrArray *reasons, guint index, const char *word, const char *period)
{
    char *old = g_ptr_array_index(reasons, index);

    g_ptr_array_index(reasons, index) =
        g_strconcat(old ? old : "", old ? ", " : "", word, period ? " " : "", period, NULL);
    g_free(old);
}

static char *period_of(const BeRetentionPoint *point, const Period *period, GTimeZone *zone)
{
    g_autoptr(GDateTime) utc = g_date_time_new_from_unix_utc(point->time_us / G_USEC_PER_SEC);
    g_autoptr(GDateTime) there = utc ? g_date_time_to_timezone(utc, zone) : NULL;

    return there ? g_date_time_format(there, period->format) : NULL;
}

static void apply_period(const GPtrArray *points, const GArray *order, const Period *period,
                         guint most, GTimeZone *zone, GPtrArray *reasons)
{
    g_autofree char *last = NULL;

    for (guint i = 0; i < order->len && most > 0; i++) {
        guint index = g_array_index(order, guint, i);
        g_autofree char *now = period_of(g_ptr_array_index(points, index), period, zone);

        if (!now || g_strcmp0(now, last) == 0) {
            continue;
        }
        keep(reasons, index, period->word, now);
        g_free(last);
        last = g_steal_pointer(&now);
        most--;
    }
}

static gboolean has_rule(const BeRetentionRules *rules)
{
    return rules->last > 0 || rules->daily > 0 || rules->weekly > 0 || rules->monthly > 0;
}

GPtrArray *be_retention_plan(const GPtrArray *points, const BeRetentionRules *rules,
                             GTimeZone *zone)
{
    GPtrArray *reasons = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) order = newest_first(points);

    g_ptr_array_set_size(reasons, (gint)points->len);
    for (guint i = 0; i < order->len && i < rules->last; i++) {
        keep(reasons, g_array_index(order, guint, i), "last", NULL);
    }
    for (gsize i = 0; i < G_N_ELEMENTS(periods); i++) {
        guint most = G_STRUCT_MEMBER(guint, rules, periods[i].count);

        apply_period(points, order, &periods[i], most, zone, reasons);
    }
    for (guint i = 0; i < points->len; i++) {
        const BeRetentionPoint *point = g_ptr_array_index(points, i);

        if (point->held) {
            keep(reasons, i, point->held, NULL);
        } else if (!has_rule(rules)) {
            keep(reasons, i, "no rule", NULL);
        }
    }
    return reasons;
}
