/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-retention.c - backend/retention.c: which points stay, at the edges of days,
 * weeks, months and of summer time.
 */
#include "retention.h"

#include <string.h>

/*
 * @times: local times of the zone, separated by blanks; @expected: for each a letter:
 * '-' goes, 'l' last, 'd' daily, 'w' weekly, 'm' monthly (the first that applies),
 * 'h' held.  A time that ends in '!' is held.
 */
static void assert_plan(const char *zone_name, const char *times, BeRetentionRules rules,
                        const char *expected)
{
    g_autoptr(GTimeZone) zone = g_time_zone_new_identifier(zone_name);
    g_auto(GStrv) words = g_strsplit(times, " ", -1);
    g_autoptr(GPtrArray) points = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) reasons = NULL;
    g_autoptr(GString) got = g_string_new(NULL);

    g_assert_nonnull(zone);
    for (char **word = words; *word; word++) {
        BeRetentionPoint *point = g_new0(BeRetentionPoint, 1);
        gboolean held = g_str_has_suffix(*word, "!");
        g_autofree char *text = g_strndup(*word, strlen(*word) - (held ? 1 : 0));
        g_autoptr(GDateTime) time = g_date_time_new_from_iso8601(text, zone);

        g_assert_nonnull(time);
        point->name = *word;
        point->held = held ? "held" : NULL;
        point->time_us = g_date_time_to_unix(time) * G_USEC_PER_SEC;
        g_ptr_array_add(points, point);
    }
    reasons = be_retention_plan(points, &rules, zone);
    g_assert_cmpuint(reasons->len, ==, points->len);
    for (guint i = 0; i < reasons->len; i++) {
        const char *reason = g_ptr_array_index(reasons, i);

        g_test_message("%s: %s", words[i], reason ? reason : "goes");
        g_string_append_c(got, reason ? reason[0] : '-');
    }
    g_assert_cmpstr(got->str, ==, expected);
}

#define UTC "UTC"
#define BERLIN "Europe/Berlin"

static void test_last(void)
{
    const char *times = "2026-11-01T02:00:00 2026-11-02T02:00:00 2026-11-03T02:00:00";

    assert_plan(UTC, times, (BeRetentionRules){.last = 2}, "-ll");
    assert_plan(UTC, times, (BeRetentionRules){.last = 3}, "lll");
    assert_plan(UTC, times, (BeRetentionRules){.last = G_MAXUINT}, "lll");
    assert_plan(UTC, times, (BeRetentionRules){.last = 0}, "nnn");
    assert_plan(UTC, "2026-11-03T02:00:00 2026-11-01T02:00:00 2026-11-02T02:00:00",
                (BeRetentionRules){.last = 2}, "l-l");
    /* Of two at once the later one in the list is the newer. */
    assert_plan(UTC, "2026-11-03T02:00:00 2026-11-03T02:00:00", (BeRetentionRules){.last = 1},
                "-l");
}

static void test_held(void)
{
    assert_plan(UTC, "2026-11-01T02:00:00! 2026-11-02T02:00:00 2026-11-03T02:00:00",
                (BeRetentionRules){.last = 1}, "h-l");
    assert_plan(UTC, "2026-11-01T02:00:00!", (BeRetentionRules){.daily = 0}, "h");
}

static void test_daily(void)
{
    /* The newest of each day; days without any do not count. */
    assert_plan(UTC,
                "2026-11-01T23:59:59 2026-11-02T00:00:00 2026-11-02T12:00:00 2026-11-09T01:00:00",
                (BeRetentionRules){.daily = 2}, "--dd");
    assert_plan(UTC,
                "2026-11-01T23:59:59 2026-11-02T00:00:00 2026-11-02T12:00:00 2026-11-09T01:00:00",
                (BeRetentionRules){.daily = 9}, "d-dd");
}

