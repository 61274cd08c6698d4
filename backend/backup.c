/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup.c - the list of backups, the state of each, and how one is failed.
 *
 * Any thread for the accessors; workers for what blocks.  The list's lock and
 * a backup's lock are held for field work only.
 */
#include "backend/backup.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/chain.h"
#include "backend/checkpoint.h"
#include "backend/disk.h"
#include "backend/blockjob.h"
#include "backend/error.h"
#include "backend/files.h"
#include "backend/freeze.h"
#include "backend/nbd.h"
#include "backend/scratch.h"
#include "backend/snapshot.h"
#include "backend/step.h"

struct BeBackups {
    GMutex lock;
    GPtrArray *list;           /* of Backup, oldest first; guarded by lock */
    guint64 bytes_before;      /* that were read of backups that ended; guarded by lock */
    GPtrArray *orphans;        /* of Backup, of the journal, fate unknown; guarded by lock */
    GPtrArray *half_made;      /* of BeTrustRecord, fate unknown; guarded by lock; NULL: none */
};

/* ---- Names of enums ----------------------------------------------------------- */

static const char *const state_names[] = {
    [BE_BACKUP_RUNNING] = "running",
    [BE_BACKUP_ENDING] = "ending",
    [BE_BACKUP_FAILED] = "failed",
    [BE_BACKUP_GONE] = "gone",
};

const char *be_backup_state_name(BeBackupState state)
{
    return state_names[state];
}

static const char *const consistency_names[] = {
    [BE_CONSISTENCY_APPLICATION] = "application",
    [BE_CONSISTENCY_FILESYSTEM] = "filesystem",
    [BE_CONSISTENCY_CRASH] = "crash",
    [BE_CONSISTENCY_OFFLINE] = "offline",
};

const char *be_consistency_name(BeConsistency consistency)
{
    return consistency_names[consistency];
}

/* ---- One backup ---------------------------------------------------------------- */

Backup *backup_new(Be *be, const char *id, const char *name, const char *domain_uuid,
                   const char *domain_name)
{
    g_autofree char *what = g_strdup_printf("the backup '%s' of '%s'", name, domain_name);
    Backup *backup = g_new0(Backup, 1);

    g_atomic_ref_count_init(&backup->pub.refs);
    g_mutex_init(&backup->lock);
    g_cond_init(&backup->scratch_cond);
    g_cond_init(&backup->released_cond);
    backup->be = be;
    backup->rate = be_rate_new(0);
    backup->pub.id = g_strdup(id);
    backup->pub.name = g_strdup(name);
    backup->pub.domain_uuid = g_strdup(domain_uuid);
    backup->pub.domain_name = g_strdup(domain_name);
    backup->pub.consistency = BE_CONSISTENCY_CRASH;
    backup->pub.disks = g_ptr_array_new_with_free_func(be_disk_free);
    backup->files = be_files_new(be->files_pool, what, backup->pub.disks);
    return backup;
}

void backup_add_disk(Backup *backup, const char *target, guint64 size, guint64 allocated,
                     BeStream *stream)
{
    g_ptr_array_add(backup->pub.disks, be_disk_new(target, size, allocated, stream));
}

char *backup_bitmap_name(const char *target)
{
    return g_strconcat("backup-", target, NULL);
}

void backup_open_disk(const Backup *backup, BeDisk *disk)
{
    g_autofree char *bitmap = disk->has_base ? backup_bitmap_name(disk->target) : NULL;
    BeNbdExport nbd = {.socket = backup->socket, .name = disk->target, .size = disk->size,
                       .allocated = disk->allocated, .dirty_bitmap = bitmap};

    disk->stream = be_stream_new_nbd_export(&nbd);
    if (disk->has_base) {
        g_autofree char *base =
            g_strdup_printf("../%s/%s.qcow2", backup->pub.base, disk->target);

        be_disk_set_backing(disk, base, "qcow2");
    }
}

