/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fs.c - the mount: session, threads, and the events of the backend.
 *
 * Main thread, but for the loops of the threads it starts (see private.h) and
 * the observer, which backend threads call.
 */
#include "fs/fs.h"

#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/file.h"
#include "fs/ops.h"
#include "fs/worker.h"

/* How long a request may still take for its own end when the mount ends. */
#define LAST_WAIT_MS 1000

/* ---- The timer thread ------------------------------------------------------ */

GSource *fs_timer_add(Fs *fs, guint delay_ms, GSourceFunc func, gpointer data,
                      GDestroyNotify destroy)
{
    GSource *source = delay_ms ? g_timeout_source_new(delay_ms) : g_idle_source_new();

    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, func, data, destroy);
    g_source_attach(source, fs->timer_context);
    return source;
}

static gpointer timer_main(gpointer data)
{
    Fs *fs = data;

    g_main_loop_run(fs->timer_loop);
    return NULL;
}

/*
 * From within the loop: g_main_loop_quit() before g_main_loop_run() is lost, and
 * a mount may end before its timer thread has begun.
 */
static gboolean timer_quit(gpointer data)
{
    g_main_loop_quit(data);
    return G_SOURCE_REMOVE;
}

/* ---- Events of the backend -------------------------------------------------- */

static void observe(const BeEvent *event, gpointer user)
{
    Fs *fs = user;
    const char *operation = event->object_name ? event->object_name : "domain";

    fs_feed_add(fs->feed, event);
    if (event->errnum && event->domain_uuid) {
        fs_failures_add_id(fs->failures, event->domain_uuid, NULL, operation, event->errnum,
                           event->text ? event->text : "");
    }
    if (event->errnum && event->object_id) {
        fs_failures_add_id(fs->failures, event->object_id, NULL, operation, event->errnum,
                           event->text ? event->text : "");
    }
    if (event->kind == BE_EVENT_BACKUP_ENDED) {
        fs_failures_drop(fs->failures, event->object_id);
    } else if (event->kind == BE_EVENT_DOMAIN_REMOVED) {
        fs_failures_drop(fs->failures, event->domain_uuid);
    }
}

/* ---- Life ------------------------------------------------------------------- */

static void set_config(Fs *fs, const FsConfig *config)
{
    fs->mountpoint = g_strdup(config->mountpoint);
    fs->version = g_strdup(config->version);
    fs->fuse_options = g_strdup(config->fuse_options);
    fs->uid = config->uid;
    fs->gid = config->gid;
    fs->data_gid = config->data_gid;
    fs->umask = config->umask;
    fs->read_only = config->read_only;
    fs->allow_other = config->allow_other;
    fs->mkdir_off = config->mkdir_off;
    fs->guest_files = config->files;
    fs->links_raw = config->links_raw;
    fs->guest_owner = geteuid() != 0;
    fs->debug = config->debug;
    fs->action_timeout = config->action_timeout ? config->action_timeout : 30;
}

Fs *fs_new(const FsConfig *config, Be *be, GError **error)
{
    Fs *fs;

    if (!fs_tree_check(&fs_tree_root, error)) {
        return NULL;
    }
    fs = g_new0(Fs, 1);
    set_config(fs, config);
    fs->be = be;
    fs->started_us = g_get_real_time();
    fs->nodes = fs_node_table_new();
    fs->failures = fs_failures_new();
    fs->feed = fs_feed_new();
    fs->guard = fs_guard_new();
    fs->timer_context = g_main_context_new();
    fs->timer_loop = g_main_loop_new(fs->timer_context, FALSE);
    g_mutex_init(&fs->domains_lock);
    g_mutex_init(&fs->exit_lock);
    g_cond_init(&fs->exit_cond);
    g_mutex_init(&fs->waiting_lock);
    g_queue_init(&fs->waiting);
    g_mutex_init(&fs->files_lock);
    fs->files = g_hash_table_new(NULL, NULL);
    g_mutex_init(&fs->commands_lock);
    fs->commands = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    be_set_observer(be, observe, fs);
    return fs;
}

/* ",", "\" in a value would end it in the kernel's option string. */
static char *escape_option(const char *value)
{
    GString *out = g_string_new(NULL);

    for (; *value; value++) {
        if (*value == ',' || *value == '\\') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *value);
    }
    return g_string_free(out, FALSE);
}

static char *mount_options(const Fs *fs)
{
    g_autofree char *name = escape_option(be_uri(fs->be));

    return g_strdup_printf("default_permissions,nosuid,nodev,subtype=vmsnapfs,fsname=%s%s%s%s%s",
                           name, fs->read_only ? ",ro" : "", fs->allow_other ? ",allow_other" : "",
                           fs->fuse_options ? "," : "", fs->fuse_options ? fs->fuse_options : "");
}

