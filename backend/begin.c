/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * begin.c - the start of a backup: what both ways have in common.
 *
 * Submitted from any thread; runs on an action worker.  begin-live.c and
 * begin-off.c have the steps.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/step.h"

/* So often a checkpoint that proves broken is passed over for an older one. */
#define TRIES 3

/* What one try has found out; another begins anew. */
static void plan_clear(BackupPlan *plan)
{
    if (plan->backup) {
        be_backup_unref(&plan->backup->pub);
        plan->backup = NULL;
    }
    g_clear_pointer(&plan->chosen, g_ptr_array_unref);
    g_clear_pointer(&plan->marked, g_ptr_array_unref);
    g_clear_pointer(&plan->record, be_trust_record_free);
    g_clear_pointer(&plan->base, be_trust_record_free);
    g_clear_pointer(&plan->running, be_xml_domain_free);
    g_clear_pointer(&plan->xml, be_xml_domain_free);
}

static void plan_free(gpointer data)
{
    BackupPlan *plan = data;

    if (plan->domain) {
        virDomainFree(plan->domain);
    }
    plan_clear(plan);
    g_free(plan->uuid);
    g_free(plan->name);
    g_strfreev(plan->only);
    g_free(plan->scratch_dir);
    g_free(plan->since);
    g_free(plan->since_file);
    g_free(plan->checkpoint);
    g_free(plan->chain);
    g_free(plan);
}

/* ---- Which disks ---------------------------------------------------------------- */

/* Why a disk cannot be in a backup; NULL: it can. */
static const char *why_not(const BeXmlDisk *disk)
{
    if (disk->device == BE_XML_DEVICE_CDROM || disk->device == BE_XML_DEVICE_FLOPPY) {
        return "removable media";
    }
    if (disk->device == BE_XML_DEVICE_LUN) {
        return "a SCSI LUN that is passed through";
    }
    if (disk->top.source == BE_XML_SOURCE_NONE) {
        return "an empty drive";
    }
    if (disk->top.source == BE_XML_SOURCE_DIR || disk->top.source == BE_XML_SOURCE_VHOSTUSER
        || disk->top.source == BE_XML_SOURCE_OTHER) {
        return "a kind of source that QEMU cannot back up";
    }
    return disk->readonly ? "read-only" : NULL;
}

static void tell_left_out(const BackupPlan *plan, const BeXmlDisk *disk, const char *why)
{
    g_autofree char *text = g_strdup_printf("disk '%s' (%s) is left out of the backup: %s",
                                            disk->target, be_xml_device_name(disk->device), why);
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = g_get_real_time(),
                     .domain_uuid = plan->uuid, .domain_name = plan->xml->name,
                     .object_name = plan->name, .errnum = EOPNOTSUPP, .text = text};

    be_notify(plan->be, &event);
}

