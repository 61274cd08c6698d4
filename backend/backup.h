/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup.h - backups inside the backend: the list, the life of one, recovery.
 */
#pragma once

#include <json-glib/json-glib.h>

#include "backend/job.h"
#include "backend/paused.h"
#include "backend/private.h"
#include "backend/stream.h"
#include "backend/trust.h"
#include "backend/xml.h"

typedef struct BeOffline BeOffline;

/* The journal's word for how far a backup got. */
typedef enum {
    BACKUP_BEGUN,              /* nobody has seen it yet: a crash takes it back */
    BACKUP_LISTED,             /* the user has it: a crash gives it back to him */
    BACKUP_DOOMED,             /* it failed: the next start ends it and takes away what is left */
} BackupStage;

/* What is decided about its checkpoint; once in the journal, a crash changes it no more. */
typedef enum {
    BACKUP_UNDECIDED,
    BACKUP_KEEPS,
    BACKUP_DROPS,
} BackupFate;

/**
 * Backup: what BeBackup is to us.  Constant once it is listed, but for what
 * the lock guards.
 */
typedef struct {
    BeBackup pub;              /* first: a BeBackup pointer is one of these */
    Be *be;
    char *run_path;            /* private directory of the sockets */
    char *scratch_path;        /* private directory of the scratch images; QEMU's */
    char *socket;              /* of QEMU's NBD server */
    BackupStage stage;         /* as in the journal; workers of this domain alone */
    BackupFate fate;           /* as in the journal; workers of this domain alone */
    char *replaces;            /* the checkpoint of ours that goes once this is taken, or NULL */
    gboolean off;              /* of a domain that is off */
    gint scratch_full;         /* atomic: it failed for lack of scratch space */
    BeFiles *files;            /* of the guest; closed with the streams */
    BeOffline *offline;        /* its locks; whoever releases, else NULL */
    BePaused *paused;          /* the machine it holds; whoever releases, else NULL */

    BeRate *rate;              /* for all streams and views of it */

    GMutex lock;
    GCond scratch_cond;        /* scratch_kicked was set */
    gboolean scratch_kicked;   /* guarded by lock: the guard should look now */
    guint64 scratch_used;      /* guarded by lock; bytes, at the guard's last look */
    guint64 scratch_free;      /* guarded by lock; of the file system */
    dev_t scratch_device;      /* guarded by lock; 0: not looked yet */
    GCond released_cond;
    gboolean releasing;        /* guarded by lock */
    gboolean released;         /* guarded by lock */
    BeBackupState state;       /* guarded by lock */
    char *reason;              /* guarded by lock */
} Backup;

BeBackups *be_backups_new(Be *be);
void be_backups_free(BeBackups *backups);

/**
 * be_backups_print: lines for the mount's `stats`.
 */
void be_backups_print(Be *be, GString *out);

/**
 * be_backups_check: looks, on a query worker, whether the running backups of a
 * domain (NULL: of all) still run, and fails those that do not.  Any thread.
 */
void be_backups_check(Be *be, const char *uuid);

/**
 * be_backups_load: reads what an earlier process left in the journal: orphans.
 * Before the first action, so that none of ours is taken for one.
 */
void be_backups_load(Be *be);

/**
 * be_backups_orphan: the host may or may not have begun @backup, and cannot be
 * asked now: be_backups_recover() will.
 */
void be_backups_orphan(Be *be, Backup *backup);

/**
 * be_backups_recover: settles the orphans, as far as the host answers: those
 * that the user had and that still run are listed again, all else that belonged
 * to them is removed.  Query worker; after each connect.
 */
void be_backups_recover(Be *be);

/**
 * be_backups_end_all: submits the end of every backup; for be_stop().
 */
void be_backups_end_all(Be *be);

/**
 * be_backups_abandon: the host hangs and we end: readers get EIO, what is only
 * ours is removed; the journal keeps what the host may still run.
 */
void be_backups_abandon(Be *be);

/**
 * be_backups_in_the_way: the backup of a domain that runs or ends.
 * Returns: a new reference, or NULL.
 */
Backup *be_backups_in_the_way(Be *be, const char *uuid);