BeBackup *be_backup_ref(BeBackup *backup)
{
    g_atomic_ref_count_inc(&backup->refs);
    return backup;
}

void be_backup_unref(BeBackup *pub)
{
    Backup *backup = (Backup *)pub;

    if (!pub || !g_atomic_ref_count_dec(&pub->refs)) {
        return;
    }
    be_files_close(backup->files);
    be_files_unref(backup->files);
    be_offline_free(backup->offline);
    g_ptr_array_unref(pub->disks);
    for (BeExtra extra = 0; extra < BE_EXTRA_COUNT; extra++) {
        be_stream_unref(pub->extras[extra]);
    }
    g_free(pub->id);
    g_free(pub->name);
    g_free(pub->domain_uuid);
    g_free(pub->domain_name);
    g_free(pub->domain_xml);
    g_free(pub->backup_xml);
    be_rate_unref(backup->rate);
    g_free(pub->chain);
    g_free(pub->since);
    g_free(pub->base);
    g_free(pub->checkpoint);
    g_free(backup->replaces);
    g_free(backup->run_path);
    g_free(backup->scratch_path);
    g_free(backup->socket);
    g_free(backup->reason);
    g_cond_clear(&backup->scratch_cond);
    g_cond_clear(&backup->released_cond);
    g_mutex_clear(&backup->lock);
    g_free(backup);
}

BeFiles *be_backup_files(BeBackup *pub)
{
    return ((Backup *)pub)->files;
}

BeBackupState be_backup_state(BeBackup *pub, char **ret_reason)
{
    Backup *backup = (Backup *)pub;
    BeBackupState state;

    g_mutex_lock(&backup->lock);
    state = backup->state;
    if (ret_reason) {
        *ret_reason = g_strdup(backup->reason);
    }
    g_mutex_unlock(&backup->lock);
    return state;
}

void backup_set_state(Backup *backup, BeBackupState state, const char *reason)
{
    g_mutex_lock(&backup->lock);
    backup->state = state;
    g_free(backup->reason);
    backup->reason = g_strdup(reason);
    g_mutex_unlock(&backup->lock);
}

gboolean backup_change_state(Backup *backup, BeBackupState from, BeBackupState to,
                             const char *reason)
{
    gboolean was;

    g_mutex_lock(&backup->lock);
    was = backup->state == from;
    if (was) {
        backup->state = to;
        g_free(backup->reason);
        backup->reason = g_strdup(reason);
    }
    g_mutex_unlock(&backup->lock);
    return was;
}

void backup_notify(Backup *backup, BeEventKind kind, int errnum, const char *text)
{
    BeEvent event = {.kind = kind, .time_us = g_get_real_time(),
                     .domain_uuid = backup->pub.domain_uuid,
                     .domain_name = backup->pub.domain_name, .object_id = backup->pub.id,
                     .object_name = backup->pub.name, .errnum = errnum, .text = text};

    be_notify(backup->be, &event);
}

/* ---- The list -------------------------------------------------------------------- */

static void unref_backup(gpointer backup)
{
    be_backup_unref(backup);
}

BeBackups *be_backups_new(Be *be G_GNUC_UNUSED)
{
    BeBackups *backups = g_new0(BeBackups, 1);

    g_mutex_init(&backups->lock);
    backups->list = g_ptr_array_new_with_free_func(unref_backup);
    backups->orphans = g_ptr_array_new_with_free_func(unref_backup);
    return backups;
}

void be_backups_free(BeBackups *backups)
{
    if (!backups) {
        return;
    }
    g_ptr_array_unref(backups->list);
    g_ptr_array_unref(backups->orphans);
    g_clear_pointer(&backups->half_made, g_ptr_array_unref);
    g_mutex_clear(&backups->lock);
    g_free(backups);
}

void be_backups_list(Be *be, Backup *backup)
{
    for (guint i = 0; i < backup->pub.disks->len; i++) {
        be_disk_set_rate(g_ptr_array_index(backup->pub.disks, i), backup->rate);
    }
    g_mutex_lock(&be->backups->lock);
    g_ptr_array_add(be->backups->list, be_backup_ref(&backup->pub));
    g_mutex_unlock(&be->backups->lock);
}

