/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * release.c - how a backup fails, and how all that belonged to it goes.
 *
 * Workers, several at once for one backup: a failure, an rmdir and the guard over
 * scratch space may come together.  A backup's lock is held for field work only.
 */
#include <errno.h>

#include "backend/backup.h"
#include "backend/chain.h"
#include "backend/disk.h"
#include "backend/files.h"
#include "backend/scratch.h"
#include "backend/step.h"

void backup_close_streams(Backup *backup)
{
    be_files_close(backup->files);
    for (guint i = 0; i < backup->pub.disks->len; i++) {
        be_disk_close(g_ptr_array_index(backup->pub.disks, i));
    }
    backup_close_extras(backup);
}

/* Whether the caller is the one to release; if not, it has been done. */
static gboolean release_begin(Backup *backup)
{
    gboolean first;

    g_mutex_lock(&backup->lock);
    while (backup->releasing) {
        g_cond_wait(&backup->released_cond, &backup->lock);
    }
    first = !backup->released;
    backup->releasing = first;
    g_mutex_unlock(&backup->lock);
    return first;
}

static void release_end(Backup *backup)
{
    g_mutex_lock(&backup->lock);
    backup->releasing = FALSE;
    backup->released = TRUE;
    g_cond_broadcast(&backup->released_cond);
    g_mutex_unlock(&backup->lock);
}

/* Before the directories: QEMU has files in them. */
static void end_hold(Backup *backup)
{
    g_autoptr(GError) error = NULL;

    if (backup->paused && !be_paused_end(g_steal_pointer(&backup->paused), &error)) {
        g_warning("the machine of backup '%s' may still be paused: %s", backup->pub.name,
                  error->message);
    }
}

void backup_release(Backup *backup)
{
    if (!release_begin(backup)) {
        return;
    }
    backup_close_streams(backup);
    g_clear_pointer(&backup->offline, be_offline_free);
    end_hold(backup);
    if (backup->run_path) {
        be_dirs_remove(backup->run_path);
    }
    if (backup->scratch_path) {
        be_dirs_remove(backup->scratch_path);
    }
    backup_boot_tpm_remove(backup);
    backup_remove_extras(backup);
    release_end(backup);
}

/* ---- Failing ------------------------------------------------------------------ */

#define SETTLE_AGAIN_MS 2000

static gboolean settle_later(gpointer data);

static void unref_backup(gpointer backup)
{
    be_backup_unref(backup);
}

/*
 * Has the host end the job, and removes what belonged to it.  As long as the
 * job may run, QEMU writes to the scratch images: they and the record stay, and
 * this is tried again.
 */
static gboolean settle(Backup *backup)
{
    g_autoptr(GError) error = NULL;
    gboolean ended = backup->off || backup_abort(backup, &error);
    /* While a machine that is held paused is still there. */
    gboolean settled = ended && backup_chain_settle(backup, &error);

    if (ended) {
        be_crash_point("backup-fail", "abort", "after");
        be_scratch_resume(backup);
        backup_release(backup);
        be_crash_point("backup-fail", "release", "after");
    }
    if (!settled) {
        g_warning("backup '%s' failed and cannot be ended yet: %s", backup->pub.name,
                  error->message);
        g_source_unref(be_timer_add(backup->be, SETTLE_AGAIN_MS, settle_later,
                                    be_backup_ref(&backup->pub), unref_backup));
        return FALSE;
    }
    be_journal_remove(backup->be, backup->pub.id);
    be_crash_point("backup-fail", "record", "after");
    return TRUE;
}

/*
 * Should we die before the host has ended it, the next start must not give a
 * failed backup back as a good one.
 */
static void doom(Backup *backup)
{
    g_autoptr(GError) error = NULL;

    backup->stage = BACKUP_DOOMED;
    if (!be_journal_write(backup, &error)) {
        g_warning("backup '%s' failed, and that cannot be recorded: %s", backup->pub.name,
                  error->message);
    }
}

static void settle_on_worker(Be *be G_GNUC_UNUSED, gpointer data)
{
    Backup *backup = data;

    if (be_backup_state(&backup->pub, NULL) == BE_BACKUP_FAILED) {
        settle(backup);
    }
}

static gboolean settle_later(gpointer data)
{
    Backup *backup = data;

    if (!g_atomic_int_get(&backup->be->stopping)) {
        be_query(backup->be, settle_on_worker, be_backup_ref(&backup->pub), unref_backup);
    }
    return G_SOURCE_REMOVE;
}

gboolean backup_fail(Backup *backup, const char *reason)
{
    if (!backup_change_state(backup, BE_BACKUP_RUNNING, BE_BACKUP_FAILED, reason)) {
        return FALSE;
    }
    for (guint i = 0; i < backup->pub.disks->len; i++) {
        be_disk_fail(g_ptr_array_index(backup->pub.disks, i), reason);
    }
    backup_fail_extras(backup, reason);
    doom(backup);
    backup_notify(backup, BE_EVENT_BACKUP_FAILED, EIO, reason);
    be_crash_point("backup-fail", "settle", "before");
    return settle(backup);
}
