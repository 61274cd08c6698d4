/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backend.h - the one bridge between fs/ and backend/.
 *
 * fs/ and mountd/ see the host only through this header: no libvirt, libnbd or
 * libguestfs type crosses it.  It has four parts: the host itself, the inventory
 * (immutable lists, never blocking), actions and queries (jobs that end by a
 * callback), and streams (asynchronous reads of point-in-time data).
 *
 * Threads: every function here may be called from any thread and returns
 * without waiting for libvirt, QEMU or a disk, except where its comment says
 * "blocks".  Callbacks come from a worker thread, with no lock held, exactly
 * once, and never from inside the call that submitted the work.
 *
 * Errors: GError in the domain BE_ERROR; the code is a positive errno and the
 * message a sentence for the user.
 */
#pragma once

#include <glib.h>
#include <poll.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define BE_ERROR (be_error_quark())
GQuark be_error_quark(void);

/* ---- The host ----------------------------------------------------------- */

typedef struct Be Be;

/**
 * BeQuiesce: whether the guest's file systems are frozen around an instant.
 */
typedef enum {
    BE_QUIESCE_DEFAULT,        /* as the mount says; of the mount: try */
    BE_QUIESCE_TRY,            /* if the agent answers; `consistency` says what came of it */
    BE_QUIESCE_REQUIRE,        /* or nothing is made */
    BE_QUIESCE_OFF,
} BeQuiesce;

/**
 * be_quiesce_parse: "try", "require", "off".  Returns: FALSE for anything else.
 */
gboolean be_quiesce_parse(const char *word, BeQuiesce *ret_quiesce);

/**
 * BeOfflineWay: how a machine that is off is backed up.
 */
typedef enum {
    BE_OFFLINE_DEFAULT,        /* as the mount says; of the mount: from its images */
    BE_OFFLINE_IMAGE,          /* its images are read, under QEMU's lock; nothing is started */
    BE_OFFLINE_PAUSED,         /* it is started paused meanwhile, as a running one is backed up */
} BeOfflineWay;

/**
 * be_offline_way_parse: "image", "paused".  Returns: FALSE for anything else.
 */
gboolean be_offline_way_parse(const char *word, BeOfflineWay *ret_way);

/**
 * BeRecover: what a start does with a backup that an earlier process left running.
 */
typedef enum {
    BE_RECOVER_ADOPT,          /* it is there again, under its name */
    BE_RECOVER_END,
} BeRecover;

/**
 * BeCheckpoints: whether a backup leaves a checkpoint, for the next to start from.
 */
typedef enum {
    BE_CHECKPOINTS_AUTO,       /* on every disk that can hold one */
    BE_CHECKPOINTS_NONE,
} BeCheckpoints;

/**
 * BeConfig: what the backend is started with.  The strings belong to the
 * caller and are copied.
 */
typedef struct {
    const char *uri;           /* libvirt URI, "qemu:///system" */
    const char *state_dir;     /* journal and records; survives a reboot */
    const char *run_dir;       /* sockets; mode 0711, ours */
    const char *scratch_dir;   /* scratch images of running backups */
    const char *domains_glob;  /* show only these machines; NULL: all */
    gboolean read_only;        /* open libvirt read-only, refuse actions */
    guint64 scratch_reserve;   /* bytes that must stay free on scratch_dir */
    BeQuiesce quiesce;         /* of backups that do not say */
    guint keep_checkpoints;    /* of ours, for each chain; 0: all */
    BeOfflineWay offline;      /* of backups that do not say */
    BeCheckpoints checkpoints; /* of backups that do not say */
    const char *chain;         /* of backups that do not say; NULL: "default" */
    BeRecover recover;
    guint busy_poll_us;        /* see be_poll(); 0: never */
    guint idle_end;            /* seconds until a backup that nobody reads is ended; 0: never */
    guint appliances;          /* that show guests' files at once; 0: 2 */
    guint appliance_idle;      /* seconds until one that is not used ends; 0: 60 */
} BeConfig;

/**
 * BeEventKind: what an observer is told.
 */
