/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-tree.c - fs/tree.c: the table keeps its rules, and each broken rule is found.
 */
#include <errno.h>
#include <string.h>

#include "fs/def.h"

static gboolean show(Fs *fs G_GNUC_UNUSED, FsItem *item G_GNUC_UNUSED, GString *out G_GNUC_UNUSED,
                     GError **error G_GNUC_UNUSED)
{
    return TRUE;
}

static void fetch(Fs *fs G_GNUC_UNUSED, FsItem *item G_GNUC_UNUSED, BeTextDone done G_GNUC_UNUSED,
                  gpointer user G_GNUC_UNUSED)
{
}

static FsListing *list(Fs *fs G_GNUC_UNUSED, FsItem *item G_GNUC_UNUSED)
{
    return fs_listing_new();
}

static BeJob *make(const FsAct *act G_GNUC_UNUSED, const char *name G_GNUC_UNUSED,
                   GError **error G_GNUC_UNUSED)
{
    return NULL;
}

static BeJob *run(const FsAct *act G_GNUC_UNUSED, const FsCommand *command G_GNUC_UNUSED,
                  GError **error G_GNUC_UNUSED)
{
    return NULL;
}

#define END {.name = NULL}
#define TEXT(n) {.name = n, .kind = FS_KIND_ATTR, .mode = 0640, .show = show}
#define VERBS(...) (const FsVerb[]){__VA_ARGS__, {NULL, 0, 0, NULL, NULL, NULL}}
#define ROWS(...) (const FsDef[]){__VA_ARGS__, END}

static const FsDef child = TEXT("<name>");

static void test_the_tree_itself(void)
{
    g_autoptr(GError) error = NULL;

    g_assert_true(fs_tree_check(&fs_tree_root, &error));
    g_assert_no_error(error);
}

/* Each breaks one rule and nothing else. */
static const FsDef *const broken[] = {
    ROWS(TEXT("bad"), TEXT("bad")),
    ROWS(TEXT("b/d")),
    ROWS(TEXT("")),
    ROWS(TEXT(".")),
    ROWS(TEXT("..")),
    ROWS({.name = "bad", .kind = FS_KIND_ATTR, .mode = 0640}),
    ROWS({.name = "bad", .kind = FS_KIND_ATTR, .mode = 0640, .show = show, .fetch = fetch}),
    ROWS({.name = "bad", .kind = FS_KIND_ATTR, .mode = 0644, .show = show}),
    ROWS({.name = "bad", .kind = FS_KIND_DIR, .mode = 0750}),
    ROWS({.name = "bad", .kind = FS_KIND_DIR, .mode = 0750, .list = list}),
    ROWS({.name = "bad", .kind = FS_KIND_DIR, .mode = 0750, .child = &child}),
    ROWS({.name = "bad", .kind = FS_KIND_DIR, .mode = 0755, .rows = ROWS(TEXT("x"))}),
    ROWS({.name = "bad", .kind = FS_KIND_DIR, .mode = 0750, .rows = ROWS(TEXT("x")),
          .make = make}),
    ROWS({.name = "bad", .kind = FS_KIND_DIR, .mode = 0750, .rows = ROWS(TEXT("x")),
          .show = show}),
    ROWS({.name = "bad", .kind = FS_KIND_CONTROL, .mode = 0600}),
    ROWS({.name = "bad", .kind = FS_KIND_CONTROL, .mode = 0640,
          .verbs = VERBS({"go", 0, 0, NULL, "go", run})}),
    ROWS({.name = "bad", .kind = FS_KIND_CONTROL, .mode = 0600,
          .verbs = VERBS({"go", 0, 0, NULL, "go", NULL})}),
    ROWS({.name = "bad", .kind = FS_KIND_CONTROL, .mode = 0600,
          .verbs = VERBS({"go", 0, 0, NULL, NULL, run})}),
    ROWS({.name = "bad", .kind = FS_KIND_CONTROL, .mode = 0600,
          .verbs = VERBS({"go", 0, 0, NULL, "do it", run})}),
    ROWS({.name = "bad", .kind = FS_KIND_CONTROL, .mode = 0600,
          .verbs = VERBS({"go", 2, 1, NULL, "go", run})}),
    ROWS({.name = "bad", .kind = FS_KIND_STREAM, .mode = 0640}),
    ROWS({.name = "bad", .kind = FS_KIND_LINK, .mode = 0777}),
    ROWS({.name = "bad", .kind = FS_KIND_FEED, .mode = 0666}),
};

static void test_broken_tables(void)
{
    for (gsize i = 0; i < G_N_ELEMENTS(broken); i++) {
        FsDef deep = {.name = "deep", .kind = FS_KIND_DIR, .mode = 0750, .rows = broken[i]};
        FsDef rows[] = {TEXT("good"), deep, END};
        FsDef root = {.name = "", .kind = FS_KIND_DIR, .mode = 0750, .rows = rows};
        g_autoptr(GError) error = NULL;

        g_test_message("table %" G_GSIZE_FORMAT, i);
        g_assert_false(fs_tree_check(&root, &error));
        g_assert_error(error, BE_ERROR, EINVAL);
        g_assert_nonnull(strstr(error->message, "'deep"));
    }
}

static void collect(const FsDef *def, const char *path, gpointer user)
{
    g_string_append_printf(user, "%s:%s ", path, def->name);
}

static void test_walk(void)
{
    FsDef rows[] = {TEXT("a"),
                    {.name = "d", .kind = FS_KIND_DIR, .mode = 0750, .rows = ROWS(TEXT("x")),
                     .list = list, .child = &child},
                    TEXT("b"), END};
    FsDef root = {.name = "", .kind = FS_KIND_DIR, .mode = 0750, .rows = rows};
    g_autoptr(GString) out = g_string_new(NULL);
    g_autoptr(GError) error = NULL;

    g_assert_true(fs_tree_check(&root, &error));
    fs_tree_walk(&root, collect, out);
    g_assert_cmpstr(out->str, ==, ": a:a d:d d/x:x d/<name>:<name> b:b ");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tree/itself", test_the_tree_itself);
    g_test_add_func("/tree/broken", test_broken_tables);
    g_test_add_func("/tree/walk", test_walk);
    return g_test_run();
}