void be_backups_unlist(Be *be, Backup *backup)
{
    gboolean listed;

    g_mutex_lock(&be->backups->lock);
    be_backup_ref(&backup->pub);
    listed = g_ptr_array_remove(be->backups->list, backup);
    be->backups->bytes_before += listed ? backup_progress(backup).bytes : 0;
    g_mutex_unlock(&be->backups->lock);
    be_backup_unref(&backup->pub);
    if (!listed) {
        g_debug("backup '%s' was not listed", backup->pub.name);
    }
}

/* @uuid NULL: of all domains. */
static GPtrArray *copy_list(Be *be, const char *uuid)
{
    GPtrArray *copy = g_ptr_array_new_with_free_func(unref_backup);

    g_mutex_lock(&be->backups->lock);
    for (guint i = 0; i < be->backups->list->len; i++) {
        BeBackup *pub = g_ptr_array_index(be->backups->list, i);

        if (!uuid || g_str_equal(pub->domain_uuid, uuid)) {
            g_ptr_array_add(copy, be_backup_ref(pub));
        }
    }
    g_mutex_unlock(&be->backups->lock);
    return copy;
}

GPtrArray *be_backups(Be *be, const char *uuid)
{
    return copy_list(be, uuid);
}

Backup *be_backups_find(Be *be, const char *uuid, const char *name)
{
    g_autoptr(GPtrArray) backups = copy_list(be, uuid);

    for (guint i = 0; i < backups->len; i++) {
        BeBackup *pub = g_ptr_array_index(backups, i);

        if (g_str_equal(pub->name, name)) {
            return (Backup *)be_backup_ref(pub);
        }
    }
    return NULL;
}

Backup *be_backups_in_the_way(Be *be, const char *uuid)
{
    g_autoptr(GPtrArray) backups = copy_list(be, uuid);

    for (guint i = 0; i < backups->len; i++) {
        BeBackup *pub = g_ptr_array_index(backups, i);
        BeBackupState state = be_backup_state(pub, NULL);

        if (state == BE_BACKUP_RUNNING || state == BE_BACKUP_ENDING) {
            return (Backup *)be_backup_ref(pub);
        }
    }
    return NULL;
}

void be_backups_print(Be *be, GString *out)
{
    g_autoptr(GPtrArray) backups = copy_list(be, NULL);
    guint64 bytes, rate = 0;

    g_mutex_lock(&be->backups->lock);
    bytes = be->backups->bytes_before;
    g_mutex_unlock(&be->backups->lock);
    for (guint i = 0; i < backups->len; i++) {
        BackupProgress progress = backup_progress(g_ptr_array_index(backups, i));

        bytes += progress.bytes;
        rate += progress.rate;
    }
    g_string_append_printf(out, "backups: %u\n", backups->len);
    g_string_append_printf(out, "bytes-read: %" G_GUINT64_FORMAT "\n", bytes);
    g_string_append_printf(out, "bytes-per-second: %" G_GUINT64_FORMAT "\n", rate);
}

/* ---- Still there? ------------------------------------------------------------------ */

/* A guest that shuts down loses its jobs a moment before it is off. */
static gboolean is_stopping(virDomainPtr domain)
{
    int state;

    return virDomainGetState(domain, &state, NULL, 0) == 0
           && (state == VIR_DOMAIN_SHUTDOWN || state == VIR_DOMAIN_SHUTOFF
               || state == VIR_DOMAIN_CRASHED);
}

/*
 * A start that our lock makes fail is active for a moment, too: it is one only
 * when QEMU has got past its disks.
 */
static gboolean has_started(virDomainPtr domain)
{
    int state, reason;

    return virDomainGetState(domain, &state, &reason, 0) == 0
           && (state == VIR_DOMAIN_RUNNING
               || (state == VIR_DOMAIN_PAUSED && reason != VIR_DOMAIN_PAUSED_STARTING_UP));
}

