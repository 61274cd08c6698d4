/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-node.c - fs/node.c: counts, fresh nodes, identities, and storms of forgets.
 */
#include "fs/node.h"

enum { THREADS = 4, ROUNDS = 20000, OBJECTS = 8 };

static const FsVerb no_verbs[] = {{NULL, 0, 0, NULL, NULL, NULL}};

static const FsDef text_row = {.name = "text", .kind = FS_KIND_ATTR, .mode = 0640};
static const FsDef control_row = {.name = "control", .kind = FS_KIND_CONTROL, .mode = 0600,
                                  .verbs = no_verbs};
static const FsDef collection_row = {.name = "things", .kind = FS_KIND_DIR, .mode = 0750};
static const FsDef object_row = {.name = "<name>", .kind = FS_KIND_DIR, .mode = 0750};

static FsItem *item_new(const char *id, const char *name)
{
    return fs_item_new(NULL, id, g_strdup(name), NULL, NULL);
}

/* What a LOOKUP is: found, answered, and our own reference given back. */
static guint64 look_up(FsNodeTable *table, FsNode *parent, const FsDef *def, FsItem *item)
{
    FsNode *node = fs_node_lookup(table, parent, def, item);
    guint64 number = node->number;

    fs_node_unref(table, node);
    return number;
}

typedef struct {
    FsNodeTable *table;
    FsNode *root;
} Fixture;

static void set_up(Fixture *fixture, gconstpointer data G_GNUC_UNUSED)
{
    fixture->table = fs_node_table_new();
    fixture->root = fs_node_get(fixture->table, 1);
}

static void tear_down(Fixture *fixture, gconstpointer data G_GNUC_UNUSED)
{
    fs_node_unref(fixture->table, fixture->root);
    fs_node_table_free(fixture->table);
}

static void test_root(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    g_autofree char *path = fs_node_path(f->root);

    g_assert_nonnull(f->root);
    g_assert_true(f->root->def == &fs_tree_root);
    g_assert_cmpuint(f->root->ino, ==, 1);
    g_assert_cmpstr(path, ==, "");
    fs_node_forget(f->table, 1, G_MAXUINT64);
    g_assert_true(fs_node_get(f->table, 1) == f->root);
    fs_node_unref(f->table, f->root);
}

static void test_stray_numbers(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    g_assert_null(fs_node_get(f->table, 0));
    g_assert_null(fs_node_get(f->table, 2));
    g_assert_null(fs_node_get(f->table, G_MAXUINT64));
    fs_node_forget(f->table, 77, 1);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 1);
}

static void test_lookups_are_counted(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    guint64 number = look_up(f->table, f->root, &text_row, NULL);

    g_assert_cmpuint(look_up(f->table, f->root, &text_row, NULL), ==, number);
    fs_node_forget(f->table, number, 1);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 2);
    fs_node_forget(f->table, number, 1);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 1);
    /* A number is never used again. */
    g_assert_cmpuint(look_up(f->table, f->root, &text_row, NULL), >, number);
}

static void test_too_many_forgets(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    FsNode *node = fs_node_lookup(f->table, f->root, &text_row, NULL);
    guint64 number = node->number;

    fs_node_forget(f->table, number, 1000);
    fs_node_forget(f->table, number, 1000);
    g_assert_true(fs_node_get(f->table, number) == node);   /* our reference keeps it */
    fs_node_unref(f->table, node);
    fs_node_unref(f->table, node);
    g_assert_null(fs_node_get(f->table, number));
}

static void test_child_keeps_its_parents(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    g_autoptr(FsItem) item = item_new("id-a", "a");
    FsNode *dir = fs_node_lookup(f->table, f->root, &collection_row, NULL);
    FsNode *object = fs_node_lookup(f->table, dir, &object_row, item);
    FsNode *text = fs_node_lookup(f->table, object, &text_row, item);
    g_autofree char *path = fs_node_path(text);

    g_assert_cmpstr(path, ==, "things/a/text");
    fs_node_forget(f->table, dir->number, 1);
    fs_node_unref(f->table, dir);
    fs_node_forget(f->table, object->number, 1);
    fs_node_unref(f->table, object);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 4);
    fs_node_unref(f->table, text);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 4);
    fs_node_forget(f->table, text->number, 1);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 1);
}

