/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * dir.c - directories, generic over the rows of the tree; see dir.h.
 *
 * Entered by FUSE threads, and by backend workers and the timer thread where a
 * request waited.  Owns no lock.
 */
#include "fs/dir.h"

#include <errno.h>
#include <string.h>

#include "fs/action.h"
#include "fs/attr.h"
#include "fs/file.h"
#include "fs/name.h"

/* The kernel tells of the last close late: rmdir waits this long for it. */
#define RELEASE_WAIT_MS 1000
#define RELEASE_POLL_MS 20

/* An rmdir keeps the kernel's lock on its directory: it waits no longer. */
#define DROP_WAIT_MS 2000

/* ---- Finding ------------------------------------------------------------ */

/* A link without a target and a file without its data are not there now. */
static gboolean is_there(Fs *fs, const FsDef *row, FsItem *item)
{
    g_autofree char *target = row->target ? row->target(fs, item) : NULL;

    if (row->kind == FS_KIND_GUEST && fs->guest_files == FS_FILES_OFF) {
        return FALSE;
    }
    return (!row->target || target) && (!row->exists || row->exists(item))
           && (!row->stream || row->prepare || row->stream(item));
}

static const FsDef *static_row(Fs *fs, const FsNode *dir, const char *name)
{
    for (const FsDef *row = dir->def->rows; row && row->name; row++) {
        if (g_str_equal(row->name, name)) {
            return is_there(fs, row, dir->item) ? row : NULL;
        }
    }
    return NULL;
}

/* An object's name wins over a static row: what exists must be reachable. */
static const FsDef *find_child(Fs *fs, const FsNode *dir, const char *name, FsItem **ret_item)
{
    const FsDef *row;

    *ret_item = NULL;
    if (dir->def->list) {
        g_autoptr(FsListing) listing = dir->def->list(fs, dir->item);
        FsItem *item = g_hash_table_lookup(listing->by_name, name);

        if (item) {
            *ret_item = fs_item_ref(item);
            return dir->def->child;
        }
    }
    row = static_row(fs, dir, name);
    if (row && dir->item) {
        *ret_item = fs_item_ref(dir->item);
    }
    return row;
}

