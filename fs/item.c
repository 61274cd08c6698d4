/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * item.c - objects of listings; see item.h.  Any thread; immutable after
 * construction but for the atomic counts.
 */
#include "fs/item.h"

FsItem *fs_item_new(FsItem *parent, const char *id, char *file_name, gpointer data,
                    GDestroyNotify free_data)
{
    FsItem *item = g_new0(FsItem, 1);

    g_atomic_ref_count_init(&item->refs);
    item->parent = parent ? fs_item_ref(parent) : NULL;
    item->id = g_strdup(id);
    item->file_name = file_name;
    item->owner = parent ? parent->owner : (uid_t)-1;
    item->time_us = parent ? parent->time_us : 0;
    item->data = data;
    item->free_data = free_data;
    return item;
}

FsItem *fs_item_ref(FsItem *item)
{
    g_atomic_ref_count_inc(&item->refs);
    return item;
}

void fs_item_unref(FsItem *item)
{
    if (!item || !g_atomic_ref_count_dec(&item->refs)) {
        return;
    }
    if (item->free_data) {
        item->free_data(item->data);
    }
    fs_item_unref(item->parent);
    g_free(item->file_name);
    g_free(item->id);
    g_free(item);
}

FsItem *fs_item_top(FsItem *item)
{
    while (item && item->parent) {
        item = item->parent;
    }
    return item;
}

gboolean fs_item_is_within(FsItem *item, const char *ancestor_id)
{
    for (; item; item = item->parent) {
        if (g_str_equal(item->id, ancestor_id)) {
            return TRUE;
        }
    }
    return FALSE;
}

FsListing *fs_listing_new(void)
{
    FsListing *listing = g_new0(FsListing, 1);

    g_atomic_ref_count_init(&listing->refs);
    listing->items = g_ptr_array_new_with_free_func((GDestroyNotify)fs_item_unref);
    listing->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    return listing;
}

void fs_listing_add(FsListing *listing, FsItem *item)
{
    if (g_hash_table_contains(listing->by_name, item->file_name)) {
        fs_item_unref(item);
        return;
    }
    g_ptr_array_add(listing->items, item);
    g_hash_table_insert(listing->by_name, item->file_name, item);
}

FsListing *fs_listing_ref(FsListing *listing)
{
    g_atomic_ref_count_inc(&listing->refs);
    return listing;
}

void fs_listing_unref(FsListing *listing)
{
    if (!listing || !g_atomic_ref_count_dec(&listing->refs)) {
        return;
    }
    g_hash_table_unref(listing->by_name);
    g_ptr_array_unref(listing->items);
    g_free(listing);
}