static void test_control_is_fresh_each_time(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    FsNode *one = fs_node_lookup(f->table, f->root, &control_row, NULL);
    FsNode *two = fs_node_lookup(f->table, f->root, &control_row, NULL);

    g_assert_cmpuint(one->number, !=, two->number);
    g_assert_cmpuint(one->ino, ==, two->ino);
    fs_node_forget(f->table, one->number, 1);
    fs_node_forget(f->table, two->number, 1);
    fs_node_unref(f->table, one);
    fs_node_unref(f->table, two);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 1);
}

static void test_collection_is_fresh_while_an_action_runs(Fixture *f,
                                                          gconstpointer data G_GNUC_UNUSED)
{
    FsNode *locked = fs_node_lookup(f->table, f->root, &collection_row, NULL);
    FsNode *fresh, *fresher;

    fs_node_action_begin(f->table, locked);
    fs_node_action_begin(f->table, locked);
    fresh = fs_node_lookup(f->table, f->root, &collection_row, NULL);
    fresher = fs_node_lookup(f->table, f->root, &collection_row, NULL);
    g_assert_cmpuint(fresh->number, !=, locked->number);
    g_assert_cmpuint(fresher->number, !=, fresh->number);
    g_assert_cmpuint(fresh->ino, ==, locked->ino);
    fs_node_action_end(f->table, locked);
    g_assert_cmpuint(look_up(f->table, f->root, &collection_row, NULL), !=, locked->number);
    fs_node_action_end(f->table, locked);
    /* Those who sit in the directory find themselves again. */
    g_assert_cmpuint(look_up(f->table, f->root, &collection_row, NULL), ==, locked->number);
    fs_node_unref(f->table, locked);
    fs_node_unref(f->table, fresh);
    fs_node_unref(f->table, fresher);
}

static void test_locked_directory_is_forgotten(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    FsNode *locked = fs_node_lookup(f->table, f->root, &collection_row, NULL);

    fs_node_action_begin(f->table, locked);
    fs_node_forget(f->table, locked->number, 1);
    fs_node_action_end(f->table, locked);
    fs_node_unref(f->table, locked);
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 1);
}

static void test_new_object_of_an_old_name(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    g_autoptr(FsItem) first = item_new("id-1", "same"), second = item_new("id-2", "same");
    g_autoptr(FsItem) first_again = item_new("id-1", "same");
    FsNode *old = fs_node_lookup(f->table, f->root, &object_row, first);
    FsNode *new;

    g_assert_cmpuint(look_up(f->table, f->root, &object_row, first_again), ==, old->number);
    new = fs_node_lookup(f->table, f->root, &object_row, second);
    g_assert_cmpuint(new->number, !=, old->number);
    g_assert_cmpuint(new->ino, !=, old->ino);
    g_assert_true(fs_node_get(f->table, old->number) == old);
    fs_node_unref(f->table, old);
    g_assert_cmpuint(look_up(f->table, f->root, &object_row, second), ==, new->number);
    /* The death of the old one does not take the name from the new one. */
    fs_node_forget(f->table, old->number, 2);
    fs_node_unref(f->table, old);
    g_assert_cmpuint(look_up(f->table, f->root, &object_row, second), ==, new->number);
    fs_node_unref(f->table, new);
}

static void test_inode_numbers(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    g_autoptr(FsItem) a = item_new("id-a", "a"), b = item_new("id-b", "b");
    FsNode *in_a = fs_node_lookup(f->table, f->root, &object_row, a);
    FsNode *in_b = fs_node_lookup(f->table, f->root, &object_row, b);
    FsNode *text_a = fs_node_lookup(f->table, in_a, &text_row, a);

    g_assert_cmpuint(text_a->ino, ==, fs_node_child_ino(in_a, &text_row, a));
    g_assert_cmpuint(text_a->ino, !=, fs_node_child_ino(in_b, &text_row, b));
    g_assert_cmpuint(text_a->ino, !=, fs_node_child_ino(in_a, &control_row, a));
    g_assert_cmpuint(in_a->ino, !=, in_b->ino);
    fs_node_unref(f->table, text_a);
    fs_node_unref(f->table, in_a);
    fs_node_unref(f->table, in_b);
}

