/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-parse.c - what vmsnapfs-files says, taken apart; pure, any thread.
 *
 * The other side has looked at a hostile disk and may be taken over by it: no
 * number in here is believed.
 */
#include <errno.h>
#include <string.h>

#include "backend/files-priv.h"

/* ---- Lists ------------------------------------------------------------------------------ */

static void info_free(gpointer data)
{
    BeFileInfo *info = data;

    g_free(info->name);
    g_free(info->target);
    g_free(info);
}

BeFileList *files_list_new(void)
{
    BeFileList *list = g_new0(BeFileList, 1);

    g_atomic_ref_count_init(&list->refs);
    list->infos = g_ptr_array_new_with_free_func(info_free);
    list->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    return list;
}

BeFileList *be_file_list_ref(BeFileList *list)
{
    g_atomic_ref_count_inc(&list->refs);
    return list;
}

void be_file_list_unref(BeFileList *list)
{
    if (!list || !g_atomic_ref_count_dec(&list->refs)) {
        return;
    }
    g_hash_table_unref(list->by_name);
    g_ptr_array_unref(list->infos);
    g_free(list);
}

/* ---- Names -------------------------------------------------------------------------------- */

gboolean files_name_is_good(const char *name, gsize length)
{
    return length > 0 && length <= FILES_NAME_MAX && !memchr(name, '/', length)
           && !memchr(name, '\0', length) && !(length == 1 && name[0] == '.')
           && !(length == 2 && name[0] == '.' && name[1] == '.');
}

char **files_parse_volumes(const guint8 *data, gsize length)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    for (gsize at = 0; at < length;) {
        const char *name = (const char *)data + at;
        gsize size = strnlen(name, length - at);

        if (size == length - at || names->len >= FILES_VOLUMES_MAX) {
            return NULL;
        }
        if (files_name_is_good(name, size)) {
            g_ptr_array_add(names, g_strndup(name, size));
        }
        at += size + 1;
    }
    g_ptr_array_add(names, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&names), FALSE);
}

/* ---- Entries ------------------------------------------------------------------------------- */

static guint32 nanoseconds(guint32 value)
{
    return value < 1000000000 ? value : 0;
}

static void fill_attr(struct stat *attr, const FilesEntry *entry)
{
    attr->st_dev = entry->dev;
    attr->st_ino = entry->ino;
    attr->st_mode = entry->mode;
    attr->st_nlink = entry->nlink;
    attr->st_uid = entry->uid;
    attr->st_gid = entry->gid;
    attr->st_size = (off_t)MIN(entry->size, (guint64)G_MAXINT64);
    attr->st_blocks = (blkcnt_t)MIN(entry->blocks, (guint64)G_MAXINT64);
    attr->st_atim = (struct timespec){entry->atime, nanoseconds(entry->atime_nsec)};
    attr->st_mtim = (struct timespec){entry->mtime, nanoseconds(entry->mtime_nsec)};
    attr->st_ctim = (struct timespec){entry->ctime, nanoseconds(entry->ctime_nsec)};
}

static void add_entry(BeFileList *list, const FilesEntry *entry, const char *name,
                      const char *target)
{
    BeFileInfo *info = g_new0(BeFileInfo, 1);

    info->name = g_strndup(name, entry->name_length);
    fill_attr(&info->attr, entry);
    if (S_ISLNK(entry->mode)) {
        info->target = g_strndup(target, entry->target_length);
        info->target_plain = (entry->flags & FILES_TARGET_PLAIN) != 0;
    }
    if (g_hash_table_contains(list->by_name, info->name)) {
        info_free(info);
        return;
    }
    g_ptr_array_add(list->infos, info);
    g_hash_table_insert(list->by_name, info->name, info);
}

gboolean files_parse_entries(const guint8 *data, gsize length, BeFileList *list)
{
    while (length > 0) {
        FilesEntry entry;
        const char *name;
        gsize size;

        if (length < sizeof(entry)) {
            return FALSE;
        }
        memcpy(&entry, data, sizeof(entry));
        size = sizeof(entry) + entry.name_length + entry.target_length;
        if (length < size || entry.target_length > FILES_LINK_MAX) {
            return FALSE;
        }
        name = (const char *)data + sizeof(entry);
        /* "." is the root of a file system, which has no name. */
        if (files_name_is_good(name, entry.name_length)
            || (entry.name_length == 1 && *name == '.')) {
            if (list->infos->len >= FILES_ENTRIES_MAX) {
                return FALSE;
            }
            add_entry(list, &entry, name, name + entry.name_length);
        }
        data += size;
        length -= size;
    }
    return TRUE;
}

/* ---- Extended attributes -------------------------------------------------------------------- */

GHashTable *files_xattrs_new(void)
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                 (GDestroyNotify)g_hash_table_unref);
}

static GHashTable *xattrs_of(GHashTable *by_file, const char *name, gsize length)
{
    g_autofree char *file = g_strndup(name, length);
    GHashTable *found = g_hash_table_lookup(by_file, file);

    if (!found) {
        found = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                      (GDestroyNotify)g_bytes_unref);
        g_hash_table_insert(by_file, g_steal_pointer(&file), found);
    }
    return found;
}

gboolean files_parse_xattrs(const guint8 *data, gsize length, GHashTable *by_file)
{
    while (length > 0) {
        FilesXattr head;
        const char *file, *name;
        gsize size;

        if (length < sizeof(head)) {
            return FALSE;
        }
        memcpy(&head, data, sizeof(head));
        size = sizeof(head) + head.file_length + head.name_length + (gsize)head.value_length;
        if (length < size || head.name_length == 0 || head.name_length > FILES_NAME_MAX
            || head.value_length > 65536) {
            return FALSE;
        }
        file = (const char *)data + sizeof(head);
        name = file + head.file_length;
        g_hash_table_insert(xattrs_of(by_file, file, head.file_length),
                            g_strndup(name, head.name_length),
                            g_bytes_new(name + head.name_length, head.value_length));
        data += size;
        length -= size;
    }
    return TRUE;
}
