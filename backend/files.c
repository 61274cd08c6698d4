/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files.c - the guest's files for those who ask: calls, and what is kept of
 * their answers; see the end of backend.h.
 *
 * Any thread.  A call that finds no appliance starts the thread that runs one.
 */
#include "backend/files-priv.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backend/error.h"

/* Of the payload of one answer: a directory of a million names. */
#define LIST_MAX (512u * 1024 * 1024)
#define XATTRS_MAX (64u * 1024 * 1024)

/* ---- Life ----------------------------------------------------------------------------------- */

BeFiles *be_files_new(BeFilesPool *pool, const char *name, GPtrArray *disks)
{
    BeFiles *files = g_new0(BeFiles, 1);

    g_atomic_ref_count_init(&files->refs);
    g_mutex_init(&files->lock);
    g_cond_init(&files->changed);
    files->pool = pool;
    files->name = g_strdup(name);
    files->disks = disks;
    files->kick_fd = -1;
    files->cache = files_cache_new();
    return files;
}

BeFiles *be_files_new_prepared(BeFilesPool *pool, const char *name, GPtrArray *disks,
                               const char *owner, BeFilesPrepare prepare, gpointer user)
{
    BeFiles *files = be_files_new(pool, name, disks);

    files->owner = g_strdup(owner);
    files->prepare = prepare;
    files->prepare_user = user;
    return files;
}

GPtrArray *be_files_disks(BeFiles *files)
{
    return files->disks;
}

BeFiles *be_files_ref(BeFiles *files)
{
    g_atomic_ref_count_inc(&files->refs);
    return files;
}

void be_files_unref(BeFiles *files)
{
    if (!files || !g_atomic_ref_count_dec(&files->refs)) {
        return;
    }
    if (files->kick_fd >= 0) {
        close(files->kick_fd);
    }
    if (files->prepare) {
        g_ptr_array_unref(files->disks);
    }
    files_cache_free(files->cache);
    g_strfreev(files->volumes);
    g_free(files->owner);
    g_clear_error(&files->hold_error);
    g_free(files->name);
    g_cond_clear(&files->changed);
    g_mutex_clear(&files->lock);
    g_free(files);
}

/*
 * A callback of the appliance's own thread may drop the last reference of the
 * object: that thread ends by itself then, and is not waited for.
 */
void be_files_close(BeFiles *files)
{
    if (!files) {
        return;
    }
    g_mutex_lock(&files->lock);
    files->closed = TRUE;
    if (files->running) {
        (void)eventfd_write(files->kick_fd, 1);
    }
    while (files->running && files->thread != g_thread_self()) {
        g_cond_wait(&files->changed, &files->lock);
    }
    g_mutex_unlock(&files->lock);
}

void be_files_discard(BeFiles *files)
{
    if (!files) {
        return;
    }
    g_mutex_lock(&files->lock);
    files->closed = TRUE;
    if (files->running) {
        (void)eventfd_write(files->kick_fd, 1);
    }
    g_mutex_unlock(&files->lock);
    be_files_unref(files);
}

/* ---- Calls ------------------------------------------------------------------- */

void be_files_call_end(FilesCall *call, const guint8 *data, gsize length, const GError *error)
{
    char *path = call->path;

    call->done(call, data, length, error);
    g_free(path);
}

GError *be_files_stopped_locked(const BeFiles *files)
{
    if (files->closed) {
        return g_error_new(BE_ERROR, EIO, "%s has ended", files->name);
    }
    if (files->gives_way) {
        return g_error_new(BE_ERROR, EBUSY,
                           "the snapshots of this machine are being changed; wait for the end of "
                           "that");
    }
    return NULL;
}

GError *be_files_refusal_locked(const BeFiles *files)
{
    GError *error = be_files_stopped_locked(files);

    if (error) {
        return error;
    }
    if (files->hold_error && g_get_monotonic_time() < files->hold_us) {
        return g_error_copy(files->hold_error);
    }
    return NULL;
}

static GError *start_locked(BeFiles *files)
{
    GThread *thread;

    thread = files->kick_fd < 0
                 ? NULL
                 : g_thread_try_new("files", be_files_thread, files, NULL);
    if (!thread) {
        return g_error_new(BE_ERROR, EAGAIN, "no thread for the appliance of %s", files->name);
    }
    files->thread = thread;
    files->running = TRUE;
    be_files_pool_add(files);
    g_thread_unref(thread);
    return NULL;
}

