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
#include "backend/chain.h"
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

typedef struct {
    Backup *backup;
    BeVerdict verdict;
} Ending;

static void ending_free(gpointer data)
{
    Ending *ending = data;

    be_backup_unref(&ending->backup->pub);
    g_free(ending);
}

/* The next increment starts from what somebody has: who does not have this is told. */
static void tell_dropped(Backup *backup, const char *why)
{
    g_autofree char *text =
        g_strdup_printf("backup '%s' was not taken: %s; its checkpoint '%s' is removed again (end "
                        "keep keeps it)",
                        backup->pub.name, why, backup->pub.checkpoint);

    backup_notify(backup, BE_EVENT_WARNING, ENODATA, text);
}

/*
 * Decided once, and written down before anything is done about it: what was
 * decided before a crash is done after it.
 */
static void decide(Backup *backup, BeVerdict verdict, char **ret_why)
{
    g_autoptr(GError) error = NULL;
    gboolean drop = backup->stage == BACKUP_DOOMED || verdict == BE_VERDICT_DROP;

    if (!backup->pub.checkpoint || backup->fate != BACKUP_UNDECIDED) {
        return;
    }
    drop = drop || (verdict == BE_VERDICT_TAKEN && !backup_chain_was_taken(backup, ret_why));
    backup->fate = drop ? BACKUP_DROPS : BACKUP_KEEPS;
    if (!be_journal_write(backup, &error)) {
        g_warning("what becomes of checkpoint '%s' cannot be recorded: %s",
                  backup->pub.checkpoint, error->message);
    }
}

/*
 * The checkpoint first: a machine that is held paused goes with the rest.  What
 * cannot be done to it now is done later, from the record.
 */
static void take_away(Be *be, Backup *backup)
{
    g_autoptr(GError) error = NULL;
    gboolean settled = backup_chain_settle(backup, &error);

    be_crash_point("backup-end", "settle", "after");
    backup_release(backup);
    be_crash_point("backup-end", "release", "after");
    if (settled) {
        be_journal_remove(be, backup->pub.id);
        return;
    }
    backup_notify(backup, BE_EVENT_WARNING, error->code, error->message);
    be_backups_orphan(be, backup);
}

static gboolean run_end(Be *be, BeJob *job, gpointer data, GError **error)
{
    Ending *ending = data;
    Backup *backup = ending->backup;
    BeBackupState before = be_backup_state(&backup->pub, NULL);
    BackupFate fate = backup->fate;
    g_autofree char *why = NULL;

    if (before == BE_BACKUP_GONE) {
        return TRUE;
    }
    (void)be_job_no_return(job);
    backup_set_state(backup, BE_BACKUP_ENDING, NULL);
    decide(backup, ending->verdict, &why);
    be_crash_point("backup-end", "abort", "before");
    if (!backup->off && !backup_abort(backup, error)) {
        /* Not reached: as before.  Reached, and it did not end: nothing can be read. */
        backup_set_state(backup, (*error)->code == ETIMEDOUT ? BE_BACKUP_FAILED : before,
                         (*error)->message);
        backup->fate = fate;
        return FALSE;
    }
    be_crash_point("backup-end", "abort", "after");
    take_away(be, backup);
    be_crash_point("backup-end", "record", "after");
    if (why) {
        tell_dropped(backup, why);
    }
    be_backups_unlist(be, backup);
    backup_set_state(backup, BE_BACKUP_GONE, NULL);
    backup_notify(backup, BE_EVENT_BACKUP_ENDED, 0, NULL);
    return TRUE;
}

BeJob *be_backup_end(Be *be, BeBackup *backup, BeVerdict verdict, BeDone done, gpointer user)
{
    g_autofree char *what = g_strdup_printf("end of backup %s", backup->name);
    Ending *ending;

    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    ending = g_new0(Ending, 1);
    ending->backup = (Backup *)be_backup_ref(backup);
    ending->verdict = verdict;
    return be_job_submit(be, backup->domain_uuid, BE_JOB_WAITS, what, run_end, ending, ending_free,
                         done, user);
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
        be_job_unref(be_backup_end(be, g_ptr_array_index(backups, i), BE_VERDICT_TAKEN,
                                   ended_at_stop, NULL));
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