/* NULL: it runs as it should, was dealt with here, or that cannot be known now. */
static const char *why_gone(Backup *backup, GError **error)
{
    g_autoptr(BeVirDomain) domain =
        be_conn_domain(backup->be->query_conn, backup->pub.domain_uuid, error);
    int active;

    if (!domain) {
        return (*error)->code == ENOENT ? "the domain is gone" : NULL;
    }
    active = virDomainIsActive(domain);
    if (backup->off) {
        return active == 1 && has_started(domain)
                   ? "the domain was started; its images are no longer those of then"
                   : NULL;
    }
    if (active == 1 && be_scratch_stalls(backup, domain)) {
        be_scratch_rescue(backup);
        return NULL;
    }
    if (active == 0 || (active == 1 && is_stopping(domain))) {
        return "the domain stopped during the backup";
    }
    return active == 1 && backup_job_is_ours(backup, domain, error) == 0
               ? "the backup job was ended by somebody else, or by an error of QEMU"
               : NULL;
}

static void check_on_worker(Be *be, gpointer data)
{
    g_autoptr(GPtrArray) backups = copy_list(be, data);

    be_freezes_recover(be);
    be_pauses_recover(be);
    be_block_jobs_recover(be);
    be_backups_recover(be);
    be_reverts_recover(be);
    be_snapshots_recover(be);
    /* An event of some domain is no reason to begin anew what was told to have failed. */
    be_deletes_recover(be, !data);
    for (guint i = 0; i < backups->len; i++) {
        Backup *backup = g_ptr_array_index(backups, i);
        g_autoptr(GError) error = NULL;
        const char *reason;

        if (be_backup_state(&backup->pub, NULL) != BE_BACKUP_RUNNING) {
            be_scratch_resume(backup); /* the pause may be told after the end */
            continue;
        }
        reason = why_gone(backup, &error);
        if (reason) {
            backup_fail(backup, reason);
        }
    }
}

void be_backups_check(Be *be, const char *uuid)
{
    if (!g_atomic_int_get(&be->stopping)) {
        be_query(be, check_on_worker, g_strdup(uuid), g_free);
    }
}

/* ---- After a crash ------------------------------------------------------------------- */

void be_backups_load(Be *be)
{
    GPtrArray *recorded = be->read_only ? NULL : be_journal_load(be);
    GPtrArray *half_made = be->read_only ? NULL : be_checkpoints_load(be);

    if (recorded) {
        g_mutex_lock(&be->backups->lock);
        g_ptr_array_extend_and_steal(be->backups->orphans, recorded);
        be->backups->half_made = half_made;
        g_mutex_unlock(&be->backups->lock);
    }
}

void be_backups_orphan(Be *be, Backup *backup)
{
    g_mutex_lock(&be->backups->lock);
    g_ptr_array_add(be->backups->orphans, be_backup_ref(&backup->pub));
    g_mutex_unlock(&be->backups->lock);
}

void be_backups_recover(Be *be)
{
    g_autoptr(GPtrArray) orphans = NULL;
    g_autoptr(GPtrArray) half_made = NULL;

    g_mutex_lock(&be->backups->lock);
    half_made = g_steal_pointer(&be->backups->half_made);
    orphans = be->backups->orphans;
    be->backups->orphans = g_ptr_array_new_with_free_func(unref_backup);
    g_mutex_unlock(&be->backups->lock);
    for (guint i = 0; i < orphans->len; i++) {
        Backup *backup = g_ptr_array_index(orphans, i);

        if (!backup_recover(be, backup)) {
            be_backups_orphan(be, backup);
        }
    }
    if (half_made) {
        be_checkpoints_recover(be, half_made);
        g_mutex_lock(&be->backups->lock);
        be->backups->half_made = g_steal_pointer(&half_made);
        g_mutex_unlock(&be->backups->lock);
    }
}
