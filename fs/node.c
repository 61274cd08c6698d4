/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * node.c - the only owner of the table lock; see node.h for the ownership.
 *
 * Any thread.  The lock is held for hash table work alone: freeing a node,
 * which may free an object and with it a backup, happens after it is dropped.
 */
#include "fs/node.h"

#include "fs/name.h"
#include "fs/text.h"

#define ROOT_NUMBER 1          /* FUSE_ROOT_ID */

struct FsNodeTable {
    GMutex lock;
    GHashTable *by_number;     /* guint64 * -> FsNode */
    GHashTable *by_name;       /* FsNode, by parent and name -> itself */
    guint64 next_number;
    FsNode *root;              /* constant; holds one reference for ever */
};

const char *fs_node_name(const FsNode *node)
{
    if (node->item && node->parent && node->item != node->parent->item) {
        return node->item->file_name;
    }
    return node->def->name;
}

/* by_name keys: the node itself stands for (parent number, name). */
static guint name_hash(gconstpointer key)
{
    const FsNode *node = key;

    return g_str_hash(fs_node_name(node)) ^ (guint)(node->parent->number * 2654435761u);
}

static gboolean name_equal(gconstpointer a, gconstpointer b)
{
    const FsNode *one = a, *two = b;

    return one->parent == two->parent && g_str_equal(fs_node_name(one), fs_node_name(two));
}

FsNodeTable *fs_node_table_new(void)
{
    FsNodeTable *table = g_new0(FsNodeTable, 1);
    FsNode *root = g_new0(FsNode, 1);

    g_mutex_init(&table->lock);
    table->by_number = g_hash_table_new(g_int64_hash, g_int64_equal);
    table->by_name = g_hash_table_new(name_hash, name_equal);
    table->next_number = ROOT_NUMBER + 1;
    root->number = ROOT_NUMBER;
    root->ino = ROOT_NUMBER;
    root->def = &fs_tree_root;
    root->refs = 1;
    g_hash_table_insert(table->by_number, &root->number, root);
    table->root = root;
    return table;
}

static void node_free(FsNode *node)
{
    fs_text_free(node->text);
    fs_item_unref(node->item);
    g_free(node);
}

void fs_node_table_free(FsNodeTable *table)
{
    GHashTableIter iter;
    gpointer value;

    if (!table) {
        return;
    }
    g_hash_table_unref(table->by_name);
    g_hash_table_iter_init(&iter, table->by_number);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        g_hash_table_iter_remove(&iter);
        node_free(value);
    }
    g_hash_table_unref(table->by_number);
    g_mutex_clear(&table->lock);
    g_free(table);
}

FsNode *fs_node_get(FsNodeTable *table, guint64 number)
{
    FsNode *node;

    g_mutex_lock(&table->lock);
    node = g_hash_table_lookup(table->by_number, &number);
    if (node) {
        node->refs++;
    }
    g_mutex_unlock(&table->lock);
    return node;
}

FsNode *fs_node_ref(FsNodeTable *table, FsNode *node)
{
    g_mutex_lock(&table->lock);
    node->refs++;
    g_mutex_unlock(&table->lock);
    return node;
}

static void unlink_locked(FsNodeTable *table, FsNode *node)
{
    if (node->linked) {
        g_hash_table_remove(table->by_name, node);
        node->linked = FALSE;
    }
}

/*
 * Drops @count references; each node that dies gives one of its parent's back,
 * so this walks up.  Dead nodes are chained by their `parent` field for the
 * caller to free without the lock.
 */
static FsNode *drop_locked(FsNodeTable *table, FsNode *node, guint count)
{
    FsNode *dead = NULL;

    while (node) {
        FsNode *parent = node->parent;

        g_assert(node->refs >= count);
        node->refs -= count;
        if (node->refs > 0) {
            break;
        }
        unlink_locked(table, node);
        g_hash_table_remove(table->by_number, &node->number);
        node->parent = dead;
        dead = node;
        node = parent;
        count = 1;
    }
    return dead;
}

static void free_dead(FsNode *dead)
{
    while (dead) {
        FsNode *next = dead->parent;

        node_free(dead);
        dead = next;
    }
}

void fs_node_unref(FsNodeTable *table, FsNode *node)
{
    FsNode *dead;

    if (!node) {
        return;
    }
    g_mutex_lock(&table->lock);
    dead = drop_locked(table, node, 1);
    g_mutex_unlock(&table->lock);
    free_dead(dead);
}

