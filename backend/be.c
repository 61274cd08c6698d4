/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * be.c - the host: directories and lock, threads, and the order of the start; see stop.c.
 *
 * Main thread; the timer thread runs here.
 */
#include <errno.h>
#include <fcntl.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/blockjob.h"
#include "backend/error.h"
#include "backend/files.h"
#include "backend/freeze.h"
#include "backend/paused.h"
#include "backend/job.h"
#include "backend/objects.h"
#include "backend/owner.h"
#include "backend/private.h"
#include "backend/readings.h"
#include "backend/snapshot.h"
#include "backend/stream.h"
#include "backend/record.h"
#include "backend/trust.h"
#include "backend/wait.h"

#define START_WAIT_US (10 * G_USEC_PER_SEC)
#define STREAMS_END_US (10 * G_USEC_PER_SEC)
#define SUN_PATH_MAX 107

/* A job's socket is RUN_DIR/<24 hex digits>/nbd.sock. */
#define SOCKET_TAIL 34

static void ignore_libvirt_error(void *user G_GNUC_UNUSED, virErrorPtr error G_GNUC_UNUSED)
{
}

const char *be_uri(Be *be)
{
    return be->uri;
}

void be_notify(Be *be, const BeEvent *event)
{
    if (be->observer) {
        be->observer(event, be->observer_data);
    }
}

void be_set_observer(Be *be, BeObserver observer, gpointer user)
{
    be->observer = observer;
    be->observer_data = user;
}

/* ---- The timer thread ---------------------------------------------------------- */

GSource *be_timer_add(Be *be, guint delay_ms, GSourceFunc func, gpointer data,
                      GDestroyNotify destroy)
{
    GSource *source = delay_ms ? g_timeout_source_new(delay_ms) : g_idle_source_new();

    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, func, data, destroy);
    g_source_attach(source, be->timer_context);
    return source;
}

static gpointer timer_main(gpointer data)
{
    Be *be = data;

    g_main_loop_run(be->timer_loop);
    return NULL;
}

/* From within the loop: g_main_loop_quit() before g_main_loop_run() is lost. */
static gboolean timer_quit(gpointer data)
{
    g_main_loop_quit(data);
    return G_SOURCE_REMOVE;
}

void be_timer_stop(Be *be)
{
    g_source_unref(be_timer_add(be, 0, timer_quit, be->timer_loop, NULL));
    g_thread_join(be->timer_thread);
}

/* ---- Directories and the lock ---------------------------------------------------- */

/*
 * One process serves a host from a state directory.  The lock goes with the
 * process, so a crash leaves none; the file then still names the dead pid.
 */
