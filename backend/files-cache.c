/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-cache.c - the directories that were read last, with all attributes.
 *
 * A point in time does not change, so nothing in here grows old; it is only
 * bounded.  Under the lock of its BeFiles.
 */
#include "backend/files-priv.h"

/* In files; the largest directory may alone be more. */
#define FILES_KEPT 200000

/* From the so-manieth file of a directory on, the attributes of all are read. */
#define XATTRS_AT_ONCE 3

typedef struct {
    char *path;
    BeFileList *list;          /* or NULL */
    GHashTable *xattrs;        /* of all files in it, or NULL */
    guint asked;
    guint cost;
    GList link;
} Directory;

struct FilesCache {
    GHashTable *by_path;       /* path -> Directory */
    GQueue recent;             /* of Directory; the last used first */
    guint64 cost;
};

static void directory_free(gpointer data)
{
    Directory *directory = data;

    be_file_list_unref(directory->list);
    g_clear_pointer(&directory->xattrs, g_hash_table_unref);
    g_free(directory->path);
    g_free(directory);
}

FilesCache *files_cache_new(void)
{
    FilesCache *cache = g_new0(FilesCache, 1);

    cache->by_path = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, directory_free);
    return cache;
}

void files_cache_free(FilesCache *cache)
{
    if (cache) {
        g_hash_table_unref(cache->by_path);
        g_free(cache);
    }
}

static Directory *use(FilesCache *cache, const char *path)
{
    Directory *directory = g_hash_table_lookup(cache->by_path, path);

    if (directory) {
        g_queue_unlink(&cache->recent, &directory->link);
        g_queue_push_head_link(&cache->recent, &directory->link);
    }
    return directory;
}

static Directory *use_or_make(FilesCache *cache, const char *path)
{
    Directory *directory = use(cache, path);

    if (!directory) {
        directory = g_new0(Directory, 1);
        directory->path = g_strdup(path);
        directory->link.data = directory;
        directory->cost = 1;
        cache->cost++;
        g_hash_table_insert(cache->by_path, directory->path, directory);
        g_queue_push_head_link(&cache->recent, &directory->link);
    }
    return directory;
}

static void pay(FilesCache *cache, Directory *directory, guint cost)
{
    directory->cost += cost;
    cache->cost += cost;
    while (cache->cost > FILES_KEPT && cache->recent.tail != &directory->link) {
        Directory *oldest = cache->recent.tail->data;

        g_queue_unlink(&cache->recent, &oldest->link);
        cache->cost -= oldest->cost;
        g_hash_table_remove(cache->by_path, oldest->path);
    }
}

void files_cache_add(FilesCache *cache, const char *path, BeFileList *list)
{
    Directory *directory = use_or_make(cache, path);

    if (!directory->list) {
        directory->list = be_file_list_ref(list);
        pay(cache, directory, list->infos->len);
    }
}

BeFileList *files_cache_find(FilesCache *cache, const char *path)
{
    Directory *directory = use(cache, path);

    return directory ? directory->list : NULL;
}

GHashTable *files_cache_xattrs(FilesCache *cache, const char *path)
{
    Directory *directory = use(cache, path);

    return directory ? directory->xattrs : NULL;
}

void files_cache_add_xattrs(FilesCache *cache, const char *path, GHashTable *by_file)
{
    Directory *directory = use_or_make(cache, path);

    if (!directory->xattrs) {
        directory->xattrs = g_hash_table_ref(by_file);
        pay(cache, directory, g_hash_table_size(by_file));
    }
}

gboolean files_cache_asks_xattrs(FilesCache *cache, const char *path)
{
    Directory *directory = use_or_make(cache, path);

    /* A directory that was listed is being walked; one that was not may be huge. */
    return ++directory->asked >= XATTRS_AT_ONCE && directory->list != NULL;
}