static gboolean only_known(const BackupPlan *plan, GError **error)
{
    for (char **target = plan->only; target && *target; target++) {
        const BeXmlDisk *disk = be_xml_domain_disk(plan->xml, *target);
        const char *why = disk ? why_not(disk) : NULL;

        if (!disk) {
            g_set_error(error, BE_ERROR, EINVAL, "the domain has no disk '%s'", *target);
            return FALSE;
        }
        if (why) {
            g_set_error(error, BE_ERROR, EOPNOTSUPP, "disk '%s' cannot be backed up: %s", *target,
                        why);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean choose_disks(BackupPlan *plan, GError **error)
{
    plan->chosen = g_ptr_array_new();
    if (!only_known(plan, error)) {
        return FALSE;
    }
    for (guint i = 0; i < plan->xml->disks->len; i++) {
        BeXmlDisk *disk = g_ptr_array_index(plan->xml->disks, i);
        const char *why = why_not(disk);

        if (plan->only) {
            if (g_strv_contains((const char *const *)plan->only, disk->target)) {
                g_ptr_array_add(plan->chosen, disk);
            }
        } else if (why) {
            tell_left_out(plan, disk, why);
        } else {
            g_ptr_array_add(plan->chosen, disk);
        }
    }
    if (plan->chosen->len == 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "the domain has no disk that can be backed up");
        return FALSE;
    }
    return TRUE;
}

const char *backup_scratch_dir(const BackupPlan *plan)
{
    return plan->scratch_dir ? plan->scratch_dir : plan->be->scratch_dir;
}

/* ---- Steps of both ways ----------------------------------------------------------- */

gboolean backup_step_record(gpointer work, GError **error)
{
    BackupPlan *plan = work;

    return be_journal_write(plan->backup, error);
}

/*
 * Where the host may have begun the backup and could not be asked to end it,
 * the record is what will have it ended later.
 */
void backup_undo_record(gpointer work)
{
    BackupPlan *plan = work;

    if (plan->uncertain) {
        be_backups_orphan(plan->be, plan->backup);
    } else {
        be_journal_remove(plan->be, plan->backup->pub.id);
    }
}

gboolean backup_step_list(gpointer work, GError **error)
{
    BackupPlan *plan = work;

    if (!be_job_no_return(plan->job)) {
        g_set_error(error, BE_ERROR, ECANCELED, "cancelled");
        return FALSE;
    }
    plan->backup->stage = BACKUP_LISTED;
    if (!be_journal_write(plan->backup, error)) {
        plan->backup->stage = BACKUP_BEGUN;
        return FALSE;
    }
    be_backups_list(plan->be, plan->backup);
    be_idle_watch(plan->backup);
    backup_notify(plan->backup, BE_EVENT_BACKUP_STARTED, 0, NULL);
    return TRUE;
}

/* ---- The job ------------------------------------------------------------------------ */

static gboolean read_domain(BackupPlan *plan, gboolean active, GError **error)
{
    unsigned flags = active ? 0 : VIR_DOMAIN_XML_INACTIVE;
    char *xml = virDomainGetXMLDesc(plan->domain, flags);
    g_autofree char *id = g_uuid_string_random();

    if (!xml) {
        be_error_from_libvirt(error, "cannot read the domain's XML");
        return FALSE;
    }
    plan->xml = be_xml_domain_parse(xml, error);
    if (plan->xml) {
        plan->backup = backup_new(plan->be, id, plan->name, plan->uuid, plan->xml->name);
        plan->backup->pub.owner = plan->caller;
        plan->backup->pub.domain_xml = g_strdup(xml);
    }
    free(xml);
    return plan->xml && choose_disks(plan, error);
}

gboolean be_offline_way_parse(const char *word, BeOfflineWay *ret_way)
{
    if (!g_str_equal(word, "image") && !g_str_equal(word, "paused")) {
        return FALSE;
    }
    *ret_way = g_str_equal(word, "paused") ? BE_OFFLINE_PAUSED : BE_OFFLINE_IMAGE;
    return TRUE;
}

/*
 * A checkpoint that was believed and then found out (EUCLEAN) is marked: the next
 * try starts from an older one.  The last is full: a backup never fails because
 * an old checkpoint is broken, unless that one was asked for by name.
 */
static gboolean begin_live(BackupPlan *plan, gboolean active, GError **error)
{
    gboolean named = plan->since && !g_str_equal(plan->since, "latest");

    for (guint try = 1;; try++) {
        g_autoptr(GError) failure = NULL;

        if (read_domain(plan, active, &failure) && backup_begin_live(plan, &failure)) {
            return TRUE;
        }
        if (named || failure->code != EUCLEAN || try > TRIES || plan->uncertain) {
            g_propagate_error(error, g_steal_pointer(&failure));
            return FALSE;
        }
        backup_notify(plan->backup, BE_EVENT_WARNING, failure->code, failure->message);
        if (try == TRIES) {
            g_free(plan->since);
            plan->since = g_strdup("none");
        }
        plan_clear(plan);
    }
}

static gboolean run_begin(Be *be, BeJob *job, gpointer data, GError **error)
{
    BackupPlan *plan = data;
    int active;

    plan->job = job;
    plan->domain = be_conn_domain(be->action_conn, plan->uuid, error);
    if (!plan->domain) {
        return FALSE;
    }
    active = virDomainIsActive(plan->domain);
    if (active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    plan->hold = !active && plan->offline == BE_OFFLINE_PAUSED;
    return active || plan->hold
               ? begin_live(plan, active == 1, error)
               : read_domain(plan, FALSE, error) && backup_begin_off(plan, error);
}

char *be_domain_busy(Be *be, const char *uuid)
{
    Backup *backup = be_backups_in_the_way(be, uuid);
    g_autofree char *held = be_paused_held(be, uuid);
    g_autoptr(GDateTime) since = NULL;
    g_autofree char *when = NULL;
    char *text;

    if (!backup) {
        return be_jobs_running(be, uuid);
    }
    since = g_date_time_new_from_unix_local(backup->pub.created_us / G_USEC_PER_SEC);
    when = g_date_time_format(since, "%F %H:%M:%S");
    text = be_backup_state(&backup->pub, NULL) == BE_BACKUP_ENDING
               ? g_strdup_printf("backup '%s' is ending; wait until it is gone", backup->pub.name)
               : g_strdup_printf("backup '%s' is running since %s%s; end it with rmdir backups/%s",
                                 backup->pub.name, when,
                                 held ? ", and the machine, which is off, is held paused for it"
                                      : "",
                                 backup->pub.name);
    be_backup_unref(&backup->pub);
    return text;
}

/* What can be refused without asking the host; NULL: nothing. */
static GError *refusal(Be *be, const char *uuid, const char *name)
{
    Backup *same = be_backups_find(be, uuid, name);
    g_autofree char *busy = NULL;

    if (be->read_only) {
        return g_error_new(BE_ERROR, EROFS, "this mount is read-only");
    }
    if (same) {
        be_backup_unref(&same->pub);
        return g_error_new(BE_ERROR, EEXIST, "the backup '%s' exists", name);
    }
    if (!be_host_is_local(be)) {
        return g_error_new(BE_ERROR, EOPNOTSUPP,
                           "backups of a remote host are not there yet; mount on the host itself");
    }
    busy = be_domain_busy(be, uuid);
    return busy ? g_error_new_literal(BE_ERROR, EBUSY, busy) : NULL;
}

BeJob *be_backup_begin(Be *be, const char *uuid, const char *name, const BeBackupOptions *options,
                       const BeCaller *caller, BeDone done, gpointer user)
{
    GError *error = refusal(be, uuid, name);
    g_autofree char *what = g_strdup_printf("backup %s", name);
    BackupPlan *plan;

    if (error) {
        return be_job_refuse(be, error, done, user);
    }
    plan = g_new0(BackupPlan, 1);
    plan->be = be;
    plan->uuid = g_strdup(uuid);
    plan->name = g_strdup(name);
    plan->only = options ? g_strdupv((char **)options->only) : NULL;
    plan->scratch_dir = options ? g_strdup(options->scratch_dir) : NULL;
    plan->quiesce = options && options->quiesce ? options->quiesce : be->quiesce;
    plan->offline = options && options->offline ? options->offline : be->offline;
    plan->caller = *caller;
    plan->since = options ? g_strdup(options->since) : NULL;
    plan->since_file = options ? g_strdup(options->since_file) : NULL;
    plan->checkpoint = options ? g_strdup(options->checkpoint) : NULL;
    plan->chain = g_strdup(options && options->chain ? options->chain : be->chain);
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, what, run_begin, plan, plan_free, done, user);
}