typedef enum {
    BE_EVENT_CONNECTED,
    BE_EVENT_DISCONNECTED,
    BE_EVENT_DOMAIN_ADDED,
    BE_EVENT_DOMAIN_REMOVED,
    BE_EVENT_DOMAIN_STATE,
    BE_EVENT_BACKUP_STARTED,
    BE_EVENT_BACKUP_ENDED,
    BE_EVENT_BACKUP_FAILED,
    BE_EVENT_WARNING,
} BeEventKind;

/**
 * BeEvent: one thing that happened, by us or behind our back.
 */
typedef struct {
    BeEventKind kind;
    gint64 time_us;            /* real time, microseconds since the epoch */
    const char *domain_uuid;   /* NULL where the host is meant */
    const char *domain_name;
    const char *object_id;     /* identity of a backup, or NULL */
    const char *object_name;
    int errnum;                /* for failures and warnings, else 0 */
    const char *text;          /* a sentence, or NULL */
} BeEvent;

typedef void (*BeObserver)(const BeEvent *event, gpointer user);

/**
 * be_new:
 * @config: settings, copied
 *
 * Prepares a backend: checks and makes the directories, takes the lock of the
 * state directory.  Starts no thread, so a caller may fork afterwards.  Blocks
 * on local files only.
 *
 * Returns: the backend, or NULL: EBUSY when another process serves this host
 * from the same state directory, EACCES or EPERM when a directory is not ours
 * or has a wrong mode, ENAMETOOLONG when a socket below run_dir would have
 * more than 107 bytes.
 */
Be *be_new(const BeConfig *config, GError **error);

/**
 * be_set_observer: before be_start(), once.
 * @observer: called for each event, from a backend thread with no lock held;
 *   must return quickly and must not call be_stop()
 */
void be_set_observer(Be *be, BeObserver observer, gpointer user);

/**
 * be_start: starts the threads (events, queries, actions), tries to connect
 * once and reads the first inventory; recovers what a crash left.  Blocks,
 * at most 10 s.  A host that cannot be reached is no error: the backend
 * retries with back-off.
 *
 * Returns: FALSE only where nothing can work (EINVAL: a URI libvirt refuses).
 */
gboolean be_start(Be *be, GError **error);

/**
 * be_stop: cancels queued jobs, waits for running ones, ends the backups of this
 * mount, closes streams and connections, joins the threads.  Blocks: as long as
 * the host answers, at most 50 s; a host that hangs is given up after 10 s.
 *
 * Returns: TRUE when all has ended and each callback was called.  FALSE when
 *   threads still wait for the host: what is local is removed, the journal keeps
 *   the rest for the next start, and the process should end without freeing what
 *   callbacks use.
 */
gboolean be_stop(Be *be);

void be_free(Be *be);

const char *be_uri(Be *be);

/**
 * be_capabilities_fetch: the host's capabilities XML; be_text_done as below.
 */
typedef struct BeJob BeJob;
typedef void (*BeTextDone)(const char *text, const GError *error, gpointer user);
void be_capabilities_fetch(Be *be, BeTextDone done, gpointer user);

/**
 * be_stats_print: appends "key: value" lines about connection, jobs and
 * streams.  Never blocks.
 */
void be_stats_print(Be *be, GString *out);

/**
 * be_scratch_space: size and free bytes of the file system of scratch_dir, as
 * last seen (0 before that); for statfs.
 */
void be_scratch_space(Be *be, guint64 *ret_total, guint64 *ret_available);

/* ---- Inventory ---------------------------------------------------------- */

typedef enum {
    BE_DOMAIN_NOSTATE,
    BE_DOMAIN_RUNNING,
    BE_DOMAIN_BLOCKED,
    BE_DOMAIN_PAUSED,
    BE_DOMAIN_SHUTDOWN,
    BE_DOMAIN_SHUTOFF,
    BE_DOMAIN_CRASHED,
    BE_DOMAIN_PMSUSPENDED,
} BeDomainState;

const char *be_domain_state_name(BeDomainState state);

/**
 * BeDomain: what is known of one domain; immutable.
 */
typedef struct {
    gatomicrefcount refs;
    char *uuid;                /* 36 characters */
    char *name;                /* libvirt's name, raw bytes */
    int id;                    /* -1 when not active */
    BeDomainState state;
    gint64 seen_us;            /* real time when we first saw it */
} BeDomain;