FilesCall *be_files_take(BeFiles *files)
{
    GList *link;

    g_mutex_lock(&files->lock);
    link = g_queue_pop_head_link(&files->submitted);
    files->flying += link != NULL;
    g_mutex_unlock(&files->lock);
    return link ? link->data : NULL;
}

void be_files_give_back(BeFiles *files, FilesCall *call)
{
    g_mutex_lock(&files->lock);
    g_queue_push_head_link(&files->submitted, &call->link);
    files->flying--;
    g_mutex_unlock(&files->lock);
}

void be_files_end_taken(BeFiles *files, FilesCall *call, const guint8 *data, gsize length,
                        const GError *error)
{
    be_files_call_end(call, data, length, error);
    g_mutex_lock(&files->lock);
    files->flying--;
    files->used_us = g_get_monotonic_time();
    g_mutex_unlock(&files->lock);
}

void be_files_fail_submitted(BeFiles *files, const GError *error)
{
    FilesCall *call;

    while ((call = be_files_take(files))) {
        be_files_end_taken(files, call, NULL, 0, error);
    }
}

static void prepared(const GError *prepare_error, gpointer user)
{
    BeFiles *files = user;
    g_autoptr(GError) error = prepare_error ? g_error_copy(prepare_error) : NULL;

    g_mutex_lock(&files->lock);
    files->preparing = FALSE;
    if (!error) {
        error = be_files_refusal_locked(files);
    }
    if (!error && !files->running) {
        error = start_locked(files);
    }
    g_mutex_unlock(&files->lock);
    if (error) {
        be_files_fail_submitted(files, error);
    }
    be_files_unref(files);
}

