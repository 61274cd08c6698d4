/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-guard.c - fs/guard.c: what a refusal arms, and what it leaves alone.
 */
#include "fs/guard.h"

/* Two machines; one of them has two backups, one of which has a disk. */
typedef struct {
    FsGuard *guard;
    FsItem *vm, *other, *backup, *sibling, *disk;
} Fixture;

static FsItem *item_new(FsItem *parent, const char *id)
{
    return fs_item_new(parent, id, g_strdup(id), NULL, NULL);
}

static void set_up(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    f->guard = fs_guard_new();
    f->vm = item_new(NULL, "vm");
    f->other = item_new(NULL, "other");
    f->backup = item_new(f->vm, "backup");
    f->sibling = item_new(f->vm, "sibling");
    f->disk = item_new(f->backup, "disk");
}

static void tear_down(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_item_unref(f->disk);
    fs_item_unref(f->sibling);
    fs_item_unref(f->backup);
    fs_item_unref(f->other);
    fs_item_unref(f->vm);
    fs_guard_free(f->guard);
}

static gboolean removal_armed(Fixture *f, FsItem *item)
{
    guint seconds = fs_guard_check_removal(f->guard, item);

    g_assert_cmpuint(seconds, <=, 10);
    return seconds > 0;
}

static gboolean creation_armed(Fixture *f, FsItem *item)
{
    guint seconds = fs_guard_check_creation(f->guard, item);

    g_assert_cmpuint(seconds, <=, 10);
    return seconds > 0;
}

static void test_nothing_is_armed(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    FsItem *items[] = {f->vm, f->other, f->backup, f->sibling, f->disk, NULL};

    for (gsize i = 0; i < G_N_ELEMENTS(items); i++) {
        g_assert_false(removal_armed(f, items[i]));
        g_assert_false(creation_armed(f, items[i]));
    }
}

static void test_object(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_removal_refused(f->guard, f->backup);
    g_assert_true(removal_armed(f, f->backup));
    g_assert_true(removal_armed(f, f->disk));
    g_assert_true(removal_armed(f, f->vm));
    g_assert_false(removal_armed(f, f->sibling));
    g_assert_false(removal_armed(f, f->other));
    g_assert_false(removal_armed(f, NULL));
    g_assert_false(creation_armed(f, f->backup));
}

static void test_below_an_object(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_removal_refused(f->guard, f->disk);
    g_assert_true(removal_armed(f, f->disk));
    g_assert_true(removal_armed(f, f->backup));
    g_assert_true(removal_armed(f, f->vm));
    g_assert_false(removal_armed(f, f->sibling));
}

static void test_above_an_object(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_removal_refused(f->guard, f->vm);
    g_assert_true(removal_armed(f, f->backup));
    g_assert_true(removal_armed(f, f->sibling));
    g_assert_true(removal_armed(f, f->disk));
    g_assert_false(removal_armed(f, f->other));
}

static void test_above_all(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_removal_refused(f->guard, NULL);
    g_assert_true(removal_armed(f, f->backup));
    g_assert_true(removal_armed(f, f->other));
    g_assert_true(removal_armed(f, NULL));
    g_assert_false(creation_armed(f, f->vm));
}

static void test_creation(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_creation_refused(f->guard, f->vm);
    g_assert_true(creation_armed(f, f->vm));
    g_assert_false(creation_armed(f, f->other));
    g_assert_false(removal_armed(f, f->vm));
}

/* The first directory that is copied in is made; what is put into it tells. */
static void test_creation_in_an_object(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_creation_refused(f->guard, f->backup);
    g_assert_true(creation_armed(f, f->vm));
    g_assert_false(creation_armed(f, f->other));
}

static void test_creation_above_all(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    fs_guard_creation_refused(f->guard, NULL);
    g_assert_false(creation_armed(f, f->vm));
    g_assert_false(creation_armed(f, NULL));
}

static void test_identity_counts_not_the_item(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    g_autoptr(FsItem) again = item_new(f->vm, "backup");

    for (int i = 0; i < 1000; i++) {
        fs_guard_removal_refused(f->guard, f->backup);
    }
    g_assert_true(removal_armed(f, again));
}

int main(int argc, char **argv)
{
    static const struct {
        const char *path;
        void (*run)(Fixture *, gconstpointer);
    } tests[] = {
        {"/guard/nothing", test_nothing_is_armed},
        {"/guard/object", test_object},
        {"/guard/below-an-object", test_below_an_object},
        {"/guard/above-an-object", test_above_an_object},
        {"/guard/above-all", test_above_all},
        {"/guard/creation", test_creation},
        {"/guard/creation-in-an-object", test_creation_in_an_object},
        {"/guard/creation-above-all", test_creation_above_all},
        {"/guard/identity", test_identity_counts_not_the_item},
    };

    g_test_init(&argc, &argv, NULL);
    for (gsize i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_test_add(tests[i].path, Fixture, NULL, set_up, tests[i].run, tear_down);
    }
    return g_test_run();
}
