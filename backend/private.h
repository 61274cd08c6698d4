/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * private.h - what the files of backend/ share: the host itself.
 *
 * Threads of backend/, and what each may block on:
 *   be-event    libvirt's event loop: keepalive, callbacks    poll
 *   be-timer    a GMainContext: deadlines, polling            nothing
 *   queries, 2  the inventory, slow texts, refused jobs       libvirt, seconds
 *   actions, 4  what changes something; one per domain        libvirt, minutes
 *   files       one for each appliance: its process, its disks   poll
 *   be-scratch  one for each live backup: its scratch space   file systems
 *   be-space    the scratch directory, for statfs             file systems
 *   streams     pollers and openers of their own (stream.h)   poll, connect
 * Queries and actions have a connection each, because libvirtd serves five
 * requests of a connection at once, and a freeze must not stop an `ls`.
 *
 * Locks, outer first; none is held across a call of libvirt, libnbd, an
 * observer or a callback:
 *   inventory > objects > freshness > jobs > backups > one backup > connection's fields
 */
#pragma once

#include <libvirt/libvirt.h>

#include "backend/auto.h"
#include "backend/backend.h"

typedef struct BeConn BeConn;
typedef struct BeInventory BeInventory;
typedef struct BeObjects BeObjects;
typedef struct BeOwners BeOwners;
typedef struct BeReadings BeReadings;
typedef struct BeSnapshotsLeft BeSnapshotsLeft;
typedef struct BeJobs BeJobs;
typedef struct BeBackups BeBackups;
typedef struct BeFreezes BeFreezes;
typedef struct BePauses BePauses;
typedef struct BeFilesPool BeFilesPool;
typedef struct BeBlockJobs BeBlockJobs;

struct Be {
    char *uri;
    char *state_dir;           /* of this host: below the configured one */
    char *run_dir;
    char *scratch_dir;
    char *domains_glob;
    gboolean read_only;
    guint64 scratch_reserve;
    BeQuiesce quiesce;
    guint keep_checkpoints;    /* of each chain; 0: all */
    BeOfflineWay offline;
    BeCheckpoints checkpoints;
    char *chain;
    BeRecover recover;
    guint idle_end;            /* seconds; 0: never */
    int lock_fd;

    BeObserver observer;
    gpointer observer_data;

    BeConn *query_conn;
    BeConn *action_conn;
    BeInventory *inventory;
    BeObjects *objects;
    BeOwners *owners;
    BeReadings *readings;      /* sockets of the servers of snapshots */
    BeSnapshotsLeft *snapshots_left;
    BeJobs *jobs;
    BeBackups *backups;
    BeFreezes *freezes;        /* NULL on a read-only mount */
    BePauses *pauses;
    BeFilesPool *files_pool;
    BeBlockJobs *block_jobs;

    GMainContext *timer_context;
    GMainLoop *timer_loop;
    GThread *timer_thread;
    GThread *event_thread;
    gint event_stop;           /* atomic */
    gboolean started;
    gint starting;             /* atomic: the first read does what a connect would */
    gint stopping;             /* atomic */
    gboolean threads_stuck;    /* libvirt hangs: what they hold is left to the exit */

    GMutex trust_lock;         /* records of checkpoints are changed one at a time */

    GMutex identity_lock;
    gboolean identity_known;   /* guarded by identity_lock */
    uid_t qemu_uid;            /* guarded by identity_lock */
    gid_t qemu_gid;

    GMutex space_lock;
    GCond space_over_cond;
    gboolean space_over;       /* guarded by space_lock */
    guint64 space_total;       /* guarded by space_lock */
    guint64 space_available;   /* guarded by space_lock */
};

/**
 * be_notify: tells the observer; a thread of the backend, no lock held.
 */
void be_notify(Be *be, const BeEvent *event);

/**
 * be_timer_add: calls @func on the timer thread after @delay_ms.
 * Returns: a source to destroy and unref, never NULL.
 */
GSource *be_timer_add(Be *be, guint delay_ms, GSourceFunc func, gpointer data,
                      GDestroyNotify destroy);

/**
 * be_timer_stop: ends the timer thread and waits for it.
 */
void be_timer_stop(Be *be);

/* ---- conn.c --------------------------------------------------------------- */

/**
 * be_conn_new: a connection that is opened when it is first wanted.
 * @events: whether it delivers events, and is the one whose loss is told
 */
BeConn *be_conn_new(Be *be, gboolean events);
void be_conn_free(BeConn *conn);

/**
 * be_conn_get: a live connection; connects when there is none, with back-off:
 * between two attempts the answer is EHOSTUNREACH at once.  Blocks; workers.
 * Returns: a reference (virConnectClose() gives it back), or NULL:
 *   EHOSTUNREACH, EACCES, EINVAL.
 */
virConnectPtr be_conn_get(BeConn *conn, GError **error);

gboolean be_conn_is_up(BeConn *conn);

/**
 * be_conn_waits: whether be_conn_get() would answer EHOSTUNREACH at once.
 */
gboolean be_conn_waits(BeConn *conn);

