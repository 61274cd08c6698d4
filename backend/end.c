/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * end.c - the end of a backup: the job on the host, then all that belonged to it.
 *
 * Action worker.  Every part is harmless when it was done already, so an end
 * that was interrupted is simply run again.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "backend/backup.h"
#include "backend/disk.h"
#include "backend/error.h"
#include "backend/step.h"

/* While a guest boots QEMU takes half a minute to let a job go (facts). */
#define ABORT_WAIT_US (45 * G_USEC_PER_SEC)
#define ABORT_POLL_US (20 * 1000)
#define ABORT_AGAIN_US (2 * G_USEC_PER_SEC)

static void abort_job(virDomainPtr domain)
{
    g_autoptr(GError) error = NULL;

    if (virDomainAbortJob(domain) < 0) {
        be_error_from_libvirt(&error, "cannot abort the backup job");
        g_info("%s", error->message);
    }
}

/* An abort that failed is sent again: libvirt may have had no time for it. */
static gboolean wait_until_gone(Backup *backup, virDomainPtr domain, GError **error)
{
    gint64 until_us = g_get_monotonic_time() + ABORT_WAIT_US;
    gint64 again_us = g_get_monotonic_time() + ABORT_AGAIN_US;

    while (TRUE) {
        int ours = backup_job_is_ours(backup, domain, error);

        if (ours <= 0) {
            return ours == 0;
        }
        if (g_get_monotonic_time() > until_us) {
            g_set_error(error, BE_ERROR, ETIMEDOUT,
                        "libvirt still runs the backup job %d s after it was told to end",
                        (int)(ABORT_WAIT_US / G_USEC_PER_SEC));
            return FALSE;
        }
        if (g_get_monotonic_time() > again_us) {
            abort_job(domain);
            again_us = g_get_monotonic_time() + ABORT_AGAIN_US;
        }
        g_usleep(ABORT_POLL_US);
    }
}

/*
 * The answer of virDomainAbortJob() is not believed: it has said "cannot
 * acquire state change lock" of a job that was gone (facts).  What counts is
 * whether the job is still there.
 */
gboolean backup_abort(Backup *backup, GError **error)
{
    g_autoptr(GError) domain_error = NULL;
    g_autoptr(BeVirDomain) domain =
        be_conn_domain(backup->be->action_conn, backup->pub.domain_uuid, &domain_error);
    int ours;

    if (!domain) {
        if (domain_error->code == ENOENT) {
            return TRUE;
        }
        g_propagate_error(error, g_steal_pointer(&domain_error));
        return FALSE;
    }
    ours = backup_job_is_ours(backup, domain, error);
    if (ours <= 0) {
        return ours == 0;
    }
    backup_close_streams(backup);
    abort_job(domain);
    return wait_until_gone(backup, domain, error);
}

/* ---- The job --------------------------------------------------------------------------- */

static gboolean run_end(Be *be, BeJob *job, gpointer data, GError **error)
{
    Backup *backup = data;
    BeBackupState before = be_backup_state(&backup->pub, NULL);

    if (before == BE_BACKUP_GONE) {
        return TRUE;
    }
    (void)be_job_no_return(job);
    backup_set_state(backup, BE_BACKUP_ENDING, NULL);
    be_crash_point("backup-end", "abort", "before");
    if (!backup->off && !backup_abort(backup, error)) {
        /* Not reached: as before.  Reached, and it did not end: nothing can be read. */
        backup_set_state(backup, (*error)->code == ETIMEDOUT ? BE_BACKUP_FAILED : before,
                         (*error)->message);
        return FALSE;
    }
    be_crash_point("backup-end", "abort", "after");
    backup_release(backup);
    be_crash_point("backup-end", "release", "after");
    be_journal_remove(be, backup->pub.id);
    be_crash_point("backup-end", "record", "after");
    be_backups_unlist(be, backup);
    backup_set_state(backup, BE_BACKUP_GONE, NULL);
    backup_notify(backup, BE_EVENT_BACKUP_ENDED, 0, NULL);
    return TRUE;
}

static void unref_backup(gpointer data)
{
    be_backup_unref(data);
}

BeJob *be_backup_end(Be *be, BeBackup *backup, BeDone done, gpointer user)
{
    g_autofree char *what = g_strdup_printf("end of backup %s", backup->name);

    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    return be_job_submit(be, backup->domain_uuid, BE_JOB_WAITS, what, run_end,
                         be_backup_ref(backup), unref_backup, done, user);
}

static void ended_at_stop(const GError *error, gpointer user G_GNUC_UNUSED)
{
    if (error) {
        g_warning("a backup was not ended: %s", error->message);
    }
}

void be_backups_end_all(Be *be)
{
    g_autoptr(GPtrArray) backups = be_backups(be, NULL);

    for (guint i = 0; i < backups->len; i++) {
        be_job_unref(be_backup_end(be, g_ptr_array_index(backups, i), ended_at_stop, NULL));
    }
}

void be_backups_abandon(Be *be)
{
    g_autoptr(GPtrArray) backups = be_backups(be, NULL);

    for (guint i = 0; i < backups->len; i++) {
        Backup *backup = g_ptr_array_index(backups, i);

        for (guint j = 0; j < backup->pub.disks->len; j++) {
            be_disk_fail(g_ptr_array_index(backup->pub.disks, j), "vmsnapfs ends");
        }
        if (backup->off) {
            backup_release(backup);
            be_journal_remove(be, backup->pub.id);
        } else {
            g_warning("backup '%s' of '%s' may still run; the next start looks after it",
                      backup->pub.name, backup->pub.domain_name);
        }
    }
}