static void test_days_are_those_of_the_zone(void)
{
    /* 23:30 and 00:30 in Berlin are one day in UTC. */
    assert_plan(BERLIN, "2026-11-01T23:30:00 2026-11-02T00:30:00", (BeRetentionRules){.daily = 5},
                "dd");
    assert_plan(UTC, "2026-11-01T22:30:00 2026-11-01T23:30:00", (BeRetentionRules){.daily = 5},
                "-d");
}

static void test_summer_time(void)
{
    /* The hour that is there twice, and the day of 25 hours around it. */
    assert_plan(BERLIN,
                "2026-10-24T23:59:59 2026-10-25T00:00:00 2026-10-25T02:30:00+02:00 "
                "2026-10-25T02:30:00+01:00 2026-10-25T23:59:59 2026-10-26T00:00:00",
                (BeRetentionRules){.daily = 9}, "d---dd");
    /* The day of 23 hours. */
    assert_plan(BERLIN, "2026-03-29T00:30:00 2026-03-29T03:30:00 2026-03-30T00:10:00",
                (BeRetentionRules){.daily = 9}, "-dd");
}

static void test_weeks(void)
{
    /* Sunday and Monday. */
    assert_plan(UTC, "2026-11-22T23:59:59 2026-11-23T00:00:00", (BeRetentionRules){.weekly = 9},
                "ww");
    assert_plan(UTC, "2026-11-23T00:00:00 2026-11-29T23:59:59", (BeRetentionRules){.weekly = 9},
                "-w");
    /* Friday the 1st of January 2027 is in week 53 of 2026; so is New Year's Eve. */
    assert_plan(UTC, "2026-12-31T12:00:00 2027-01-01T12:00:00 2027-01-04T12:00:00",
                (BeRetentionRules){.weekly = 9}, "-ww");
    /* Monday the 30th of December 2024 is in week 1 of 2025, as is the 5th of January. */
    assert_plan(UTC, "2024-12-29T12:00:00 2024-12-30T12:00:00 2025-01-05T12:00:00",
                (BeRetentionRules){.weekly = 9}, "w-w");
}

static void test_months(void)
{
    assert_plan(UTC, "2026-01-31T23:59:59 2026-02-01T00:00:00 2026-02-28T23:59:59",
                (BeRetentionRules){.monthly = 9}, "m-m");
    /* The same month of two years, a leap day. */
    assert_plan(UTC, "2024-02-29T10:00:00 2025-02-28T10:00:00 2026-02-28T10:00:00",
                (BeRetentionRules){.monthly = 2}, "-mm");
}

static void test_together(void)
{
    /* A fortnight of days, the usual schedule: the rules add up. */
    assert_plan(UTC,
                "2026-11-01T02:00:00 2026-11-02T02:00:00 2026-11-08T02:00:00 2026-11-09T02:00:00 "
                "2026-11-14T02:00:00 2026-11-15T02:00:00 2026-11-16T02:00:00 2026-11-16T14:00:00",
                (BeRetentionRules){.last = 1, .daily = 2, .weekly = 3, .monthly = 1}, "--w--d-l");
}

static void test_odd_times(void)
{
    g_autoptr(GTimeZone) zone = g_time_zone_new_utc();
    g_autoptr(GPtrArray) points = g_ptr_array_new();
    BeRetentionPoint odd[] = {
        {"a", G_MAXINT64, NULL, FALSE}, {"b", G_MININT64, NULL, FALSE}, {"c", -1, NULL, FALSE}};
    BeRetentionRules rules = {.last = 1, .daily = 5};
    g_autoptr(GPtrArray) reasons = NULL;

    for (gsize i = 0; i < G_N_ELEMENTS(odd); i++) {
        g_ptr_array_add(points, &odd[i]);
    }
    reasons = be_retention_plan(points, &rules, zone);
    g_assert_nonnull(g_ptr_array_index(reasons, 0));
    g_assert_null(g_ptr_array_index(reasons, 1));
}