/* ---- Several threads -------------------------------------------------------- */

typedef struct {
    FsNodeTable *table;
    FsItem **items;
    guint32 seed;
} Storm;

/* What the kernel's threads do: paths are walked, looked at, forgotten late. */
static gpointer storm_main(gpointer data)
{
    const Storm *storm = data;
    g_autoptr(GRand) random = g_rand_new_with_seed(storm->seed);
    FsNode *root = fs_node_get(storm->table, 1);

    for (int i = 0; i < ROUNDS; i++) {
        FsItem *item = storm->items[g_rand_int_range(random, 0, OBJECTS)];
        FsNode *dir = fs_node_lookup(storm->table, root, &collection_row, NULL);
        FsNode *object = fs_node_lookup(storm->table, dir, &object_row, item);
        FsNode *leaf = fs_node_lookup(storm->table, object,
                                      i % 2 ? &text_row : &control_row, item);
        FsNode *got = fs_node_get(storm->table, object->number);
        gboolean action = g_rand_int_range(random, 0, 8) == 0;

        g_assert_true(got == object);
        fs_node_unref(storm->table, got);
        if (action) {
            fs_node_action_begin(storm->table, dir);
        }
        fs_node_forget(storm->table, dir->number, 1);
        fs_node_forget(storm->table, leaf->number, 1);
        fs_node_unref(storm->table, leaf);
        fs_node_forget(storm->table, object->number, 1);
        if (action) {
            fs_node_action_end(storm->table, dir);
        }
        fs_node_unref(storm->table, object);
        fs_node_unref(storm->table, dir);
    }
    fs_node_unref(storm->table, root);
    return NULL;
}

static void test_storm(Fixture *f, gconstpointer data G_GNUC_UNUSED)
{
    FsItem *items[OBJECTS];
    GThread *threads[THREADS];
    Storm storms[THREADS];

    for (int i = 0; i < OBJECTS; i++) {
        g_autofree char *id = g_strdup_printf("id-%d", i);

        items[i] = item_new(id, i % 2 ? "odd" : "even");    /* names change hands */
    }
    for (int i = 0; i < THREADS; i++) {
        storms[i] = (Storm){f->table, items, g_test_rand_int_range(0, G_MAXINT32)};
        threads[i] = g_thread_new("storm", storm_main, &storms[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        g_thread_join(threads[i]);
    }
    g_assert_cmpuint(fs_node_table_size(f->table), ==, 1);
    for (int i = 0; i < OBJECTS; i++) {
        g_assert_true(g_atomic_ref_count_compare(&items[i]->refs, 1));
        fs_item_unref(items[i]);
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *path;
        void (*run)(Fixture *, gconstpointer);
    } tests[] = {
        {"/node/root", test_root},
        {"/node/stray-numbers", test_stray_numbers},
        {"/node/lookups-are-counted", test_lookups_are_counted},
        {"/node/too-many-forgets", test_too_many_forgets},
        {"/node/child-keeps-its-parents", test_child_keeps_its_parents},
        {"/node/control-is-fresh", test_control_is_fresh_each_time},
        {"/node/collection-is-fresh", test_collection_is_fresh_while_an_action_runs},
        {"/node/locked-directory-is-forgotten", test_locked_directory_is_forgotten},
        {"/node/new-object-of-an-old-name", test_new_object_of_an_old_name},
        {"/node/inode-numbers", test_inode_numbers},
        {"/node/storm", test_storm},
    };

    g_test_init(&argc, &argv, NULL);
    for (gsize i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_test_add(tests[i].path, Fixture, NULL, set_up, tests[i].run, tear_down);
    }
    return g_test_run();
}
