/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * node.h - the table of nodes: FUSE node number <-> row of the tree + object.
 *
 * Ownership.  A node has `refs`, ours, and `nlookup`, the kernel's.  The kernel
 * as a whole holds one of our references while nlookup > 0.  An open file, a
 * request and each child hold one more.  Both counts change only under the
 * table's lock, so that a lookup can never revive a node that is being freed.
 *
 * Numbers come from a counter and are never used again: a new object under an
 * old name gets a new number, and with it an empty page cache.  st_ino is
 * something else: a hash of what the node is, the same after a remount.
 */
#pragma once

#include "fs/def.h"

typedef struct FsNode FsNode;
typedef struct FsNodeTable FsNodeTable;

/* A cached text of an ATTR row; owned by text.c, guarded by its lock. */
typedef struct FsText FsText;

struct FsNode {
    guint64 number;
    guint64 ino;
    const FsDef *def;
    FsNode *parent;            /* NULL for the root; a reference */
    FsItem *item;              /* NULL above the objects; a reference */
    FsText *text;              /* made with the node for ATTR rows */

    /* guarded by the table's lock */
    guint refs;
    guint64 nlookup;
    gboolean linked;           /* found by its name; FALSE once replaced */
    guint actions;             /* actions that hold the kernel's directory lock */
};

FsNodeTable *fs_node_table_new(void);
void fs_node_table_free(FsNodeTable *table);

/**
 * fs_node_get: the node of a number; NULL for a stray number, never a crash.
 * Returns: a new reference.
 */
FsNode *fs_node_get(FsNodeTable *table, guint64 number);

FsNode *fs_node_ref(FsNodeTable *table, FsNode *node);
void fs_node_unref(FsNodeTable *table, FsNode *node);

/**
 * fs_node_lookup: the node of a child, made when there is none, with its
 * nlookup raised by one: for the answer of a LOOKUP or MKDIR.
 * @item: (nullable): the object of the child, @parent's for static rows
 *
 * A child of the same name but another object gets another node.  A directory
 * that the kernel has locked for an action that waits, and a control file, get
 * a fresh node each time, with the same st_ino: whoever looks is then not
 * caught behind the one who waits (facts: neither SIGKILL nor time helps him).
 *
 * Returns: a new reference; give both back with fs_node_forget() and
 * fs_node_unref() when the kernel did not take the answer.
 */
FsNode *fs_node_lookup(FsNodeTable *table, FsNode *parent, const FsDef *def, FsItem *item);

/**
 * fs_node_forget: the kernel gives @count lookups back; more than it has is
 * taken as all.  An unknown number is ignored.
 */
void fs_node_forget(FsNodeTable *table, guint64 number, guint64 count);

/**
 * fs_node_action_begin, fs_node_action_end: an action runs whose request keeps
 * @node locked in the kernel.
 */
void fs_node_action_begin(FsNodeTable *table, FsNode *node);
void fs_node_action_end(FsNodeTable *table, FsNode *node);

/**
 * fs_node_child_ino: st_ino of a child, without making a node (readdir).
 */
guint64 fs_node_child_ino(const FsNode *parent, const FsDef *def, const FsItem *item);

/**
 * fs_node_name: the last component of the node's path.
 */
const char *fs_node_name(const FsNode *node);

/**
 * fs_node_path: path from the root of the mount, "domains/web1/control".
 */
char *fs_node_path(const FsNode *node);

guint fs_node_table_size(FsNodeTable *table);