void be_backups_list(Be *be, Backup *backup);
void be_backups_unlist(Be *be, Backup *backup);

/**
 * be_backups_find: by name; Returns: a new reference, or NULL.
 */
Backup *be_backups_find(Be *be, const char *uuid, const char *name);

/* ---- One backup ------------------------------------------------------------ */

Backup *backup_new(Be *be, const char *id, const char *name, const char *domain_uuid,
                   const char *domain_name);

/**
 * backup_add_disk: takes the stream's reference.
 */
void backup_add_disk(Backup *backup, const char *target, guint64 size, guint64 allocated,
                     BeStream *stream);

/**
 * backup_open_disk: gives a disk of a backup of a running domain its stream, on
 * backup->socket; of one with a base it knows what has changed since, and its
 * incremental image stands on the copy of the base.
 */
void backup_open_disk(const Backup *backup, BeDisk *disk);

void backup_set_state(Backup *backup, BeBackupState state, const char *reason);

/**
 * backup_bitmap_name: of the dirty bitmap in a disk's export, to be freed with
 * g_free().
 */
char *backup_bitmap_name(const char *target);

/**
 * backup_change_state: to @to, if it is @from now.  Returns: whether it was.
 */
gboolean backup_change_state(Backup *backup, BeBackupState from, BeBackupState to,
                             const char *reason);

/**
 * BackupProgress: how far the reading of a backup is.
 */
typedef struct {
    guint64 size;              /* of all disks, bytes */
    guint64 bytes;             /* read by anybody, holes too */
    guint64 rate;              /* bytes per second, lately */
    double done;               /* 0 to 1: of each disk the image that was read farthest */
} BackupProgress;

BackupProgress backup_progress(const Backup *backup);

/**
 * backup_fail: a running backup is no good any more: readers get EIO, `state`
 * says why.  Ends the job on the host and removes what belonged to it; where the
 * host does not answer, that is tried again later.  Workers.
 * Returns: whether the host is rid of it; FALSE also when it was not running.
 */
gboolean backup_fail(Backup *backup, const char *reason);

/**
 * backup_notify: an event about this backup.
 */
void backup_notify(Backup *backup, BeEventKind kind, int errnum, const char *text);

/**
 * backup_close_streams: ends all reads and closes the connections.  Blocks;
 * workers.  Twice is harmless.
 */
void backup_close_streams(Backup *backup);

/**
 * backup_release: closes the streams and removes the directories, locks and
 * processes.  Blocks; workers.  Done once: a second caller waits for the first,
 * because a failure and an rmdir may come together.
 */
void backup_release(Backup *backup);

/**
 * backup_job_is_ours: whether the backup job that runs on the domain is this one.
 * Returns: 1 yes, 0 no (none runs, or somebody else's), -1 with @error.
 */
int backup_job_is_ours(Backup *backup, virDomainPtr domain, GError **error);

/**
 * backup_recover: adopts or ends a backup of an earlier process (-o recover).
 * Blocks, for a second more where libvirt may still be beginning it; query workers.
 * Returns: whether its fate is settled; if not, it is to be asked again.
 */
gboolean backup_recover(Be *be, Backup *backup);

/**
 * backup_abort: ends the job on the host and waits until it is gone, at most
 * 45 s.  Closes the streams first: QEMU 7.2 can hang for ever when its NBD server
 * is stopped under a client.  TRUE also where there is none.  Blocks; workers.
 */
gboolean backup_abort(Backup *backup, GError **error);

/* ---- idle.c --------------------------------------------------------------------- */

/**
 * be_idle_watch: ends a listed backup that nobody has read for as long as
 * -o idle-end says; nothing where that is off.
 */
void be_idle_watch(Backup *backup);

/* ---- begin-live.c, begin-off.c ------------------------------------------------ */

/**
 * BackupPlan: what begin works with, from the request to the listed backup.
 */
