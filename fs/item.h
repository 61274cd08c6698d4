/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * item.h - the objects behind dynamic directories: a domain, a backup, a disk.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

typedef struct FsItem FsItem;

/**
 * FsItem: one object of a listing.  Immutable, so it may be read on any thread.
 * Static rows below an object share its item.
 */
struct FsItem {
    gatomicrefcount refs;
    FsItem *parent;            /* a backup's domain, a disk's backup; or NULL */
    char *id;                  /* identity: no two objects ever share one */
    char *file_name;           /* as the directory shows it */
    gint64 time_us;            /* the point in time; mtime and ctime */
    uid_t owner;               /* (uid_t)-1: the mount's */
    guint64 ino;               /* st_ino; 0: a hash of where it is */
    gboolean is_part;          /* no object: its failures are those of its parent */
    gpointer data;             /* BeDomain, BeBackup, BeDisk... */
    GDestroyNotify free_data;
};

/**
 * fs_item_new:
 * @parent: (nullable): a reference is taken
 * @id: identity; copied
 * @file_name: (transfer full)
 * @data: (transfer full): freed with @free_data
 */
FsItem *fs_item_new(FsItem *parent, const char *id, char *file_name, gpointer data,
                    GDestroyNotify free_data);
FsItem *fs_item_ref(FsItem *item);
void fs_item_unref(FsItem *item);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FsItem, fs_item_unref)

/**
 * fs_item_top: the item without a parent above @item: its domain.
 */
FsItem *fs_item_top(FsItem *item);

/**
 * fs_item_is_within: whether @item is @ancestor or below it, by identity.
 */
gboolean fs_item_is_within(FsItem *item, const char *ancestor_id);

/**
 * FsListing: the children of a dynamic directory at one moment; immutable once
 * it is filled.
 */
typedef struct {
    gatomicrefcount refs;
    GPtrArray *items;          /* of FsItem, in the order of readdir */
    GHashTable *by_name;       /* file name -> FsItem */
} FsListing;

FsListing *fs_listing_new(void);

/**
 * fs_listing_add: appends @item (transfer full).  An item whose name is there
 * already is left out: a bijective encoding makes that impossible, a bug in
 * the host's answer does not.
 */
void fs_listing_add(FsListing *listing, FsItem *item);
FsListing *fs_listing_ref(FsListing *listing);
void fs_listing_unref(FsListing *listing);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FsListing, fs_listing_unref)