guint be_conn_reconnects(BeConn *conn);

/**
 * be_conn_domain: looks a domain up by UUID.
 * Returns: the domain, or NULL: ENOENT, or as be_conn_get().
 */
virDomainPtr be_conn_domain(BeConn *conn, const char *uuid, GError **error);

/**
 * be_conn_close: closes and lets nobody connect again.
 */
void be_conn_close(BeConn *conn);

/* ---- event.c --------------------------------------------------------------- */

/**
 * be_event_prepare: registers libvirt's default event loop; before the first
 * connection of the process.  be_event_start, be_event_stop: its thread.
 */
gboolean be_event_prepare(GError **error);
void be_event_start(Be *be);
void be_event_stop(Be *be);

/**
 * be_event_register: the callbacks of a new connection.
 * Returns: FALSE when the driver has no events: the inventory then only polls.
 */
gboolean be_event_register(Be *be, virConnectPtr conn);

/* ---- inventory.c ------------------------------------------------------------ */

BeInventory *be_inventory_new(Be *be);
void be_inventory_free(BeInventory *inventory);

/**
 * be_inventory_touch: something changed: what is known is stale, and is read
 * again soon.  Any thread; never blocks.
 */
void be_inventory_touch(Be *be);

/**
 * be_inventory_read: reads it now.  Blocks; a query worker or be_start().
 */
gboolean be_inventory_read(Be *be, GError **error);

/**
 * be_inventory_stop: wakes all that wait.
 */
void be_inventory_stop(BeInventory *inventory);

/* ---- dirs.c ----------------------------------------------------------------- */

/**
 * be_dirs_ensure: makes @path with @mode, with its parents, or checks that it
 * is a directory of ours with no more rights than @mode.
 * Returns: FALSE: EPERM (somebody else's, or open to others), EACCES, ENOTDIR...
 */
gboolean be_dirs_ensure(const char *path, mode_t mode, GError **error);

/**
 * be_dirs_sync: makes what was renamed or removed in it durable.
 * Returns: FALSE: the errno of open(2) or fsync(2).
 */
gboolean be_dirs_sync(const char *path, GError **error);

/**
 * be_dirs_random: a path in @parent that nobody can guess; makes nothing, so
 * that it can be written down first.  To be freed with g_free().
 */
char *be_dirs_random(const char *parent, GError **error);

/**
 * be_dirs_private: makes the directory @path, mode 0700, for @uid and @gid.
 */
gboolean be_dirs_private(const char *path, uid_t uid, gid_t gid, GError **error);

/**
 * be_dirs_remove: removes a directory that be_dirs_private() made with the
 * plain files and sockets in it; harmless when it is gone.
 */
void be_dirs_remove(const char *path);

/* ---- revert-record.c ---------------------------------------------------------- */

/**
 * be_reverts_recover: submits the end, one way or the other, of each revert that was
 * interrupted.  Query worker; after each connect.
 */
void be_reverts_recover(Be *be);

/* ---- delete-record.c ---------------------------------------------------------- */

/**
 * be_deletes_recover: the same for deletions, which are finished.
 * @again: also those that this process has given up, whose caller was told so
 */
void be_deletes_recover(Be *be, gboolean again);

/* ---- memory.c ----------------------------------------------------------------- */

/**
 * be_domain_may_change_state: FALSE with EBUSY where the machine is held paused by us,
 * or its guest is frozen by a command of ours.
 */
gboolean be_domain_may_change_state(Be *be, const char *uuid, GError **error);

/**
 * be_domain_runs: whether the guest runs now; for be_domain_run_on().
 */
gboolean be_domain_runs(virDomainPtr domain);

/**
 * be_domain_run_on: after a save that failed, has a guest that ran before run again.
 * libvirt does so, and where it cannot it only writes that into its log (9.0,
 * qemuDomainSaveInternal): the guest stays paused.  What was done, and what could not
 * be done, is told as an event.  Blocks; action workers.
 * @after: what failed: "the save"
 */
void be_domain_run_on(Be *be, virDomainPtr domain, const char *uuid, const char *after);

/* ---- host.c ------------------------------------------------------------------ */

/**
 * be_host_qemu_identity: the user that QEMU runs as on this host, by the DAC
 * label of @domain where it has one, else of the host's capabilities; ourselves
 * where there is no DAC.  Blocks; workers.
 */
gboolean be_host_qemu_identity(Be *be, virConnectPtr conn, const char *dac_label, uid_t *ret_uid,
                               gid_t *ret_gid, GError **error);

/**
 * be_host_is_local: whether the images and sockets of the host are files here.
 */
gboolean be_host_is_local(Be *be);
gboolean be_host_uri_is_local(const char *uri);

/* ---- space.c ------------------------------------------------------------------ */

/**
 * be_space_start: a thread that looks at the scratch directory until be_stop();
 * a file system that hangs stops that one alone.
 */
void be_space_start(Be *be);

/**
 * be_space_stop: tells it to end; be_jobs_wait() waits for that.
 */
void be_space_stop(Be *be);
