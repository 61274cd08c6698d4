/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-feed.c - fs/feed.c: lines, readers of any appetite, and those who wait.
 */
#include <errno.h>
#include <json-glib/json-glib.h>
#include <string.h>

#include "fs/feed.h"

enum { KEPT = 1000, THREADS = 4, EVENTS = 500 };

static void add(FsFeed *feed, const char *text)
{
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = 1, .domain_name = "vm", .text = text};

    fs_feed_add(feed, &event);
}

/* All that a reader gets who takes @max bytes at a time. */
static char *read_all(FsFeed *feed, FsFeedCursor *cursor, gsize max)
{
    GString *all = g_string_new(NULL);
    g_autoptr(GString) part = g_string_new(NULL);

    while (fs_feed_next(feed, cursor, max, part)) {
        g_assert_cmpuint(part->len, <=, max);
        g_string_append(all, part->str);
        g_string_truncate(part, 0);
    }
    return g_string_free(all, FALSE);
}

static guint count_lines(const char *text)
{
    guint count = 0;

    for (; *text; text++) {
        count += *text == '\n';
    }
    return count;
}

static void test_line(void)
{
    FsFeed *feed = fs_feed_new();
    BeEvent event = {.kind = BE_EVENT_BACKUP_FAILED, .time_us = 1795219200123456,
                     .domain_uuid = "u", .domain_name = "a\xff\"\n", .object_name = "b",
                     .errnum = ENOSPC, .text = "no \"room\""};
    FsFeedCursor cursor = {0};
    g_autofree char *line = NULL;
    g_autoptr(JsonNode) root = NULL;
    JsonObject *object;

    fs_feed_add(feed, &event);
    line = read_all(feed, &cursor, 65536);
    g_assert_cmpuint(count_lines(line), ==, 1);
    root = json_from_string(line, NULL);
    g_assert_nonnull(root);
    object = json_node_get_object(root);
    g_assert_cmpint(json_object_get_int_member(object, "seq"), ==, 1);
    g_assert_cmpstr(json_object_get_string_member(object, "time"), ==, "2026-11-21T00:00:00.123Z");
    g_assert_cmpstr(json_object_get_string_member(object, "event"), ==, "backup-failed");
    g_assert_cmpstr(json_object_get_string_member(object, "object"), ==, "b");
    g_assert_cmpstr(json_object_get_string_member(object, "errno"), ==, "ENOSPC");
    g_assert_cmpstr(json_object_get_string_member(object, "text"), ==, "no \"room\"");
    g_assert_true(g_utf8_validate(line, -1, NULL));
    fs_feed_free(feed);
}

static void test_any_appetite(void)
{
    FsFeed *feed = fs_feed_new();
    g_autoptr(GString) printed = g_string_new(NULL);

    for (int i = 0; i < 20; i++) {
        g_autofree char *text = g_strnfill((gsize)i * 7, 'x');

        add(feed, text);
    }
    fs_feed_print(feed, printed);
    for (gsize max = 1; max < 3000; max += max < 300 ? 1 : 97) {
        FsFeedCursor cursor = {0};
        g_autofree char *all = read_all(feed, &cursor, max);

        g_assert_cmpstr(all, ==, printed->str);
    }
    fs_feed_free(feed);
}

/* Where there is room for a line, a reader gets whole ones. */
static void test_whole_lines(void)
{
    FsFeed *feed = fs_feed_new();
    g_autoptr(GString) out = g_string_new(NULL);
    FsFeedCursor cursor = {0};
    gsize length;

    add(feed, "one");
    add(feed, "two");
    fs_feed_print(feed, out);
    length = out->len;
    g_string_truncate(out, 0);
    g_assert_true(fs_feed_next(feed, &cursor, length - 1, out));
    g_assert_cmpuint(count_lines(out->str), ==, 1);
    g_assert_true(g_str_has_suffix(out->str, "\n"));
    fs_feed_free(feed);
}

static void test_ring(void)
{
    FsFeed *feed = fs_feed_new();
    FsFeedCursor slow = {0}, in_the_middle = {0};
    g_autoptr(GString) part = g_string_new(NULL);
    g_autofree char *rest = NULL, *next = NULL;

    add(feed, "first");
    g_assert_true(fs_feed_next(feed, &in_the_middle, 5, part));
    for (int i = 0; i < KEPT + 10; i++) {
        add(feed, "more");
    }
    rest = read_all(feed, &slow, 65536);
    g_assert_cmpuint(count_lines(rest), ==, KEPT);
    g_assert_null(strstr(rest, "first"));
    next = read_all(feed, &in_the_middle, 65536);
    g_assert_cmpstr(next, ==, rest);
    fs_feed_free(feed);
}

static void woken(gpointer user)
{
    g_atomic_int_inc((gint *)user);
}

static void test_waiting(void)
{
    FsFeed *feed = fs_feed_new();
    FsFeedCursor cursor = {0};
    gint one = 0, two = 0;
    g_autofree char *line = NULL;

    fs_feed_wait(feed, &cursor, woken, &one);
    fs_feed_wait(feed, &cursor, woken, &two);
    g_assert_true(fs_feed_cancel(feed, &two));
    g_assert_false(fs_feed_cancel(feed, &two));
    add(feed, "x");
    g_assert_cmpint(one, ==, 1);
    g_assert_cmpint(two, ==, 0);
    g_assert_false(fs_feed_cancel(feed, &one));
    add(feed, "y");
    g_assert_cmpint(one, ==, 1);
    fs_feed_wait(feed, &cursor, woken, &one);
    g_assert_cmpint(one, ==, 2);           /* something is there: at once */
    line = read_all(feed, &cursor, 65536);
    fs_feed_wait(feed, &cursor, woken, &one);
    g_assert_cmpint(one, ==, 2);
    g_assert_false(fs_feed_closed(feed));
    fs_feed_close(feed);
    g_assert_true(fs_feed_closed(feed));
    g_assert_cmpint(one, ==, 3);
    fs_feed_wait(feed, &cursor, woken, &one);
    g_assert_cmpint(one, ==, 4);
    fs_feed_free(feed);
}

static gpointer add_many(gpointer feed)
{
    for (int i = 0; i < EVENTS / THREADS; i++) {
        add(feed, "x");
    }
    return NULL;
}

static void test_threads(void)
{
    FsFeed *feed = fs_feed_new();
    GThread *threads[THREADS];
    FsFeedCursor cursor = {0};
    g_autoptr(GString) all = g_string_new(NULL);

    for (int i = 0; i < THREADS; i++) {
        threads[i] = g_thread_new("adds", add_many, feed);
    }
    while (count_lines(all->str) < EVENTS) {
        g_autofree char *part = read_all(feed, &cursor, 77);

        g_string_append(all, part);
    }
    for (int i = 0; i < THREADS; i++) {
        g_thread_join(threads[i]);
    }
    g_string_truncate(all, all->len - 1);
    {
        g_auto(GStrv) lines = g_strsplit(all->str, "\n", -1);

        for (int i = 0; i < EVENTS; i++) {
            g_autofree char *start = g_strdup_printf("{\"seq\":%d,", i + 1);

            g_assert_true(g_str_has_prefix(lines[i], start));
        }
    }
    fs_feed_free(feed);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/feed/line", test_line);
    g_test_add_func("/feed/any-appetite", test_any_appetite);
    g_test_add_func("/feed/whole-lines", test_whole_lines);
    g_test_add_func("/feed/ring", test_ring);
    g_test_add_func("/feed/waiting", test_waiting);
    g_test_add_func("/feed/threads", test_threads);
    return g_test_run();
}