BeDomain *be_domain_ref(BeDomain *domain);
void be_domain_unref(BeDomain *domain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeDomain, be_domain_unref)

/**
 * BeDomainList: all domains at one moment; immutable, sorted by name.
 */
typedef struct {
    gatomicrefcount refs;
    guint64 generation;        /* another list has another number */
    GPtrArray *domains;        /* of BeDomain */
    GHashTable *by_uuid;       /* char * -> BeDomain */
} BeDomainList;

BeDomainList *be_domain_list_ref(BeDomainList *list);
void be_domain_list_unref(BeDomainList *list);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeDomainList, be_domain_list_unref)

/**
 * be_domains: the newest list, possibly stale (see be_refresh()).
 * Returns: a new reference, never NULL.
 */
BeDomainList *be_domains(Be *be);

/**
 * be_domain_find: Returns: a new reference, or NULL when there is no such
 * domain in the newest list.
 */
BeDomain *be_domain_find(Be *be, const char *uuid);

/**
 * be_is_fresh: whether the inventory is younger than 0.5 s, or cannot be had
 * younger now (the connection is down, or a refresh hangs for over 1 s).
 */
gboolean be_is_fresh(Be *be);

/**
 * be_is_stale: whether what is known may be old for as long as the host does
 * not answer: a reading hangs, or the connection is down.
 */
gboolean be_is_stale(Be *be);

/**
 * be_refresh: reads the inventory, and calls @done when a reading that began
 * after this call has ended, or after 1 s, whichever is first.
 */
typedef void (*BeRefreshDone)(gpointer user);
void be_refresh(Be *be, BeRefreshDone done, gpointer user);

/**
 * be_domain_xml_fetch: the XML of a domain as `virsh dumpxml` prints it.
 * Query job.  ENOENT, EHOSTUNREACH, ETIMEDOUT.
 */
void be_domain_xml_fetch(Be *be, const char *uuid, BeTextDone done, gpointer user);

/* ---- Actions ------------------------------------------------------------ */

/**
 * BeCaller: who asks; for the owner of what is made and for messages.
 */
typedef struct {
    uid_t uid;
    gid_t gid;
    pid_t pid;
} BeCaller;

/**
 * BeDone: the end of an action.  @error is NULL when it succeeded and belongs
 * to the job otherwise.  ECANCELED: cancelled, and the state is as before.
 */
typedef void (*BeDone)(const GError *error, gpointer user);

BeJob *be_job_ref(BeJob *job);
void be_job_unref(BeJob *job);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeJob, be_job_unref)

/**
 * be_job_cancel: asks for the end of a job.  A queued one ends with ECANCELED
 * soon; a running one that can be stopped is stopped and undone; any other
 * goes on.  Allowed at any time, also after the end.
 *
 * Returns: FALSE when the job goes on to its end whatever we ask.
 */
gboolean be_job_cancel(BeJob *job);

/**
 * be_domain_job_print: text for `job` of a domain: the job that runs now, ours
 * or somebody else's; nothing when none runs.  Text of "key: value" lines.
 */
void be_domain_job_fetch(Be *be, const char *uuid, BeTextDone done, gpointer user);

/**
 * be_domain_busy: what would make an action on this domain wait, as a sentence
 * ("backup 'tue' is running since 02:00; end it with rmdir backups/tue"), or
 * NULL.  Free with g_free().
 */
char *be_domain_busy(Be *be, const char *uuid);

/**
 * be_domain_suspend, be_domain_resume: stops or continues the virtual CPUs.
 * ENOENT, EBUSY (another action or backup phase is in the way), EINVAL (not
 * running / not paused), EHOSTUNREACH, ETIMEDOUT.
 * Returns: the job; a reference that the caller owns.
 */
BeJob *be_domain_suspend(Be *be, const char *uuid, BeDone done, gpointer user);
BeJob *be_domain_resume(Be *be, const char *uuid, BeDone done, gpointer user);