void be_files_submit(BeFiles *files, FilesCall *call)
{
    g_autoptr(GError) error = NULL;
    gboolean prepare = FALSE;

    call->link.data = call;
    g_mutex_lock(&files->lock);
    if (files->kick_fd < 0) {
        files->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    error = be_files_refusal_locked(files);
    if (!error && !files->running && files->prepare) {
        prepare = !files->preparing;
        files->preparing = TRUE;
    } else if (!error && !files->running) {
        error = start_locked(files);
    }
    if (!error) {
        g_queue_push_tail_link(&files->submitted, &call->link);
        files->used_us = g_get_monotonic_time();
        (void)eventfd_write(files->kick_fd, 1);
    }
    g_mutex_unlock(&files->lock);
    if (error) {
        be_files_call_end(call, NULL, 0, error);
    }
    if (prepare) {
        files->prepare(files->prepare_user, prepared, be_files_ref(files));
    }
}

static gboolean no_more(FilesCall *call G_GNUC_UNUSED, const guint8 *data G_GNUC_UNUSED,
                        gsize length G_GNUC_UNUSED)
{
    return FALSE;
}

/* ---- Volumes ----------------------------------------------------------------- */

/*
 * Before anybody has looked: the system, a disk or a partition of it, or a volume
 * of LVM or RAID, whose names are the guest's.
 */
static gboolean is_likely_locked(const BeFiles *files, const char *name)
{
    for (guint i = 0; !files->closed && i < files->disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(files->disks, i);

        if (g_str_has_prefix(name, disk->target)
            && strspn(name + strlen(disk->target), "p0123456789")
                   == strlen(name + strlen(disk->target))) {
            return TRUE;
        }
    }
    return strcmp(name, "root") == 0 || strchr(name, '-') || g_str_has_prefix(name, "md");
}

int be_files_volume_known(BeFiles *files, const char *name)
{
    int known;

    g_mutex_lock(&files->lock);
    if (files->volumes) {
        known = g_strv_contains((const char *const *)files->volumes, name);
    } else {
        known = is_likely_locked(files, name) ? -1 : 0;
    }
    g_mutex_unlock(&files->lock);
    return known;
}

static char **volumes_copy(BeFiles *files)
{
    char **names;

    g_mutex_lock(&files->lock);
    names = g_strdupv(files->volumes);
    g_mutex_unlock(&files->lock);
    return names;
}

typedef struct {
    FilesCall call;            /* first */
    BeFiles *files;
    BeFilesVolumesDone done;
    gpointer user;
} VolumesCall;

/* The thread has kept the names when the appliance started. */
static void volumes_done(FilesCall *call, const guint8 *data G_GNUC_UNUSED,
                         gsize length G_GNUC_UNUSED, const GError *error)
{
    VolumesCall *volumes = (VolumesCall *)call;
    g_auto(GStrv) names = error ? NULL : volumes_copy(volumes->files);

    volumes->done((const char *const *)names, error, volumes->user);
    be_files_unref(volumes->files);
    g_free(volumes);
}

void be_files_volumes(BeFiles *files, BeFilesVolumesDone done, gpointer user)
{
    g_auto(GStrv) names = volumes_copy(files);
    VolumesCall *volumes;

    if (names) {
        done((const char *const *)names, NULL, user);
        return;
    }
    volumes = g_new0(VolumesCall, 1);
    volumes->call.op = FILES_OP_START;
    volumes->call.more = no_more;
    volumes->call.done = volumes_done;
    volumes->files = be_files_ref(files);
    volumes->done = done;
    volumes->user = user;
    be_files_submit(files, &volumes->call);
}

/* ---- One file ---------------------------------------------------------------- */

typedef struct {
    FilesCall call;            /* first */
    BeFileDone done;
    gpointer user;
} StatCall;

static void stat_done(FilesCall *call, const guint8 *data, gsize length, const GError *error)
{
    StatCall *stat = (StatCall *)call;
    g_autoptr(BeFileList) list = files_list_new();
    g_autoptr(GError) nonsense = NULL;

    if (!error && (!files_parse_entries(data, length, list) || list->infos->len != 1)) {
        nonsense = g_error_new(BE_ERROR, EIO, "the appliance's answer makes no sense");
        error = nonsense;
    }
    stat->done(error ? NULL : g_ptr_array_index(list->infos, 0), error, stat->user);
    g_free(stat);
}

/* Answers from the directory above, if that was read. */
static gboolean stat_known(BeFiles *files, const char *path, BeFileDone done, gpointer user)
{
    const char *slash = strrchr(path, '/');
    g_autofree char *parent = slash ? g_strndup(path, (gsize)(slash - path)) : NULL;
    g_autoptr(BeFileList) list = NULL;
    g_autoptr(GError) error = NULL;
    const BeFileInfo *info;

    if (!slash) {
        return FALSE;
    }
    g_mutex_lock(&files->lock);
    list = files_cache_find(files->cache, parent);
    if (list) {
        be_file_list_ref(list);
    }
    g_mutex_unlock(&files->lock);
    if (!list) {
        return FALSE;
    }
    info = g_hash_table_lookup(list->by_name, slash + 1);
    if (!info) {
        error = g_error_new(BE_ERROR, ENOENT, "the guest has no such file");
    }
    done(info, error, user);
    return TRUE;
}

void be_files_stat(BeFiles *files, const char *path, BeFileDone done, gpointer user)
{
    StatCall *stat;

    if (stat_known(files, path, done, user)) {
        return;
    }
    stat = g_new0(StatCall, 1);
    stat->call.op = FILES_OP_STAT;
    stat->call.path = g_strdup(path);
    stat->call.more = no_more;
    stat->call.done = stat_done;
    stat->done = done;
    stat->user = user;
    be_files_submit(files, &stat->call);
}

/* ---- Directories ------------------------------------------------------------- */

typedef struct {
    FilesCall call;            /* first */
    BeFiles *files;
    BeFileList *list;
    BeFileListDone done;
    gpointer user;
} ListCall;

static gboolean list_more(FilesCall *call, const guint8 *data, gsize length)
{
    ListCall *list = (ListCall *)call;

    return files_parse_entries(data, length, list->list);
}

static void list_done(FilesCall *call, const guint8 *data G_GNUC_UNUSED,
                      gsize length G_GNUC_UNUSED, const GError *error)
{
    ListCall *list = (ListCall *)call;

    if (!error) {
        g_mutex_lock(&list->files->lock);
        files_cache_add(list->files->cache, call->path, list->list);
        g_mutex_unlock(&list->files->lock);
    }
    list->done(error ? NULL : list->list, error, list->user);
    be_file_list_unref(list->list);
    be_files_unref(list->files);
    g_free(list);
}

void be_files_list(BeFiles *files, const char *path, BeFileListDone done, gpointer user)
{
    g_autoptr(BeFileList) known = NULL;
    ListCall *list;

    g_mutex_lock(&files->lock);
    known = files_cache_find(files->cache, path);
    if (known) {
        be_file_list_ref(known);
    }
    g_mutex_unlock(&files->lock);
    if (known) {
        done(known, NULL, user);
        return;
    }
    list = g_new0(ListCall, 1);
    list->call.op = FILES_OP_LIST;
    list->call.path = g_strdup(path);
    list->call.left = LIST_MAX;
    list->call.more = list_more;
    list->call.done = list_done;
    list->files = be_files_ref(files);
    list->list = files_list_new();
    list->done = done;
    list->user = user;
    be_files_submit(files, &list->call);
}

/* ---- Extended attributes ----------------------------------------------------- */

typedef struct {
    FilesCall call;            /* first; its path is the file's or the directory's */
    BeFiles *files;
    char *name;                /* of the file, where all of a directory are read; else NULL */
    GHashTable *by_file;
    BeFileXattrsDone done;
    gpointer user;
} XattrsCall;

/* Files without any are not in the table. */
static void tell_xattrs(GHashTable *by_file, const char *name, BeFileXattrsDone done, gpointer user)
{
    GHashTable *found = g_hash_table_lookup(by_file, name);
    g_autoptr(GHashTable) none = found ? NULL : g_hash_table_new(g_str_hash, g_str_equal);

    done(found ? found : none, NULL, user);
}

static gboolean xattrs_more(FilesCall *call, const guint8 *data, gsize length)
{
    XattrsCall *xattrs = (XattrsCall *)call;

    return files_parse_xattrs(data, length, xattrs->by_file);
}

static void xattrs_done(FilesCall *call, const guint8 *data G_GNUC_UNUSED,
                        gsize length G_GNUC_UNUSED, const GError *error)
{
    XattrsCall *xattrs = (XattrsCall *)call;

    if (!error && xattrs->name) {
        g_mutex_lock(&xattrs->files->lock);
        files_cache_add_xattrs(xattrs->files->cache, call->path, xattrs->by_file);
        g_mutex_unlock(&xattrs->files->lock);
    }
    if (error) {
        xattrs->done(NULL, error, xattrs->user);
    } else {
        tell_xattrs(xattrs->by_file, xattrs->name ? xattrs->name : "", xattrs->done,
                    xattrs->user);
    }
    g_hash_table_unref(xattrs->by_file);
    be_files_unref(xattrs->files);
    g_free(xattrs->name);
    g_free(xattrs);
}

void be_files_xattrs(BeFiles *files, const char *path, BeFileXattrsDone done, gpointer user)
{
    const char *slash = strrchr(path, '/');
    g_autofree char *parent = slash ? g_strndup(path, (gsize)(slash - path)) : NULL;
    GHashTable *known = NULL;
    gboolean all = FALSE;
    XattrsCall *xattrs;

    g_mutex_lock(&files->lock);
    if (parent) {
        known = files_cache_xattrs(files->cache, parent);
        all = !known && files_cache_asks_xattrs(files->cache, parent);
    }
    if (known) {
        g_hash_table_ref(known);
    }
    g_mutex_unlock(&files->lock);
    if (known) {
        tell_xattrs(known, slash + 1, done, user);
        g_hash_table_unref(known);
        return;
    }
    xattrs = g_new0(XattrsCall, 1);
    xattrs->call.op = all ? FILES_OP_XATTRS : FILES_OP_XATTR;
    xattrs->call.path = g_strdup(all ? parent : path);
    xattrs->call.left = XATTRS_MAX;
    xattrs->call.more = xattrs_more;
    xattrs->call.done = xattrs_done;
    xattrs->name = all ? g_strdup(slash + 1) : NULL;
    xattrs->files = be_files_ref(files);
    xattrs->by_file = files_xattrs_new();
    xattrs->done = done;
    xattrs->user = user;
    be_files_submit(files, &xattrs->call);
}
