/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-guest-link.c - fs/guest-link.c: no link leaves its tree.
 */
#include <glib.h>
#include <string.h>

#include "fs/guest-link.h"

typedef struct {
    const char *target;
    guint depth;
    gboolean plain;
    const char *shown;         /* NULL: refused */
} Case;

static const Case cases[] = {
    {"file", 0, TRUE, "file"},
    {"a//./b/", 3, TRUE, "a/b"},
    {".", 0, TRUE, "."},
    {"/", 0, TRUE, "."},
    {"/", 2, TRUE, "../.."},
    {"/usr/lib", 0, TRUE, "usr/lib"},
    {"/usr/lib", 1, TRUE, "../usr/lib"},
    {"/../../etc/shadow", 1, TRUE, "../etc/shadow"},
    {"..", 0, TRUE, NULL},
    {"..", 1, TRUE, ".."},
    {"../../etc/shadow", 1, TRUE, NULL},
    {"../../etc/shadow", 2, TRUE, "../../etc/shadow"},
    {"a/..", 0, TRUE, "."},
    {"a/../b", 0, TRUE, "b"},
    {"a/../b", 0, FALSE, NULL},
    {"a/../../b", 0, TRUE, NULL},
    {"a/../../b", 1, TRUE, "../b"},
    {"../a/../b", 1, FALSE, NULL},
    {"/a/../../b", 1, TRUE, "../b"},
    {"...", 0, TRUE, "..."},
    {"..a/b..", 0, TRUE, "..a/b.."},
    {"", 0, TRUE, NULL},
    {"\xff\xfe", 0, TRUE, "\xff\xfe"},
};

static void test_cases(void)
{
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        const Case *one = &cases[i];
        g_autofree char *shown = fs_guest_link(one->target, one->depth, one->plain);
        g_autofree char *escaped = g_strescape(one->target, NULL);

        g_test_message("'%s' at %u", escaped, one->depth);
        g_assert_cmpstr(shown, ==, one->shown);
    }
}

/* Whatever the text: at most @depth times ".." in front, and none behind a name. */
static void check_contained(const char *shown, guint depth)
{
    g_auto(GStrv) parts = g_strsplit(shown, "/", -1);
    gboolean in_front = TRUE;
    guint up = 0;

    g_assert_cmpint(*shown, !=, '/');
    for (guint i = 0; parts[i]; i++) {
        if (strcmp(parts[i], "..") == 0) {
            g_assert_true(in_front);
            up++;
        } else {
            in_front = FALSE;
        }
    }
    g_assert_cmpuint(up, <=, depth);
}

static void test_random(void)
{
    static const char *const words[] = {"..", ".", "", "a", "link", "...", "/", "b"};

    for (guint round = 0; round < 100000; round++) {
        g_autoptr(GString) target = g_string_new(NULL);
        guint depth = (guint)g_test_rand_int_range(0, 5);
        g_autofree char *shown = NULL;

        for (gint n = g_test_rand_int_range(1, 10); n > 0; n--) {
            g_string_append_printf(target, "%s%s", target->len || g_test_rand_bit() ? "/" : "",
                                   words[g_test_rand_int_range(0, G_N_ELEMENTS(words))]);
        }
        shown = fs_guest_link(target->str, depth, g_test_rand_bit());
        if (shown) {
            check_contained(shown, depth);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/guest-link/cases", test_cases);
    g_test_add_func("/guest-link/random", test_random);
    return g_test_run();
}