/**
 * be_domain_freeze: freezes the guest's file systems.
 * @mountpoints: NULL-terminated, copied; NULL: all
 * @seconds: after which it is thawed by us, whatever happens: 1 to 60
 *
 * EBUSY (frozen already, by us or by somebody else), EHOSTDOWN (no agent),
 * EINVAL (not running), ETIMEDOUT.
 * (libvirt: virDomainFSFreeze)
 */
BeJob *be_domain_freeze(Be *be, const char *uuid, const char *const *mountpoints, guint seconds,
                        BeDone done, gpointer user);

/**
 * be_domain_thaw: thaws, also what somebody else has frozen; harmless when
 * nothing is.
 */
BeJob *be_domain_thaw(Be *be, const char *uuid, BeDone done, gpointer user);

/* ---- Backups ------------------------------------------------------------ */

typedef struct BeStream BeStream;
typedef struct BeView BeView;

typedef enum {
    BE_BACKUP_RUNNING,
    BE_BACKUP_ENDING,
    BE_BACKUP_FAILED,
    BE_BACKUP_GONE,            /* ended; the object lives for its open files */
} BeBackupState;

typedef enum {
    BE_CONSISTENCY_APPLICATION,
    BE_CONSISTENCY_FILESYSTEM,
    BE_CONSISTENCY_CRASH,
    BE_CONSISTENCY_OFFLINE,
} BeConsistency;

const char *be_backup_state_name(BeBackupState state);
const char *be_consistency_name(BeConsistency consistency);

/**
 * BeDisk: one disk of a backup; constant from the moment the backup exists.
 */
typedef struct {
    char *target;              /* "vda" */
    guint64 size;              /* virtual size in bytes */
    guint64 allocated;         /* bytes, an estimate until the map is known */
    gboolean has_base;         /* it starts from the backup's `since`; else all of it is new */
    char *full_because;        /* of a disk that is full in an incremental backup, else NULL */
    BeStream *stream;
    BeView *full;              /* see be_disk_full() */
    BeView *incremental;       /* see be_disk_incremental() */
    char *backing_name;        /* of the incremental image; NULL: the disk has no base */
    const char *backing_format; /* "raw" or "qcow2"; with backing_name */
} BeDisk;

/**
 * BeExtra: what a machine needs besides its disks to be built again.
 */
typedef enum {
    BE_EXTRA_NVRAM,            /* the firmware's variables */
    BE_EXTRA_TPM,              /* the state of an emulated TPM */
    BE_EXTRA_KERNEL,           /* of a direct boot */
    BE_EXTRA_INITRD,
    BE_EXTRA_COUNT,
} BeExtra;

/**
 * BeBackup: one backup of one domain.  The fields are constant from the moment
 * it is listed until it is freed; what changes is asked for by function.
 */
typedef struct {
    gatomicrefcount refs;
    char *id;                  /* random, the identity */
    char *name;
    char *domain_uuid;
    char *domain_name;
    gint64 created_us;         /* the point in time, real time */
    BeCaller owner;
    BeConsistency consistency;
    gint64 frozen_us;          /* how long the guest was frozen for it; 0: not at all */
    char *domain_xml;
    char *backup_xml;          /* as libvirt reports it; "" for an offline one */
    char *chain;               /* which backups it continues: "default" */
    char *since;               /* the checkpoint it starts from; NULL: it is full */
    char *base;                /* file name of the directory beside ours that copies of
                                  incremental images stand on; NULL as `since` */
    char *checkpoint;          /* the checkpoint it leaves, if it is taken; NULL: none */
    GPtrArray *disks;          /* of BeDisk, in the order of the domain XML */
    BeStream *extras[BE_EXTRA_COUNT]; /* NULL: the machine has none */
} BeBackup;

BeBackup *be_backup_ref(BeBackup *backup);
void be_backup_unref(BeBackup *backup);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeBackup, be_backup_unref)

/**
 * be_backups: the backups of a domain (NULL: of all) that exist now, oldest first.
 * Returns: (element BeBackup): a new array with references, never NULL.
 */
GPtrArray *be_backups(Be *be, const char *uuid);

/**
 * be_backup_state: the state now; @ret_reason (may be NULL) gets why it is so,
 * or NULL, to free with g_free().
 */
BeBackupState be_backup_state(BeBackup *backup, char **ret_reason);