/* By its name, or under another one. */
static gboolean has_object(const FsListing *listing, const FsItem *object)
{
    const FsItem *named = g_hash_table_lookup(listing->by_name, object->file_name);

    if (named && g_str_equal(named->id, object->id)) {
        return TRUE;
    }
    for (guint i = 0; i < listing->items->len; i++) {
        const FsItem *item = g_ptr_array_index(listing->items, i);

        if (g_str_equal(item->id, object->id)) {
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * Whether an object that the directory is in is gone.  The kernel keeps what it looked
 * up, and when it is in a directory to which no path leads any more, until memory is
 * short: so whoever is still on his way through it finds nothing there.
 */
static gboolean is_gone(Fs *fs, const FsNode *dir)
{
    for (const FsNode *node = dir; node->parent; node = node->parent) {
        const FsNode *above = node->parent;

        if (node->item != above->item && above->def->list) {
            g_autoptr(FsListing) listing = above->def->list(fs, above->item);

            if (!has_object(listing, node->item)) {
                return TRUE;
            }
        }
    }
    return FALSE;
}

static void lookup_again(gpointer user)
{
    fs_dir_lookup(user);
}

static void lookup_cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

/*
 * What is not in the list may have been made a moment ago, its event on the
 * way: `virsh define` and then our path must work.  Asked once more.
 */
static gboolean wants_another_look(FsReq *req)
{
    const FsFresh *fresh = req->node->def->fresh;
    gboolean wants =
        fresh && !req->looked_again && !fresh->is_stale(fresh, req->fs, req->node->item);

    req->looked_again = TRUE;
    return wants;
}

void fs_dir_lookup(FsReq *req)
{
    g_autoptr(FsItem) item = NULL;
    const FsDef *def = find_child(req->fs, req->node, req->name, &item);
    const FsFresh *fresh = req->node->def->fresh;

    if (is_gone(req->fs, req->node)) {
        fs_req_error(req, ENOENT);
    } else if (def) {
        fs_req_entry(req, fs_node_lookup(req->fs->nodes, req->node, def, item));
    } else if (wants_another_look(req)) {
        fs_req_on_cancel(req, lookup_cancelled, NULL);
        fresh->refresh(fresh, req->fs, req->node->item, lookup_again, req);
        return;
    } else {
        fs_req_error(req, ENOENT);
    }
    fs_req_unref(req);
}

/* ---- Listing ------------------------------------------------------------ */

static void entry_free(gpointer data)
{
    FsDirEntry *entry = data;

    g_free(entry->name);
    g_free(entry);
}

static void add_entry(GPtrArray *entries, const char *name, guint64 ino, FsKind kind)
{
    FsDirEntry *entry = g_new0(FsDirEntry, 1);

    entry->name = g_strdup(name);
    entry->ino = ino;
    if (kind == FS_KIND_DIR || kind == FS_KIND_GUEST) {
        entry->mode = S_IFDIR;
    } else {
        entry->mode = kind == FS_KIND_LINK ? S_IFLNK : S_IFREG;
    }
    g_ptr_array_add(entries, entry);
}

static gboolean row_is_listed(const Fs *fs, const FsDef *row)
{
    if (row->kind == FS_KIND_GUEST) {
        return fs->guest_files == FS_FILES_LISTED;
    }
    return !(row->flags & FS_HIDDEN);
}

/*
 * The entries as they are now.  A reader of the directory sees this one moment
 * whatever comes and goes meanwhile, so its offsets are stable.
 */
static GPtrArray *entries_new(Fs *fs, FsNode *dir)
{
    GPtrArray *entries = g_ptr_array_new_with_free_func(entry_free);
    g_autoptr(FsListing) listing = dir->def->list ? dir->def->list(fs, dir->item) : NULL;

    add_entry(entries, ".", dir->ino, FS_KIND_DIR);
    add_entry(entries, "..", dir->parent ? dir->parent->ino : dir->ino, FS_KIND_DIR);
    for (const FsDef *row = dir->def->rows; row && row->name; row++) {
        gboolean shadowed = listing && g_hash_table_contains(listing->by_name, row->name);

        if (row_is_listed(fs, row) && !shadowed && static_row(fs, dir, row->name)) {
            add_entry(entries, row->name, fs_node_child_ino(dir, row, dir->item), row->kind);
        }
    }
    for (guint i = 0; listing && i < listing->items->len; i++) {
        FsItem *item = g_ptr_array_index(listing->items, i);

        add_entry(entries, item->file_name, fs_node_child_ino(dir, dir->def->child, item),
                  dir->def->child->kind);
    }
    return entries;
}

void fs_dir_open(FsReq *req)
{
    FsFile *file = fs_file_new(req->fs, req->node, req->caller.pid);

    file->entries = entries_new(req->fs, req->node);
    fs_req_open(req, file);
    fs_req_unref(req);
}

/* Without a node: the kernel then asks for the attributes when it wants them. */
static gsize add_to_page(const FsReq *req, char *at, gsize room, const FsDirEntry *entry,
                         off_t next)
{
    struct fuse_entry_param param = {.attr = {.st_ino = entry->ino, .st_mode = entry->mode}};

    return req->plus ? fuse_add_direntry_plus(req->fuse, at, room, entry->name, &param, next)
                     : fuse_add_direntry(req->fuse, at, room, entry->name, &param.attr, next);
}

void fs_dir_read(FsReq *req)
{
    FsFile *file = req->file;
    g_autofree char *buffer = g_malloc(req->size);
    gsize used = 0;

    if (req->offset == 0 && file->entries_read) {
        g_ptr_array_unref(file->entries);
        file->entries = entries_new(req->fs, req->node);
    }
    file->entries_read = TRUE;
    for (guint i = (guint)MIN(req->offset, file->entries->len); i < file->entries->len; i++) {
        const FsDirEntry *entry = g_ptr_array_index(file->entries, i);
        gsize need = add_to_page(req, buffer + used, req->size - used, entry, (off_t)i + 1);

        if (need > req->size - used) {
            break;
        }
        used += need;
    }
    (void)fs_req_buf(req, buffer, used);
    fs_req_unref(req);
}

/* ---- Making ------------------------------------------------------------- */

static BeJob *start_make(const FsAct *act, gpointer data, GError **error)
{
    const FsReq *req = data;

    return req->node->def->make(act, req->name, error);
}

static void answer_make(FsReq *req, const GError *error)
{
    g_autoptr(FsItem) item = NULL;
    const FsDef *def;

    if (error) {
        fs_req_error(req, fs_error_errno(error));
        return;
    }
    def = find_child(req->fs, req->node, req->name, &item);
    if (def && def == req->node->def->child) {
        fs_req_entry(req, fs_node_lookup(req->fs->nodes, req->node, def, item));
    } else {
        fs_req_fail(req, EIO, "'%s' was made and is gone already", req->name);
    }
}

/* Whether a mkdir may be tried at all; EROFS, EPERM, EBUSY, EEXIST, EINVAL... */
static gboolean make_allowed(FsReq *req, GError **error)
{
    Fs *fs = req->fs;
    g_autoptr(FsItem) item = NULL;
    const FsDef *def = find_child(fs, req->node, req->name, &item);
    guint seconds = fs_guard_check_creation(fs->guard, req->node->item);

    if (def) {
        gboolean object = def == req->node->def->child;

        g_set_error(error, BE_ERROR, object ? EEXIST : EINVAL,
                    object ? "'%s' exists" : "'%s' is a name of the tree itself", req->name);
        return FALSE;
    }
    for (const FsDef *row = req->node->def->rows; row && row->name; row++) {
        if (g_str_equal(row->name, req->name)) {
            g_set_error(error, BE_ERROR, EINVAL, "'%s' is a name of the tree itself", req->name);
            return FALSE;
        }
    }
    if (fs->mkdir_off) {
        g_set_error(error, BE_ERROR, EPERM,
                    "mkdir is switched off for this mount (mkdir=off); use the control file");
        return FALSE;
    }
    if (seconds) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "something was just copied into this directory; if '%s' is meant, "
                    "make it again in %u s",
                    req->name, seconds);
        return FALSE;
    }
    return fs_name_check_new(req->name, error);
}

void fs_dir_mkdir(FsReq *req)
{
    g_autofree char *path = fs_node_path(req->node);
    g_autofree char *operation = g_strdup_printf("mkdir %s/%s", path, req->name);
    g_autoptr(GError) error = NULL;
    FsActionSpec spec = {.item = req->node->item,
                         .directory = req->node,
                         .operation = operation,
                         .wait_ms = req->fs->action_timeout * 1000,
                         .late_errno = ETIMEDOUT,
                         .start = start_make,
                         .data = req,
                         .answer = answer_make};

    if (req->fs->read_only) {
        fs_req_fail(req, EROFS, "this mount is read-only");
    } else if (!req->node->def->make) {
        fs_dir_refuse_creation(fs_req_ref(req));
    } else if (!make_allowed(req, &error)) {
        fs_req_fail(req, error->code, "%s", error->message);
    } else {
        fs_action_run(fs_req_ref(req), &spec);
    }
    fs_req_unref(req);
}

void fs_dir_refuse_creation(FsReq *req)
{
    fs_guard_creation_refused(req->fs->guard, req->node->item);
    fs_req_fail(req, req->fs->read_only ? EROFS : EPERM,
                "nothing can be created here; mkdir in 'backups' makes an object");
    fs_req_unref(req);
}

/* ---- Removing ----------------------------------------------------------- */

gboolean fs_dir_item_unused(Fs *fs, FsItem *item, const char *force, GError **error)
{
    pid_t pid = fs_file_reader_of(fs, item);
    g_autofree char *hint =
        force ? g_strdup_printf(", or write '%s' to its control file", force) : g_strdup("");

    if (pid == 0) {
        return TRUE;
    }
    g_set_error(error, BE_ERROR, EBUSY,
                "a file in '%s' is open in process %d; close it%s", item->file_name, (int)pid,
                hint);
    return FALSE;
}

gboolean fs_dir_may_end(Fs *fs, FsItem *item, const BeCaller *caller, GError **error)
{
    uid_t owner = item->owner != (uid_t)-1 ? item->owner : fs->uid;

    if (caller->uid == 0 || caller->uid == owner) {
        return TRUE;
    }
    g_set_error(error, BE_ERROR, EPERM, "'%s' was made by uid %u; only that user and root end it",
                item->file_name, owner);
    return FALSE;
}

/* An rmdir that waits for late RELEASEs before it begins. */
typedef struct {
    FsReq *req;
    FsItem *item;
    gint64 until_us;
} Removal;

static void removal_free(gpointer data)
{
    Removal *removal = data;

    fs_node_action_end(removal->req->fs->nodes, removal->req->node);
    fs_item_unref(removal->item);
    fs_req_unref(removal->req);
    g_free(removal);
}

static BeJob *start_drop(const FsAct *act, gpointer data, GError **error)
{
    const FsDef *child = data;

    return child->drop(act, error);
}

static void answer_drop(FsReq *req, const GError *error)
{
    fs_req_error(req, fs_error_errno(error));
}

static void removal_start(const Removal *removal)
{
    FsReq *req = removal->req;
    g_autofree char *path = fs_node_path(req->node);
    g_autofree char *operation = g_strdup_printf("rmdir %s/%s", path, req->name);
    FsActionSpec spec = {.item = removal->item,
                         .directory = req->node,
                         .operation = operation,
                         .wait_ms = DROP_WAIT_MS,
                         .late_errno = 0,
                         .start = start_drop,
                         .data = (gpointer)req->node->def->child,
                         .answer = answer_drop};

    fs_action_run(fs_req_ref(req), &spec);
}

/* The failure belongs to the object as well as to the directory it is in. */
static void fail_removal(FsReq *req, FsItem *item, const GError *error)
{
    g_autofree char *path = fs_node_path(req->node);
    g_autofree char *operation = g_strdup_printf("rmdir %s/%s", path, req->name);

    fs_failures_add(req->fs->failures, item, &req->caller, operation, error->code,
                    error->message);
    fs_req_error(req, error->code);
}

static gboolean removal_poll(gpointer data)
{
    Removal *removal = data;
    g_autoptr(GError) error = NULL;

    if (fs_req_is_answered(removal->req)) {
        return G_SOURCE_REMOVE;
    }
    if (fs_dir_item_unused(removal->req->fs, removal->item,
                           removal->req->node->def->child->force, &error)) {
        removal_start(removal);
    } else if (g_get_monotonic_time() < removal->until_us) {
        return G_SOURCE_CONTINUE;
    } else {
        fail_removal(removal->req, removal->item, error);
    }
    return G_SOURCE_REMOVE;
}

static void removal_cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

static gboolean removal_allowed(FsReq *req, FsItem *item, GError **error)
{
    guint seconds = fs_guard_check_removal(req->fs->guard, item);

    if (seconds) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "a removal inside or around '%s' was just refused (rm -r?); if it is meant, "
                    "remove it again in %u s",
                    item->file_name, seconds);
        return FALSE;
    }
    return fs_dir_may_end(req->fs, item, &req->caller, error);
}

