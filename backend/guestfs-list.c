/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-list.c - directories and attributes, as many files as go in one call.
 *
 * The thread of vmsnapfs-files.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/guestfs-helper.h"

/* So many links of a listing, and steps of one, are followed to see where ".." leads. */
#define LINKS_CHECKED 64
#define STEPS_CHECKED 32

/* ---- Links --------------------------------------------------------------------------- */

static gboolean is_directory(Helper *helper, const char *path)
{
    struct guestfs_statns *stat = guestfs_lstatns(helper->guestfs, path);
    gboolean is = stat && S_ISDIR((mode_t)stat->st_mode);

    if (stat) {
        guestfs_free_statns(stat);
    }
    return is;
}

/*
 * Whether taking "name/.." out of a link's text changes nothing: each name before
 * a ".." is a directory and no link.  @root is where absolute texts begin.
 */
static gboolean target_is_plain(Helper *helper, const char *directory, const char *root,
                                const char *target, guint *checks)
{
    g_auto(GStrv) parts = g_strsplit(target, "/", -1);
    g_autoptr(GString) path = g_string_new(*target == '/' ? root : directory);
    guint names = 0;

    for (guint i = 0; parts[i]; i++) {
        if (!*parts[i] || strcmp(parts[i], ".") == 0) {
            continue;
        }
        if (strcmp(parts[i], "..") != 0) {
            g_string_append_printf(path, "/%s", parts[i]);
            names++;
            continue;
        }
        if (names > 0) {
            if ((*checks)++ >= STEPS_CHECKED || !is_directory(helper, path->str)) {
                return FALSE;
            }
            names--;
        }
        if (path->len > strlen(root)) {
            g_string_truncate(path, (gsize)(strrchr(path->str, '/') - path->str));
        }
    }
    return TRUE;
}

/* ---- Entries --------------------------------------------------------------------------- */

typedef struct {
    Helper *helper;
    const char *directory;     /* in the appliance */
    const char *root;
    guint checks;
    guint checked_links;
} Listing;

static gboolean name_is_shown(const char *name)
{
    return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strchr(name, '/')
           && strlen(name) <= FILES_NAME_MAX;
}

static guint32 target_flags(Listing *listing, const char *target)
{
    if (!strstr(target, "..")) {
        return FILES_TARGET_PLAIN;
    }
    if (listing->checked_links++ >= LINKS_CHECKED) {
        return 0;
    }
    listing->checks = 0;
    return target_is_plain(listing->helper, listing->directory, listing->root, target,
                           &listing->checks)
               ? FILES_TARGET_PLAIN
               : 0;
}

static void append_entry(Listing *listing, GString *out, const char *name,
                         const struct guestfs_statns *stat, const char *target)
{
    gsize target_length = target ? strlen(target) : 0;
    FilesEntry entry = {
        .dev = (guint64)stat->st_dev,
        .ino = (guint64)stat->st_ino,
        .size = (guint64)stat->st_size,
        .blocks = (guint64)stat->st_blocks,
        .atime = stat->st_atime_sec,
        .mtime = stat->st_mtime_sec,
        .ctime = stat->st_ctime_sec,
        .atime_nsec = (guint32)stat->st_atime_nsec,
        .mtime_nsec = (guint32)stat->st_mtime_nsec,
        .ctime_nsec = (guint32)stat->st_ctime_nsec,
        .mode = (guint32)stat->st_mode,
        .nlink = (guint32)CLAMP(stat->st_nlink, 0, G_MAXUINT32),
        .uid = (guint32)stat->st_uid,
        .gid = (guint32)stat->st_gid,
        .name_length = (guint16)strlen(name),
    };

    if (target_length <= FILES_LINK_MAX) {
        entry.target_length = (guint16)target_length;
        entry.flags = target ? target_flags(listing, target) : 0;
    }
    g_string_append_len(out, (const char *)&entry, sizeof(entry));
    g_string_append_len(out, name, entry.name_length);
    g_string_append_len(out, target, entry.target_length);
}