static gboolean take_lock(Be *be, GError **error)
{
    g_autofree char *path = g_build_filename(be->state_dir, "lock", NULL);
    char who[32] = "";
    g_autofree char *pid = g_strdup_printf("%d\n", (int)getpid());

    be->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (be->lock_fd < 0) {
        be_error_set_errno(error, errno, "cannot open '%s'", path);
        return FALSE;
    }
    if (flock(be->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (read(be->lock_fd, who, sizeof(who) - 1) < 0) {
            who[0] = '\0';
        }
        g_set_error(error, BE_ERROR, EBUSY, "'%s' is already served by pid %s (lock '%s')",
                    be->uri, *who ? g_strchomp(who) : "unknown", path);
        return FALSE;
    }
    if (ftruncate(be->lock_fd, 0) < 0 || pwrite(be->lock_fd, pid, strlen(pid), 0) < 0) {
        be_error_set_errno(error, errno, "cannot write '%s'", path);
        return FALSE;
    }
    return TRUE;
}

/* After a fork the lock is the child's, and the file should say so. */
static void refresh_lock(Be *be)
{
    g_autofree char *pid = g_strdup_printf("%d\n", (int)getpid());

    if (be->lock_fd >= 0
        && (ftruncate(be->lock_fd, 0) < 0 || pwrite(be->lock_fd, pid, strlen(pid), 0) < 0)) {
        g_warning("cannot write the lock file: %s", g_strerror(errno));
    }
}

/*
 * A read-only mount of a host that is served already (an appliance has one of
 * its own) keeps no state and takes no lock.
 */
static gboolean prepare_dirs(Be *be, GError **error)
{
    g_autofree char *journal = g_build_filename(be->state_dir, "journal", NULL);
    g_autofree char *all_hosts = g_path_get_dirname(be->state_dir);

    if (be->read_only) {
        return TRUE;
    }
    if (strlen(be->run_dir) + SOCKET_TAIL > SUN_PATH_MAX) {
        g_set_error(error, BE_ERROR, ENAMETOOLONG,
                    "run-dir '%s' is too long for a socket: at most %d bytes", be->run_dir,
                    SUN_PATH_MAX - SOCKET_TAIL);
        return FALSE;
    }
    return be_dirs_ensure(all_hosts, 0711, error) && be_dirs_ensure(be->state_dir, 0700, error)
           && be_dirs_ensure(journal, 0700, error) && be_dirs_ensure(be->run_dir, 0711, error)
           && be_dirs_ensure(be->scratch_dir, 0711, error) && take_lock(be, error);
}

static void set_config(Be *be, const BeConfig *config)
{
    g_autofree char *host = g_uri_escape_string(config->uri, NULL, FALSE);

    be->uri = g_strdup(config->uri);
    be->state_dir = g_build_filename(config->state_dir, host, NULL);
    be->run_dir = g_strdup(config->run_dir);
    be->scratch_dir = g_strdup(config->scratch_dir);
    be->domains_glob = g_strdup(config->domains_glob);
    be->read_only = config->read_only;
    be->scratch_reserve = config->scratch_reserve;
    be->keep_checkpoints = config->keep_checkpoints;
    be->quiesce = config->quiesce == BE_QUIESCE_DEFAULT ? BE_QUIESCE_TRY : config->quiesce;
    be->offline = config->offline == BE_OFFLINE_DEFAULT ? BE_OFFLINE_IMAGE : config->offline;
    be->checkpoints = config->checkpoints;
    be->chain = g_strdup(config->chain ? config->chain : "default");
    be->recover = config->recover;
    be->idle_end = config->idle_end;
    be_poll_set_busy(config->busy_poll_us);
    be->lock_fd = -1;
}

Be *be_new(const BeConfig *config, GError **error)
{
    Be *be = g_new0(Be, 1);

    set_config(be, config);
    g_mutex_init(&be->trust_lock);
    g_mutex_init(&be->identity_lock);
    g_mutex_init(&be->space_lock);
    g_cond_init(&be->space_over_cond);
    /* The watchdog is forked before the lock is taken: it must not keep it alive. */
    if (!be->read_only && !(be->freezes = be_freezes_new(be, error))) {
        be_free(be);
        return NULL;
    }
    if (!prepare_dirs(be, error)) {
        be_free(be);
        return NULL;
    }
    be->timer_context = g_main_context_new();
    be->timer_loop = g_main_loop_new(be->timer_context, FALSE);
    be->query_conn = be_conn_new(be, TRUE);
    /*
     * libvirt's test driver gives each connection a world of its own: what an
     * action changes must be where the queries look.
     */
    be->action_conn = g_str_has_prefix(be->uri, "test:") ? be->query_conn : be_conn_new(be, FALSE);
    be->inventory = be_inventory_new(be);
    be->objects = be_objects_new(be);
    be->owners = be_owners_new();
    be->readings = be_readings_new();
    be->snapshots_left = be_snapshots_left_new();
    be->backups = be_backups_new(be);
    be->pauses = be_pauses_new();
    be->files_pool = be_files_pool_new(be, config->appliances, config->appliance_idle);
    be->block_jobs = be_block_jobs_new();
    return be;
}

/* ---- Start --------------------------------------------------------------- */

typedef struct {
    gatomicrefcount refs;
    GMutex lock;
    GCond cond;
    gboolean over;             /* guarded by lock */
    GError *error;             /* guarded by lock */
} FirstRead;

static void first_read_unref(gpointer data)
{
    FirstRead *first = data;

    if (g_atomic_ref_count_dec(&first->refs)) {
        g_clear_error(&first->error);
        g_mutex_clear(&first->lock);
        g_cond_clear(&first->cond);
        g_free(first);
    }
}

/* The first inventory, then what a crash left: both need the connection. */
static void first_read(Be *be, gpointer data)
{
    FirstRead *first = data;
    GError *error = NULL;

    if (be_inventory_read(be, &error)) {
        be_freezes_recover(be);
        be_pauses_recover(be);
        be_block_jobs_recover(be);
        be_backups_recover(be);
        be_trust_tidy(be);
        be_reverts_recover(be);
        be_snapshots_recover(be);
        be_owners_tidy(be);
        be_deletes_recover(be, TRUE);
    }
    g_atomic_int_set(&be->starting, 0);
    g_mutex_lock(&first->lock);
    first->over = TRUE;
    first->error = error;
    g_cond_signal(&first->cond);
    g_mutex_unlock(&first->lock);
}

static gboolean wait_first(FirstRead *first, GError **error)
{
    gint64 until_us = g_get_monotonic_time() + START_WAIT_US;
    gboolean usable;

    g_mutex_lock(&first->lock);
    while (!first->over && g_cond_wait_until(&first->cond, &first->lock, until_us)) {
        continue;
    }
    usable = !first->error || first->error->code != EINVAL;
    if (!usable) {
        g_propagate_error(error, g_steal_pointer(&first->error));
    } else if (first->error) {
        g_warning("%s; trying again", first->error->message);
    }
    g_mutex_unlock(&first->lock);
    return usable;
}

gboolean be_start(Be *be, GError **error)
{
    FirstRead *first;
    gboolean usable;

    virSetErrorFunc(NULL, ignore_libvirt_error);
    if (virInitialize() < 0) {
        be_error_from_libvirt(error, "cannot start libvirt's library");
        return FALSE;
    }
    if (!be_event_prepare(error)) {
        return FALSE;
    }
    refresh_lock(be);
    if (!be->read_only) {
        be_record_tidy(be);
    }
    be->started = TRUE;
    g_atomic_int_set(&be->starting, 1);
    be->timer_thread = g_thread_new("be-timer", timer_main, be);
    be->jobs = be_jobs_new(be);
    be_pauses_load(be);
    be_block_jobs_load(be);
    be_backups_load(be);
    be_owners_load(be);
    be_readings_tidy(be);
    be_snapshots_load(be);
    be_event_start(be);
    be_space_start(be);

    first = g_new0(FirstRead, 1);
    g_atomic_ref_count_init(&first->refs);
    g_mutex_init(&first->lock);
    g_cond_init(&first->cond);
    g_atomic_ref_count_inc(&first->refs);
    be_query(be, first_read, first, first_read_unref);
    usable = wait_first(first, error);
    first_read_unref(first);
    return usable;
}

void be_free(Be *be)
{
    /* A thread that hangs in libvirt may still come back: it needs all this. */
    if (!be || be->threads_stuck) {
        return;
    }
    be_freezes_free(be->freezes);
    be_files_pool_free(be->files_pool);
    be_backups_free(be->backups);
    be_pauses_free(be->pauses);
    be_block_jobs_free(be->block_jobs);
    be_jobs_free(be->jobs);
    be_objects_free(be->objects);
    /* Timers watch over streams, and nothing that is left starts one. */
    if (be->timer_context) {
        g_main_loop_unref(be->timer_loop);
        g_main_context_unref(be->timer_context);
    }
    be_readings_let_go(be->readings);
    /* Images that are being read are looked at again and again, with what follows. */
    if (!be_streams_wait(STREAMS_END_US)) {
        g_warning("a disk that was read does not let go; the process ends without it");
        return;
    }
    be_readings_free(be->readings);
    be_owners_free(be->owners);
    be_snapshots_left_free(be->snapshots_left);
    be_inventory_free(be->inventory);
    if (be->action_conn != be->query_conn) {
        be_conn_free(be->action_conn);
    }
    be_conn_free(be->query_conn);
    if (be->lock_fd >= 0) {
        close(be->lock_fd);
    }
    g_mutex_clear(&be->trust_lock);
    g_mutex_clear(&be->identity_lock);
    g_cond_clear(&be->space_over_cond);
    g_mutex_clear(&be->space_lock);
    g_free(be->uri);
    g_free(be->state_dir);
    g_free(be->run_dir);
    g_free(be->scratch_dir);
    g_free(be->chain);
    g_free(be->domains_glob);
    g_free(be);
}

void be_stats_print(Be *be, GString *out)
{
    g_string_append_printf(out, "connected: %s\n", be_conn_is_up(be->query_conn) ? "yes" : "no");
    g_string_append_printf(out, "stale: %s\n", be_is_stale(be) ? "yes" : "no");
    g_string_append_printf(out, "reconnects: %u\n", be_conn_reconnects(be->query_conn));
    g_string_append_printf(out, "jobs: %u\n", be_jobs_count(be->jobs));
    be_backups_print(be, out);
    be_files_print(be, out);
}
