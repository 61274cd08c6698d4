/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * objects.c - snapshots and checkpoints as directories; see objects.h.
 *
 * Any thread.  An object's item holds its BeObject.
 */
#include "fs/objects.h"

#include "fs/name.h"
#include "fs/private.h"

static void unref_object(gpointer object)
{
    be_object_unref(object);
}

static void unref_listing(gpointer listing)
{
    fs_listing_unref(listing);
}

static FsListing *listing_of(FsItem *domain, const BeObjectList *list)
{
    FsListing *listing = fs_listing_new();

    for (guint i = 0; i < list->objects->len; i++) {
        BeObject *object = g_ptr_array_index(list->objects, i);
        FsItem *item = fs_item_new(domain, object->id, fs_name_encode(object->name, object->id),
                                   be_object_ref(object), unref_object);

        item->time_us = object->created_us;
        item->owner = object->owner;
        fs_listing_add(listing, item);
    }
    return listing;
}

FsListing *fs_objects_list(Fs *fs, FsItem *item, BeObjectKind kind)
{
    g_autoptr(BeObjectList) list = be_objects(fs->be, kind, item->id);
    FsListing *listing = be_object_list_attached(list);

    if (!listing) {
        listing = be_object_list_attach(list, listing_of(item, list), unref_listing);
    }
    return fs_listing_ref(listing);
}

static gboolean is_fresh(const FsFresh *fresh, Fs *fs, FsItem *item)
{
    return be_objects_are_fresh(fs->be, fresh->kind, item->id);
}

static gboolean is_stale(const FsFresh *fresh, Fs *fs, FsItem *item)
{
    return be_objects_are_stale(fs->be, fresh->kind, item->id);
}

static void refresh(const FsFresh *fresh, Fs *fs, FsItem *item, BeRefreshDone done, gpointer user)
{
    be_objects_refresh(fs->be, fresh->kind, item->id, done, user);
}

const FsFresh fs_snapshots_fresh = {is_fresh, is_stale, refresh, BE_SNAPSHOTS};
const FsFresh fs_checkpoints_fresh = {is_fresh, is_stale, refresh, BE_CHECKPOINTS};

char *fs_objects_file_name(Fs *fs, FsItem *item, BeObjectKind kind, const char *name)
{
    g_autoptr(BeObjectList) list = be_objects(fs->be, kind, fs_item_top(item)->id);
    const BeObject *object = be_object_list_find(list, name);

    return fs_name_encode(name, object ? object->id : NULL);
}

gboolean fs_object_show_created(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                GError **error G_GNUC_UNUSED)
{
    const BeObject *object = item->data;
    g_autofree char *text = fs_time_text(object->created_us);

    g_string_append_printf(out, "%s\n", text);
    return TRUE;
}

gboolean fs_object_show_description(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                    GError **error G_GNUC_UNUSED)
{
    const BeObject *object = item->data;

    if (object->description) {
        g_string_append_printf(out, "%s\n", object->description);
    }
    return TRUE;
}

gboolean fs_object_show_parent(Fs *fs, FsItem *item, GString *out, GError **error G_GNUC_UNUSED)
{
    const BeObject *object = item->data;

    if (object->parent) {
        g_autofree char *name = fs_objects_file_name(fs, item, object->kind, object->parent);

        g_string_append_printf(out, "%s\n", name);
    }
    return TRUE;
}

void fs_object_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    const BeObject *object = item->data;
    g_autofree char *created = fs_time_text(object->created_us);

    add("uuid", object->domain_uuid, user);
    add("created", created, user);
    if (object->made) {
        g_autofree char *frozen =
            g_strdup_printf("%" G_GINT64_FORMAT, (object->frozen_us + 999) / 1000);

        add("consistency", be_consistency_name(object->consistency), user);
        add("frozen_ms", frozen, user);
    }
}