guint64 fs_node_child_ino(const FsNode *parent, const FsDef *def, const FsItem *item)
{
    g_autofree char *parent_ino = g_strdup_printf("%" G_GINT64_MODIFIER "x", parent->ino);
    const char *identity = item && item != parent->item ? item->id : "";
    const char *const parts[] = {parent_ino, def->name, identity, NULL};

    return *identity && item->ino ? item->ino : fs_name_inode(parts);
}

/* A new node with one reference, not yet in the table. */
static FsNode *node_new(FsNode *parent, const FsDef *def, FsItem *item)
{
    FsNode *node = g_new0(FsNode, 1);

    node->def = def;
    node->parent = parent;
    node->item = item ? fs_item_ref(item) : NULL;
    node->ino = fs_node_child_ino(parent, def, item);
    node->text = def->kind == FS_KIND_ATTR ? fs_text_new() : NULL;
    node->refs = 1;
    return node;
}

/*
 * An object that can be removed has data that never changes: other data is the object
 * as it is now, with another parent or on other images, and wants a node of its own.
 */
static gboolean same_object(const FsNode *one, const FsNode *two)
{
    if (one->def != two->def) {
        return FALSE;
    }
    if (!one->item || !two->item) {
        return one->item == two->item;
    }
    if (one->def->drop && one->item->data != two->item->data) {
        return FALSE;
    }
    return g_str_equal(one->item->id, two->item->id);
}

/* Whether a lookup that finds @node must be answered with another node. */
static gboolean wants_fresh_locked(const FsNode *node)
{
    return node->def->kind == FS_KIND_CONTROL || node->actions > 0;
}

FsNode *fs_node_lookup(FsNodeTable *table, FsNode *parent, const FsDef *def, FsItem *item)
{
    FsNode *made = node_new(parent, def, item);
    FsNode *found;

    g_mutex_lock(&table->lock);
    found = g_hash_table_lookup(table->by_name, made);
    if (found && !same_object(found, made)) {
        unlink_locked(table, found);
        found = NULL;
    }
    if (found && !wants_fresh_locked(found)) {
        found->refs++;
    } else {
        parent->refs++;
        made->number = table->next_number++;
        g_hash_table_insert(table->by_number, &made->number, made);
        if (!found && def->kind != FS_KIND_CONTROL) {
            g_hash_table_add(table->by_name, made);
            made->linked = TRUE;
        }
        found = g_steal_pointer(&made);
    }
    if (found->nlookup++ == 0) {
        found->refs++;
    }
    g_mutex_unlock(&table->lock);
    if (made) {
        node_free(made);
    }
    return found;
}

void fs_node_forget(FsNodeTable *table, guint64 number, guint64 count)
{
    FsNode *node, *dead = NULL;

    g_mutex_lock(&table->lock);
    node = g_hash_table_lookup(table->by_number, &number);
    if (node && node->nlookup > 0) {
        node->nlookup -= MIN(count, node->nlookup);
        if (node->nlookup == 0) {
            dead = drop_locked(table, node, 1);
        }
    }
    g_mutex_unlock(&table->lock);
    free_dead(dead);
}

void fs_node_action_begin(FsNodeTable *table, FsNode *node)
{
    g_mutex_lock(&table->lock);
    node->actions++;
    g_mutex_unlock(&table->lock);
}

void fs_node_action_end(FsNodeTable *table, FsNode *node)
{
    g_mutex_lock(&table->lock);
    node->actions--;
    g_mutex_unlock(&table->lock);
}

char *fs_node_path(const FsNode *node)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    GString *path = g_string_new(NULL);

    for (; node && node->parent; node = node->parent) {
        g_ptr_array_add(names, (gpointer)fs_node_name(node));
    }
    for (guint i = names->len; i > 0; i--) {
        g_string_append_printf(path, "%s%s", path->len ? "/" : "",
                               (const char *)g_ptr_array_index(names, i - 1));
    }
    return g_string_free(path, FALSE);
}

guint fs_node_table_size(FsNodeTable *table)
{
    guint size;

    g_mutex_lock(&table->lock);
    size = g_hash_table_size(table->by_number);
    g_mutex_unlock(&table->lock);
    return size;
}