static void remove_object(FsReq *req, FsItem *item)
{
    g_autoptr(GError) error = NULL;
    Removal *removal;

    if (req->fs->read_only) {
        fs_req_fail(req, EROFS, "this mount is read-only");
        return;
    }
    if (!removal_allowed(req, item, &error)) {
        fail_removal(req, item, error);
        return;
    }
    removal = g_new0(Removal, 1);
    removal->req = fs_req_ref(req);
    removal->item = fs_item_ref(item);
    removal->until_us = g_get_monotonic_time() + RELEASE_WAIT_MS * 1000;
    fs_node_action_begin(req->fs->nodes, req->node);
    if (!fs_file_reader_of(req->fs, item)) {
        removal_start(removal);
        removal_free(removal);
        return;
    }
    fs_req_on_cancel(req, removal_cancelled, NULL);
    g_source_unref(fs_timer_add(req->fs, RELEASE_POLL_MS, removal_poll, removal, removal_free));
}

void fs_dir_rmdir(FsReq *req)
{
    g_autoptr(FsItem) item = NULL;
    const FsDef *def = find_child(req->fs, req->node, req->name, &item);

    if (!def) {
        fs_req_error(req, ENOENT);
    } else if (def->kind != FS_KIND_DIR && def->kind != FS_KIND_GUEST) {
        fs_req_error(req, ENOTDIR);
    } else if (def->drop) {
        remove_object(req, item);
    } else {
        fs_dir_refuse_removal(fs_req_ref(req));
    }
    fs_req_unref(req);
}

void fs_dir_refuse_removal(FsReq *req)
{
    g_autoptr(FsItem) item = NULL;
    const FsDef *def = find_child(req->fs, req->node, req->name, &item);

    if (!def) {
        fs_req_error(req, ENOENT);
    } else {
        fs_guard_removal_refused(req->fs->guard, item);
        fs_req_fail(req, req->fs->read_only ? EROFS : EPERM,
                    "cannot be removed: it belongs to the tree; rmdir of the object itself "
                    "ends it");
    }
    fs_req_unref(req);
}

void fs_dir_rename(FsReq *req)
{
    g_autoptr(FsItem) item = NULL;
    const FsDef *def = find_child(req->fs, req->node, req->name, &item);

    if (!def) {
        fs_req_error(req, ENOENT);
    } else if (req->fs->read_only) {
        fs_req_fail(req, EROFS, "this mount is read-only");
    } else if (def->drop) {
        fs_req_fail(req, EOPNOTSUPP, "'%s' cannot be renamed without losing something", req->name);
    } else {
        fs_req_fail(req, EPERM, "cannot be renamed: it belongs to the tree");
    }
    fs_req_unref(req);
}
