/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup-recover.c - whose backup job runs on a domain, and what becomes of a backup
 * that the journal knows and this process has not begun.
 *
 * Workers; recovery on query workers.
 */
#include "backend/backup.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdlib.h>

#include "backend/chain.h"
#include "backend/error.h"
#include "backend/scratch.h"
#include "backend/step.h"
#include "backend/xml.h"

typedef enum { JOB_UNKNOWN = -1, JOB_NONE, JOB_OURS, JOB_OTHER } WhoseJob;

static WhoseJob whose_job(const Backup *backup, virDomainPtr domain, GError **error)
{
    char *xml = virDomainBackupGetXMLDesc(domain, 0);
    g_autoptr(BeXmlBackup) parsed = NULL;

    if (!xml) {
        virErrorPtr err = virGetLastError();

        if (err && (err->code == VIR_ERR_NO_DOMAIN_BACKUP || err->code == VIR_ERR_NO_DOMAIN
                    || err->code == VIR_ERR_OPERATION_INVALID)) {
            return JOB_NONE;
        }
        be_error_from_libvirt(error, "cannot ask for the backup job");
        return JOB_UNKNOWN;
    }
    parsed = be_xml_backup_parse(xml, error);
    free(xml);
    if (!parsed) {
        return JOB_UNKNOWN;
    }
    return g_strcmp0(parsed->socket, backup->socket) == 0 ? JOB_OURS : JOB_OTHER;
}

int backup_job_is_ours(Backup *backup, virDomainPtr domain, GError **error)
{
    WhoseJob whose = whose_job(backup, domain, error);

    return whose == JOB_OTHER ? 0 : (int)whose;
}

/* ---- After a crash ---- */

/* Who had a backup before the crash finds it gone, and should find out why. */
static void tell_ended(Backup *backup, gboolean ran)
{
    if (backup->stage == BACKUP_BEGUN) {
        g_info("removed what was left of the backup '%s'", backup->pub.name);
        return;
    }
    backup_notify(backup, BE_EVENT_BACKUP_ENDED, 0,
                  backup->stage == BACKUP_DOOMED
                      ? "it had failed before a restart; what was left of it is removed"
                  : ran ? "ended after a restart (-o recover=end)"
                        : "it did not outlive a restart; what was left of it is removed");
}

/* An error, too: of a backup that begins libvirt has no statistics yet. */
static gboolean job_is_under_way(virDomainPtr domain)
{
    virDomainJobInfo info;

    return virDomainIsActive(domain) == 1
           && (virDomainGetJobInfo(domain, &info) < 0 || info.type != VIR_DOMAIN_JOB_NONE);
}

#define RECOVER_AGAIN_MS 2000
#define BEGIN_LOOKS 10
#define BEGIN_LOOK_US (100 * 1000)

/*
 * libvirt goes on with the call in which we died: a job of which it cannot say yet what
 * it is may become ours, and nobody would end it then.  Looked at twice at least: the
 * call may not even have been taken up.
 *
 * Returns: as backup_job_is_ours(); EAGAIN: not known yet.
 */
static int begun_job_is_ours(Backup *backup, virDomainPtr domain, GError **error)
{
    for (guint i = 0; i < BEGIN_LOOKS; i++) {
        gboolean under_way = job_is_under_way(domain);
        WhoseJob whose = whose_job(backup, domain, error);

        if (whose != JOB_NONE || (!under_way && i > 1)) {
            return whose == JOB_OTHER ? 0 : (int)whose;
        }
        g_usleep(BEGIN_LOOK_US);
    }
    g_set_error(error, BE_ERROR, EAGAIN, "a job is under way that may be its own");
    return -1;
}

static void recover_on_worker(Be *be, gpointer data G_GNUC_UNUSED)
{
    be_backups_recover(be);
}

static gboolean recover_again(gpointer data)
{
    Be *be = data;

    if (!g_atomic_int_get(&be->stopping)) {
        be_query(be, recover_on_worker, NULL, NULL);
    }
    return G_SOURCE_REMOVE;
}

static void recover_later(Be *be)
{
    g_source_unref(be_timer_add(be, RECOVER_AGAIN_MS, recover_again, be, NULL));
}

static int orphan_job_is_ours(Be *be, Backup *backup, virDomainPtr domain, GError **error)
{
    g_autoptr(GError) failure = NULL;
    int ours;

    if (backup->stage != BACKUP_BEGUN) {
        return backup_job_is_ours(backup, domain, error);
    }
    ours = begun_job_is_ours(backup, domain, &failure);
    if (failure && failure->code == EAGAIN) {
        recover_later(be);
    }
    if (failure) {
        g_propagate_error(error, g_steal_pointer(&failure));
    }
    return ours;
}

gboolean backup_recover(Be *be, Backup *backup)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, backup->pub.domain_uuid, &error);
    gboolean settled;
    int ours = 0;

    /* Its machine is about to be turned off: this is no backup to be given back.  Another
     * worker may be at that, and be done before the caller has put the backup back. */
    if (be_paused_is_left(be, backup->pub.domain_uuid)) {
        recover_later(be);
        return FALSE;
    }
    be_crash_point("recover", "look", "before");
    if (domain && backup->socket) {
        ours = orphan_job_is_ours(be, backup, domain, &error);
    }
    if (error && error->code != ENOENT) {
        g_warning("backup '%s' cannot be looked at: %s", backup->pub.name, error->message);
        return FALSE;
    }
    g_clear_error(&error);
    if (ours == 1 && backup->stage == BACKUP_LISTED && backup->fate == BACKUP_UNDECIDED
        && be->recover == BE_RECOVER_ADOPT) {
        be_backups_list(be, backup);
        be_scratch_watch(backup);
        be_idle_watch(backup);
        backup_notify(backup, BE_EVENT_BACKUP_STARTED, 0, "taken up again after a restart");
        be_crash_point("recover", "adopt", "after");
        return TRUE;
    }
    if (ours == 1 && be_scratch_stalls(backup, domain)) {
        g_atomic_int_set(&backup->scratch_full, 1);
    }
    if (ours == 1 && !backup_abort(backup, &error)) {
        g_warning("backup '%s' cannot be ended: %s", backup->pub.name, error->message);
        return FALSE;
    }
    be_crash_point("recover", "abort", "after");
    settled = backup_chain_settle(backup, &error);
    be_scratch_resume(backup);
    backup_release(backup);
    be_crash_point("recover", "release", "after");
    if (!settled) {
        g_warning("the checkpoint of backup '%s' is left: %s", backup->pub.name, error->message);
        return FALSE;
    }
    be_journal_remove(be, backup->pub.id);
    be_crash_point("recover", "record", "after");
    tell_ended(backup, ours == 1);
    return TRUE;
}