/**
 * be_backup_job_print: appends "key: value" lines: kind, object, bytes, percent, and
 * bytes per second (the mean of the last 5 s).  Percent is of each disk what was read
 * of the image (raw, full, incremental) that was read farthest.
 */
void be_backup_job_print(BeBackup *backup, GString *out);

/**
 * be_backup_set_rate: how many bytes a second are fetched for all files of the backup
 * together, from the next request on; 0: no limit.  Any thread; does not block.
 * Returns: FALSE: EINVAL for less than 64 KiB a second.
 */
gboolean be_backup_set_rate(BeBackup *backup, guint64 bytes_per_second, GError **error);

typedef struct {
    const char *const *only;   /* targets, NULL-terminated, or NULL: all */
    const char *scratch_dir;   /* or NULL: the mount's */
    BeQuiesce quiesce;
    BeOfflineWay offline;
    const char *since;         /* a checkpoint, "latest" or "none"; NULL: "latest" */
    const char *since_file;    /* of a checkpoint: its name in the tree */
    const char *checkpoint;    /* a valid name or "none"; NULL: as the mount says */
    const char *chain;         /* NULL: the mount's */
} BeBackupOptions;

/**
 * be_backup_begin:
 * @name: a valid name, not one of an existing backup (the caller checks)
 * @options: copied; NULL: defaults
 *
 * Starts a backup of a domain: all disks at one instant.  The backup is listed
 * by be_backups() before @done is called, and only when it succeeded.
 * Disks left out are told as BE_EVENT_WARNING, and so is why it does not start
 * from the newest checkpoint of its chain.
 * ENOENT (also for `since`), EEXIST (also for `checkpoint`), EUCLEAN (that
 * checkpoint cannot be trusted), EBUSY at once when a job is in the way, EACCES,
 * ENOSPC, EOPNOTSUPP, EHOSTUNREACH, ETIMEDOUT; ECANCELED.
 * (libvirt: virDomainBackupBegin; QEMU: qemu-nbd for a domain that is off, or its
 * machine, started paused.)
 */
BeJob *be_backup_begin(Be *be, const char *uuid, const char *name, const BeBackupOptions *options,
                       const BeCaller *caller, BeDone done, gpointer user);

/**
 * BeVerdict: what becomes of the checkpoint of a backup that ends.
 */
typedef enum {
    BE_VERDICT_TAKEN,          /* it stays if the backup was taken: one image of each disk
                                  was read to its end */
    BE_VERDICT_KEEP,
    BE_VERDICT_DROP,
} BeVerdict;

/**
 * be_backup_end: ends a backup and removes all that belonged to it.
 * @done is called when it ended, with ECANCELED never.  Reads still under way
 * fail with EIO.  Ending a backup twice joins the first.  That a checkpoint was
 * dropped because the backup was not taken is told as BE_EVENT_WARNING.
 */
BeJob *be_backup_end(Be *be, BeBackup *backup, BeVerdict verdict, BeDone done, gpointer user);

/**
 * be_backup_boot_fetch: the XML of a throw-away machine that boots from a backup,
 * with all that it needs: overlays on its disks and a copy of its variable store,
 * which belong to the backup and go with it.  A machine of this backup that runs
 * keeps its own.
 * @raws: where QEMU's user reads each disk of the backup as a raw file, absolute
 *   paths in the order of its disks, NULL-terminated; copied
 *
 * EIO (the backup has failed), ENOSPC, EHOSTUNREACH, EOPNOTSUPP (no qemu-img).
 */
void be_backup_boot_fetch(Be *be, BeBackup *backup, const char *const *raws, BeTextDone done,
                          gpointer user);

/* ---- A process of its own ------------------------------------------------- */

/**
 * be_holder_main: what a program that uses this backend calls first of all in
 * main(): the backend starts that program again, under another name, as the process
 * that holds a paused machine and outlives us.
 * Returns: the exit code where this is that process; -1: it is not, go on.
 */
int be_holder_main(int argc, char **argv);

#include "backend/backend-checkpoint.h"
#include "backend/backend-machine.h"
#include "backend/backend-objects.h"
#include "backend/backend-streams.h"
#include "backend/backend-files.h"