void helper_stat(Helper *helper, guint32 id, const char *path, const char *volume_root)
{
    struct guestfs_statns *stat = guestfs_lstatns(helper->guestfs, path);
    const char *slash = strrchr(path, '/');
    g_autofree char *directory = g_strndup(path, (gsize)(slash - path));
    Listing listing = {.helper = helper, .directory = directory, .root = volume_root};
    g_autofree char *target = NULL;
    g_autoptr(GString) out = g_string_new(NULL);

    if (!stat) {
        helper_fail_guestfs(helper, id, "cannot look at it");
        return;
    }
    if (S_ISLNK((mode_t)stat->st_mode)) {
        target = guestfs_readlink(helper->guestfs, path);
    }
    append_entry(&listing, out, strcmp(path, volume_root) == 0 ? "." : slash + 1, stat, target);
    guestfs_free_statns(stat);
    helper_send(helper, FILES_END, id, 0, out->str, out->len);
}

/* The texts of the links among @names; NULL where there is none. */
static char **read_links(Listing *listing, char **names, const struct guestfs_statns_list *stats)
{
    g_autoptr(GPtrArray) links = g_ptr_array_new();
    char **texts;

    for (guint i = 0; i < stats->len; i++) {
        if (stats->val[i].st_ino >= 0 && S_ISLNK((mode_t)stats->val[i].st_mode)) {
            g_ptr_array_add(links, names[i]);
        }
    }
    if (links->len == 0) {
        return NULL;
    }
    g_ptr_array_add(links, NULL);
    texts = guestfs_readlinklist(listing->helper->guestfs, listing->directory,
                                 (char **)links->pdata);
    if (texts && g_strv_length(texts) != links->len - 1) {
        g_clear_pointer(&texts, g_strfreev);
    }
    return texts;
}

/* Sends the attributes of @count names. */
static gboolean send_batch(Listing *listing, guint32 id, char **names, guint count)
{
    g_autoptr(GString) out = g_string_new(NULL);
    char *kept = names[count];
    struct guestfs_statns_list *stats;
    g_auto(GStrv) links = NULL;
    guint link = 0;

    names[count] = NULL;
    stats = guestfs_lstatnslist(listing->helper->guestfs, listing->directory, names);
    if (stats && stats->len == count) {
        links = read_links(listing, names, stats);
    }
    for (guint i = 0; stats && stats->len == count && i < count; i++) {
        const struct guestfs_statns *stat = &stats->val[i];
        gboolean is_link = stat->st_ino >= 0 && S_ISLNK((mode_t)stat->st_mode);

        /* -1: there is a name, and nothing behind it. */
        if (stat->st_ino >= 0) {
            append_entry(listing, out, names[i], stat, is_link && links ? links[link] : NULL);
        }
        link += is_link;
        if (out->len > FILES_FRAME_MAX / 2) {
            helper_send(listing->helper, FILES_MORE, id, 0, out->str, out->len);
            g_string_truncate(out, 0);
        }
    }
    names[count] = kept;
    if (!stats) {
        return FALSE;
    }
    guestfs_free_statns_list(stats);
    helper_send(listing->helper, FILES_MORE, id, 0, out->str, out->len);
    return TRUE;
}

void helper_list(Helper *helper, guint32 id, const char *path, const char *volume_root)
{
    struct guestfs_dirent_list *found = guestfs_readdir(helper->guestfs, path);
    Listing listing = {.helper = helper, .directory = path, .root = volume_root};
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    gboolean good = found != NULL;

    for (guint i = 0; good && i < found->len; i++) {
        if (name_is_shown(found->val[i].name)) {
            g_ptr_array_add(names, found->val[i].name);
        }
    }
    if (names->len > FILES_ENTRIES_MAX) {
        helper_fail(helper, id, EFBIG, "more than %d files in one directory", FILES_ENTRIES_MAX);
        guestfs_free_dirent_list(found);
        return;
    }
    g_ptr_array_add(names, NULL);
    for (guint i = 0; good && i + 1 < names->len; i += FILES_BATCH) {
        good = send_batch(&listing, id, (char **)&names->pdata[i],
                          MIN(FILES_BATCH, names->len - 1 - i));
    }
    if (good) {
        helper_send(helper, FILES_END, id, 0, NULL, 0);
    } else {
        helper_fail_guestfs(helper, id, "cannot list the directory");
    }
    if (found) {
        guestfs_free_dirent_list(found);
    }
}