typedef struct {
    Be *be;
    BeJob *job;                /* borrowed */
    char *uuid;
    char *name;
    char **only;               /* targets, or NULL */
    char *scratch_dir;         /* or NULL: the mount's */
    BeQuiesce quiesce;
    BeOfflineWay offline;
    BeCaller caller;
    char *since;               /* as in BeBackupOptions */
    char *since_file;
    char *checkpoint;
    char *chain;

    virDomainPtr domain;
    BeXmlDomain *xml;
    GPtrArray *chosen;         /* of const BeXmlDisk, owned by xml */
    Backup *backup;
    gboolean hold;             /* it is off, and started paused for this */
    gboolean uncertain;        /* the host may have begun it without our knowing */
    BeXmlDomain *running;      /* as `xml`, of the running machine, with its backing chains */
    GPtrArray *marked;         /* of const BeXmlDisk: get a bitmap; owned by xml */
    BeTrustRecord *record;     /* of its checkpoint, or NULL */
    BeTrustRecord *base;       /* of the checkpoint it starts from; NULL: none or not ours */
} BackupPlan;

/**
 * backup_scratch_dir: where its scratch directory is made; owned by the plan.
 */
const char *backup_scratch_dir(const BackupPlan *plan);

/**
 * backup_begin_live, backup_begin_off: the two ways, for a domain that runs (or
 * is held paused) and for the images of one that is off.  Action worker.
 */
gboolean backup_begin_live(BackupPlan *plan, GError **error);
gboolean backup_begin_off(BackupPlan *plan, GError **error);

/**
 * backup_step_record, backup_undo_record: the intent in the journal.
 * backup_step_list: the last step: from here on the user has it.
 */
gboolean backup_step_record(gpointer work, GError **error);
void backup_undo_record(gpointer work);
gboolean backup_step_list(gpointer work, GError **error);

/**
 * backup_step_extras: copies what belongs to the machine and is no disk.
 * backup_extra_path: where, to be freed with g_free(); it need not be there.
 * backup_remove_extras: removes the copies.
 * backup_open_extras: makes the streams of the copies that are there.
 * backup_fail_extras, backup_close_extras: as for the streams of the disks.
 */
gboolean backup_step_extras(gpointer work, GError **error);
char *backup_extra_path(const Backup *backup, BeExtra extra);
void backup_remove_extras(const Backup *backup);

/**
 * backup_tpm_path: where libvirt 9.0 keeps the state of an emulated TPM (qemu_tpm.c,
 * qemu_conf.c) of a machine with another UUID.  Free with g_free().
 */
char *backup_tpm_path(const Be *be, const BeXmlDomain *xml, const char *uuid);

/**
 * backup_boot_tpm_make: puts a copy of the TPM's state where libvirt looks for that of the
 * machine that boots from the backup.  Where there is none, or it is encrypted, that
 * machine gets a new TPM.  Blocks on local files; workers, as all here.
 * backup_boot_tpm_remove: removes it, unless libvirt has done so.
 */
gboolean backup_boot_tpm_make(const Backup *backup, GError **error);
void backup_boot_tpm_remove(const Backup *backup);
void backup_open_extras(Backup *backup);
void backup_fail_extras(Backup *backup, const char *reason);
void backup_close_extras(Backup *backup);

/**
 * be_offline_free: releases the locks; after the streams were closed.
 */
void be_offline_free(BeOffline *offline);

/* ---- journal.c ------------------------------------------------------------------ */

/**
 * be_journal_write: writes and syncs the record of a backup.
 */
gboolean be_journal_write(Backup *backup, GError **error);
void be_journal_remove(Be *be, const char *id);

/**
 * be_journal_mark: writes and syncs that a guest is about to be frozen.
 * be_journal_unmark: it is thawed.  be_journal_marks: (element char *): the
 * UUIDs that are marked.  Each at once, from the disk.
 */
gboolean be_journal_mark(Be *be, const char *uuid, GError **error);
void be_journal_unmark(Be *be, const char *uuid);
gboolean be_journal_is_marked(Be *be, const char *uuid);
GPtrArray *be_journal_marks(Be *be);

/**
 * be_journal_load: all records, for recovery: backups that are not listed, with
 * streams on their recorded socket.
 * Returns: (element Backup)
 */
GPtrArray *be_journal_load(Be *be);

/**
 * be_journal_parse: the backup of one record, for any input.
 * @record: what be_record_load() found
 * Returns: (transfer full): or NULL where it lacks what every record has.
 */
Backup *be_journal_parse(Be *be, JsonObject *record);