gboolean fs_mount(Fs *fs, GError **error)
{
    g_autofree char *options = mount_options(fs);
    char *argv[] = {(char *)"vmsnapfs", (char *)"-o", options, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    struct stat attr;

    if (stat(fs->mountpoint, &attr) < 0) {
        g_set_error(error, BE_ERROR, errno, "mount point '%s': %s", fs->mountpoint,
                    g_strerror(errno));
        return FALSE;
    }
    if (!S_ISDIR(attr.st_mode)) {
        g_set_error(error, BE_ERROR, ENOTDIR, "mount point '%s' is no directory", fs->mountpoint);
        return FALSE;
    }
    fs->session = fuse_session_new(&args, &fs_ops, sizeof(fs_ops), fs);
    fuse_opt_free_args(&args);
    if (!fs->session) {
        g_set_error(error, BE_ERROR, EINVAL, "libfuse refused the options '%s'", options);
        return FALSE;
    }
    if (fuse_session_mount(fs->session, fs->mountpoint) != 0) {
        g_clear_pointer(&fs->session, fuse_session_destroy);
        g_set_error(error, BE_ERROR, EACCES, "cannot mount on '%s' (libfuse has said why)",
                    fs->mountpoint);
        return FALSE;
    }
    return TRUE;
}

/* What a host that hangs keeps from its end; on the timer thread. */
static gboolean refuse_waiting(gpointer data)
{
    fs_req_refuse_all(data);
    return G_SOURCE_REMOVE;
}

void fs_loop(Fs *fs, void (*ready)(gpointer user), gpointer user)
{
    fs->timer_thread = g_thread_new("fs-timer", timer_main, fs);
    fs_workers_start(fs, ready, user);
    g_mutex_lock(&fs->exit_lock);
    while (!g_atomic_int_get(&fs->exiting)) {
        g_cond_wait(&fs->exit_cond, &fs->exit_lock);
    }
    g_mutex_unlock(&fs->exit_lock);
    fs_feed_close(fs->feed);
    g_source_unref(fs_timer_add(fs, LAST_WAIT_MS, refuse_waiting, fs, NULL));
}

void fs_finish(Fs *fs)
{
    if (fs->workers) {
        g_atomic_int_set(&fs->over, 1);
        fs_workers_stop(g_steal_pointer(&fs->workers));
    }
}

void fs_exit(Fs *fs)
{
    g_mutex_lock(&fs->exit_lock);
    g_atomic_int_set(&fs->exiting, 1);
    g_cond_signal(&fs->exit_cond);
    g_mutex_unlock(&fs->exit_lock);
}

void fs_unmount(Fs *fs)
{
    if (fs->session) {
        fuse_session_unmount(fs->session);
    }
}

/* Files whose RELEASE never came: the mount went away under them. */
static void close_files(Fs *fs)
{
    GHashTableIter iter;
    gpointer file;

    g_hash_table_iter_init(&iter, fs->files);
    while (g_hash_table_iter_next(&iter, &file, NULL)) {
        fs_file_close(file);
        g_hash_table_iter_init(&iter, fs->files);
    }
    g_hash_table_unref(fs->files);
}

void fs_free(Fs *fs)
{
    if (!fs) {
        return;
    }
    if (fs->timer_thread) {
        g_source_unref(fs_timer_add(fs, 0, timer_quit, fs->timer_loop, NULL));
        g_thread_join(fs->timer_thread);
    }
    g_atomic_int_set(&fs->timer_over, 1);
    while (g_main_context_iteration(fs->timer_context, FALSE)) {
        continue;
    }
    g_main_loop_unref(fs->timer_loop);
    g_main_context_unref(fs->timer_context);
    close_files(fs);
    g_clear_pointer(&fs->domains, fs_listing_unref);
    fs_node_table_free(fs->nodes);
    if (fs->session) {
        fuse_session_destroy(fs->session);
    }
    g_hash_table_unref(fs->commands);
    fs_guard_free(fs->guard);
    fs_feed_free(fs->feed);
    fs_failures_free(fs->failures);
    g_free(fs->mountpoint);
    g_free(fs->version);
    g_free(fs->fuse_options);
    g_free(fs);
}

/* ---- The table as text -------------------------------------------------------- */

static const char *kind_name(FsKind kind)
{
    switch (kind) {
    case FS_KIND_DIR:
        return "dir";
    case FS_KIND_ATTR:
        return "text";
    case FS_KIND_CONTROL:
        return "control";
    case FS_KIND_STREAM:
        return "data";
    case FS_KIND_FEED:
        return "feed";
    case FS_KIND_LINK:
        return "link";
    case FS_KIND_GUEST:
        return "guest";
    }
    return "?";
}

static void dump_row(const FsDef *def, const char *path, gpointer user)
{
    FILE *out = user;

    fprintf(out, "%04o %-7s %s%s%s%s%s\n", (unsigned)def->mode, kind_name(def->kind),
            *path ? path : "/", def->make ? " mkdir" : "", def->drop ? " rmdir" : "",
            def->flags & FS_HIDDEN ? " hidden" : "", def->verbs ? " write" : "");
}

void fs_dump_tree(FILE *out)
{
    fs_tree_walk(&fs_tree_root, dump_row, out);
}
