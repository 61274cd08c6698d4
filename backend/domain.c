/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * domain.c - what is asked of a domain and what is done with it as a whole.
 *
 * Queries on query workers, actions on action workers.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/blockjob.h"
#include "backend/error.h"
#include "backend/freeze.h"
#include "backend/merge-progress.h"

/* ---- Texts -------------------------------------------------------------------------- */

static char *make_xml(Be *be, virConnectPtr conn G_GNUC_UNUSED, const char *uuid, GError **error)
{
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, uuid, error);
    char *xml = domain ? virDomainGetXMLDesc(domain, 0) : NULL;

    if (domain && !xml) {
        be_error_from_libvirt(error, "cannot read the domain's XML");
    }
    return xml;
}

void be_domain_xml_fetch(Be *be, const char *uuid, BeTextDone done, gpointer user)
{
    be_text_query(be, uuid, make_xml, done, user);
}

static const char *const operation_names[] = {
    [VIR_DOMAIN_JOB_OPERATION_UNKNOWN] = "unknown",
    [VIR_DOMAIN_JOB_OPERATION_START] = "start",
    [VIR_DOMAIN_JOB_OPERATION_SAVE] = "save",
    [VIR_DOMAIN_JOB_OPERATION_RESTORE] = "restore",
    [VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN] = "migration-in",
    [VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT] = "migration-out",
    [VIR_DOMAIN_JOB_OPERATION_SNAPSHOT] = "snapshot",
    [VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT] = "snapshot-revert",
    [VIR_DOMAIN_JOB_OPERATION_DUMP] = "dump",
    [VIR_DOMAIN_JOB_OPERATION_BACKUP] = "backup",
};

static const char *operation_name(virTypedParameterPtr params, int count)
{
    int operation = VIR_DOMAIN_JOB_OPERATION_UNKNOWN;

    (void)virTypedParamsGetInt(params, count, VIR_DOMAIN_JOB_OPERATION, &operation);
    return operation >= 0 && (gsize)operation < G_N_ELEMENTS(operation_names)
                   && operation_names[operation]
               ? operation_names[operation]
               : "unknown";
}

/* A job that is not ours: what libvirt tells of it, without waiting for it. */
static void print_foreign_job(virDomainPtr domain, GString *out)
{
    virTypedParameterPtr params = NULL;
    int count = 0, type = VIR_DOMAIN_JOB_NONE;

    if (virDomainGetJobStats(domain, &type, &params, &count, 0) == 0
        && type != VIR_DOMAIN_JOB_NONE) {
        unsigned long long elapsed_ms = 0;

        (void)virTypedParamsGetULLong(params, count, VIR_DOMAIN_JOB_TIME_ELAPSED, &elapsed_ms);
        g_string_append_printf(out, "kind: %s\nobject: of another program\nseconds: %llu\n",
                               operation_name(params, count), elapsed_ms / 1000);
    }
    virTypedParamsFree(params, count);
}

static char *make_job(Be *be, virConnectPtr conn G_GNUC_UNUSED, const char *uuid, GError **error)
{
    GString *out = g_string_new(NULL);
    Backup *backup = be_backups_in_the_way(be, uuid);
    g_autofree char *running = be_jobs_running(be, uuid);
    g_autoptr(BeVirDomain) domain = NULL;

    if (backup) {
        be_backup_job_print(&backup->pub, out);
        be_backup_unref(&backup->pub);
        be_paused_print(be, uuid, out);
    } else if (be_block_jobs_print(be, uuid, out)) {
        ;                      /* printed */
    } else if (be->freezes && be_freeze_print(be, uuid, out)) {
        ;                      /* printed */
    } else if (be_progress_print(uuid, out)) {
        ;                      /* printed */
    } else if (running) {
        g_string_append_printf(out, "kind: action\nobject: %s\n", running);
        be_paused_print(be, uuid, out);
    } else {
        domain = be_conn_domain(be->query_conn, uuid, error);
        if (domain && virDomainIsActive(domain) == 1) {
            print_foreign_job(domain, out);
        }
    }
    return g_string_free(out, FALSE);
}

void be_domain_job_fetch(Be *be, const char *uuid, BeTextDone done, gpointer user)
{
    be_text_query(be, uuid, make_job, done, user);
}

/* ---- Suspend and resume ---------------------------------------------------------------- */

typedef struct {
    char *uuid;
    gboolean suspend;
} Pause;

static void pause_free(gpointer data)
{
    Pause *pause = data;

    g_free(pause->uuid);
    g_free(pause);
}

static gboolean run_pause(Be *be, BeJob *job G_GNUC_UNUSED, gpointer data, GError **error)
{
    const Pause *pause = data;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->action_conn, pause->uuid, error);
    int state, result;

    if (!domain || !be_domain_may_change_state(be, pause->uuid, error)) {
        return FALSE;
    }
    if (virDomainGetState(domain, &state, NULL, 0) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    /* libvirt takes a second suspend as done; who scripts it wants to know. */
    if (state != (pause->suspend ? VIR_DOMAIN_RUNNING : VIR_DOMAIN_PAUSED)) {
        g_set_error(error, BE_ERROR, EINVAL, "the domain is not %s",
                    pause->suspend ? "running" : "paused");
        return FALSE;
    }
    result = pause->suspend ? virDomainSuspend(domain) : virDomainResume(domain);
    if (result < 0) {
        be_error_from_libvirt(error, pause->suspend ? "cannot suspend" : "cannot resume");
        return FALSE;
    }
    return be_inventory_read(be, error);
}

static BeJob *submit_pause(Be *be, const char *uuid, gboolean suspend, BeDone done, gpointer user)
{
    Pause *pause;

    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    pause = g_new0(Pause, 1);
    pause->uuid = g_strdup(uuid);
    pause->suspend = suspend;
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, suspend ? "suspend" : "resume", run_pause,
                         pause, pause_free, done, user);
}

BeJob *be_domain_suspend(Be *be, const char *uuid, BeDone done, gpointer user)
{
    return submit_pause(be, uuid, TRUE, done, user);
}

BeJob *be_domain_resume(Be *be, const char *uuid, BeDone done, gpointer user)
{
    return submit_pause(be, uuid, FALSE, done, user);
}