static void test_useless(void)
{
    g_autoptr(GTimeZone) zone = g_time_zone_new_utc();
    g_autoptr(GPtrArray) points = g_ptr_array_new();
    BeRetentionPoint rows[] = {
        {"a", 1, NULL, FALSE}, {"b", 2, NULL, TRUE}, {"c", 3, "held", TRUE}};
    BeRetentionRules rules = {.last = 1, .monthly = 1};
    g_autoptr(GPtrArray) reasons = NULL;

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_ptr_array_add(points, &rows[i]);
    }
    reasons = be_retention_plan(points, &rules, zone);
    g_assert_cmpstr(g_ptr_array_index(reasons, 0), ==, "last, monthly 1970-01");
    g_assert_null(g_ptr_array_index(reasons, 1));
    g_assert_cmpstr(g_ptr_array_index(reasons, 2), ==, "held");
}

static void test_none(void)
{
    g_autoptr(GTimeZone) zone = g_time_zone_new_utc();
    g_autoptr(GPtrArray) points = g_ptr_array_new();
    BeRetentionRules rules = {.last = 1, .daily = 1, .weekly = 1, .monthly = 1};
    g_autoptr(GPtrArray) reasons = be_retention_plan(points, &rules, zone);

    g_assert_cmpuint(reasons->len, ==, 0);
}

static gboolean next_choice(guint *choice, guint length)
{
    for (guint i = 0; i < length; i++) {
        if (++choice[i] < 3) {
            return TRUE;
        }
        choice[i] = 0;
    }
    return FALSE;
}

/* Whatever the rules: more of them never remove more, and the newest stays. */
static void test_more_keeps_more(void)
{
    g_autoptr(GTimeZone) zone = g_time_zone_new_utc();
    g_autoptr(GRand) rand = g_rand_new_with_seed(3);
    g_autofree BeRetentionPoint *points = g_new0(BeRetentionPoint, 40);
    g_autoptr(GPtrArray) array = g_ptr_array_new();
    guint choice[4] = {1, 0, 0, 0};

    for (guint i = 0; i < 40; i++) {
        points[i].name = "x";
        points[i].time_us =
            (1790000000 + (gint64)g_rand_int_range(rand, 0, 90 * 86400)) * G_USEC_PER_SEC;
        g_ptr_array_add(array, &points[i]);
    }
    do {
        BeRetentionRules less = {choice[0], choice[1], choice[2], choice[3]};
        BeRetentionRules more = {choice[0] + 1, choice[1] + 1, choice[2] + 1, choice[3] + 1};
        g_autoptr(GPtrArray) few = be_retention_plan(array, &less, zone);
        g_autoptr(GPtrArray) many = be_retention_plan(array, &more, zone);
        guint newest = 0;

        for (guint i = 0; i < 40; i++) {
            g_assert_true(!g_ptr_array_index(few, i) || g_ptr_array_index(many, i));
            newest = points[i].time_us >= points[newest].time_us ? i : newest;
        }
        g_assert_nonnull(g_ptr_array_index(few, newest));
    } while (next_choice(choice, G_N_ELEMENTS(choice))
             && (choice[0] || choice[1] || choice[2] || choice[3]));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/retention/last", test_last);
    g_test_add_func("/retention/held", test_held);
    g_test_add_func("/retention/daily", test_daily);
    g_test_add_func("/retention/zone", test_days_are_those_of_the_zone);
    g_test_add_func("/retention/summer-time", test_summer_time);
    g_test_add_func("/retention/weeks", test_weeks);
    g_test_add_func("/retention/months", test_months);
    g_test_add_func("/retention/together", test_together);
    g_test_add_func("/retention/odd-times", test_odd_times);
    g_test_add_func("/retention/useless", test_useless);
    g_test_add_func("/retention/none", test_none);
    g_test_add_func("/retention/more", test_more_keeps_more);
    return g_test_run();
}
