/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * objects.h - what snapshots and checkpoints have in common as directories.
 */
#pragma once

#include "fs/def.h"

/**
 * fs_objects_list: the listing of a domain's objects of a kind; made once for
 * each list of the backend.
 * @item: the domain's
 */
FsListing *fs_objects_list(Fs *fs, FsItem *item, BeObjectKind kind);

/* The lists, which grow old. */
extern const FsFresh fs_snapshots_fresh, fs_checkpoints_fresh;

/**
 * fs_objects_file_name: the file name of the object of that name, whether there
 * is one or not; to be freed with g_free().
 */
char *fs_objects_file_name(Fs *fs, FsItem *item, BeObjectKind kind, const char *name);

/* Rows that are the same for all kinds; the item is the object's. */
gboolean fs_object_show_created(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_object_show_description(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_object_show_parent(Fs *fs, FsItem *item, GString *out, GError **error);
void fs_object_xattrs(FsItem *item, FsXattrAdd add, gpointer user);
