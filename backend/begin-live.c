/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * begin-live.c - a backup of a running domain: libvirt's pull mode.  Also of one that
 * is off, and started paused for it (paused.h).
 *
 * QEMU copies what the guest overwrites into scratch images and serves the disk
 * as it was over NBD on a unix socket (virDomainBackupBegin; QEMU
 * docs/interop/live-block-operations.rst).  Action worker.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/chain.h"
#include "backend/checkpoint.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/quiesce.h"
#include "backend/scratch.h"
#include "backend/step.h"

/* ---- Before the first step: nothing is changed yet ------------------------------- */

/* A job of somebody else would make virDomainBackupBegin() wait 30 s for its lock. */
static gboolean nothing_runs(BackupPlan *plan, GError **error)
{
    return plan->hold || be_domain_is_idle(plan->domain, NULL, error);
}

static gboolean measure_disk(BackupPlan *plan, const BeXmlDisk *disk, GError **error)
{
    g_autofree char *what = g_strdup_printf("cannot ask for the size of disk '%s'", disk->target);
    virDomainBlockInfo info;

    if (virDomainGetBlockInfo(plan->domain, disk->target, &info, 0) < 0) {
        be_error_from_libvirt(error, what);
        return FALSE;
    }
    backup_add_disk(plan->backup, disk->target, info.capacity, MIN(info.allocation, info.capacity),
                    NULL);
    return TRUE;
}

static gboolean measure(BackupPlan *plan, GError **error)
{
    for (guint i = 0; i < plan->chosen->len; i++) {
        if (!measure_disk(plan, g_ptr_array_index(plan->chosen, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- Steps -------------------------------------------------------------------------- */

/* Chooses the places first, so that the journal knows them before they exist. */
static gboolean run_record(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    Backup *backup = plan->backup;

    backup->run_path = be_dirs_random(plan->be->run_dir, error);
    backup->scratch_path =
        backup->run_path ? be_dirs_random(backup_scratch_dir(plan), error) : NULL;
    if (!backup->scratch_path) {
        return FALSE;
    }
    backup->socket = g_build_filename(backup->run_path, "nbd.sock", NULL);
    return backup_step_record(plan, error);
}

static gboolean run_hold(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    g_autofree char *what = g_strdup_printf("backup '%s'", plan->name);

    if (plan->hold) {
        plan->backup->paused = be_paused_start(plan->be, plan->domain, what, error);
    }
    return !plan->hold || plan->backup->paused;
}

/* The machine and the directories: both go with the backup, as at its end. */
static void undo_hold(gpointer work)
{
    BackupPlan *plan = work;

    if (!plan->uncertain) {
        backup_release(plan->backup);
    }
}

static gboolean run_directories(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);
    uid_t uid;
    gid_t gid;

    return conn
           && be_host_qemu_identity(plan->be, conn, plan->xml->dac_label, &uid, &gid, error)
           && be_dirs_private(plan->backup->run_path, uid, gid, error)
           && be_dirs_private(plan->backup->scratch_path, uid, gid, error);
}

static void backup_disk_free(gpointer data)
{
    BeXmlBackupDisk *disk = data;

    g_free(disk->export_bitmap);
    g_free(disk->scratch);
    g_free(disk);
}

static const BeDisk *disk_of(const BackupPlan *plan, const BeXmlDisk *disk)
{
    guint index;

    return g_ptr_array_find(plan->chosen, disk, &index)
               ? g_ptr_array_index(plan->backup->pub.disks, index)
               : NULL;
}

static char *build_xml(const BackupPlan *plan, GError **error)
{
    g_autoptr(GPtrArray) disks = g_ptr_array_new_with_free_func(backup_disk_free);

    for (guint i = 0; i < plan->xml->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(plan->xml->disks, i);
        BeXmlBackupDisk *row = g_new0(BeXmlBackupDisk, 1);
        g_autofree char *file = g_strconcat(disk->target, ".qcow2", NULL);
        const BeDisk *ours = disk_of(plan, disk);

        row->target = disk->target;
        row->backup = ours != NULL;
        if (ours && ours->has_base) {
            row->incremental = plan->backup->pub.since;
            row->export_bitmap = backup_bitmap_name(ours->target);
        }
        row->scratch =
            row->backup ? g_build_filename(plan->backup->scratch_path, file, NULL) : NULL;
        g_ptr_array_add(disks, row);
    }
    return be_xml_backup_build(plan->backup->socket, disks, error);
}

/* Somebody may have resumed it in this moment: then its disks are no more at rest. */
static gboolean is_still_paused(const BackupPlan *plan)
{
    int state;

    return virDomainGetState(plan->domain, &state, NULL, 0) == 0 && state == VIR_DOMAIN_PAUSED;
}

/* One call inside the window; of a machine that we hold paused there is nothing to freeze. */
static gboolean run_begin(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    BeBackup *pub = &plan->backup->pub;
    g_autofree char *xml = build_xml(plan, error);
    g_autofree char *checkpoint =
        xml && pub->checkpoint ? backup_chain_xml(plan, error) : NULL;
    BeWindow window;
    gboolean begun;

    if (!xml || (pub->checkpoint && !checkpoint)
        || !be_quiesce_begin(plan->be, plan->domain, plan->uuid,
                             plan->hold ? BE_QUIESCE_OFF : plan->quiesce,
                             plan->xml->agent_connected, &window, error)) {
        return FALSE;
    }
    begun = virDomainBackupBegin(plan->domain, xml, checkpoint, 0) == 0;
    if (!begun) {
        be_error_from_libvirt(error, "libvirt cannot begin the backup");
    }
    pub->created_us = g_get_real_time();
    be_quiesce_end(plan->be, plan->domain, plan->uuid, "backup-begin", &window);
    pub->frozen_us = window.frozen_us;
    if (plan->hold && is_still_paused(plan)) {
        pub->consistency = BE_CONSISTENCY_OFFLINE;
    } else {
        pub->consistency = window.consistency;
    }
    return begun;
}

/* Harmless where the job never began: it is not ours then. */
static void undo_begin(gpointer work)
{
    BackupPlan *plan = work;
    g_autoptr(GError) error = NULL;

    if (!backup_abort(plan->backup, &error)) {
        g_warning("the backup '%s' may still run: %s", plan->name, error->message);
        plan->uncertain = error->code != ENOENT;
        return;
    }
    g_clear_error(&error);
    /* libvirt 9.0 leaves the checkpoint where the begin fails after making it. */
    if (!backup_chain_settle(plan->backup, &error)) {
        g_warning("the checkpoint of backup '%s' is still there: %s", plan->name, error->message);
        plan->uncertain = TRUE;
    }
}

/* Reads back what libvirt made of it, and gives each disk its stream. */
static gboolean run_describe(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    Backup *backup = plan->backup;
    char *xml = virDomainBackupGetXMLDesc(plan->domain, 0);

    if (!xml) {
        be_error_from_libvirt(error, "the backup began and is gone already");
        return FALSE;
    }
    backup->pub.backup_xml = g_strdup(xml);
    free(xml);
    for (guint i = 0; i < backup->pub.disks->len; i++) {
        backup_open_disk(backup, g_ptr_array_index(backup->pub.disks, i));
    }
    return TRUE;
}

static gboolean run_list(gpointer work, GError **error)
{
    BackupPlan *plan = work;

    if (!backup_step_list(plan, error)) {
        return FALSE;
    }
    be_scratch_watch(plan->backup);
    return TRUE;
}

static const BeStep live_steps[] = {
    {"record", run_record, backup_undo_record},
    {"hold", run_hold, undo_hold},
    {"directories", run_directories, NULL},
    {"extras", backup_step_extras, NULL},
    {"checkpoint", backup_chain_step_plan, backup_chain_undo_plan},
    {"begin", run_begin, undo_begin},
    {"confirm", backup_chain_step_confirm, NULL},
    {"describe", run_describe, NULL},
    {"list", run_list, NULL},
    {NULL, NULL, NULL},
};

/*
 * A guest is paused when its disk has an error, and can go on, unless the
 * disk's error_policy hands the error to it: then there must be no error.
 */
static guint64 sure_bytes(const BackupPlan *plan)
{
    guint64 bytes = 0;

    for (guint i = 0; i < plan->chosen->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(plan->chosen, i);
        const BeDisk *measured = g_ptr_array_index(plan->backup->pub.disks, i);

        if (g_strcmp0(disk->error_policy, "report") == 0
            || g_strcmp0(disk->error_policy, "ignore") == 0) {
            bytes += measured->allocated;
        }
    }
    return bytes;
}

gboolean backup_begin_live(BackupPlan *plan, GError **error)
{
    const char *scratch = backup_scratch_dir(plan);

    return nothing_runs(plan, error) && measure(plan, error)
           && be_scratch_check_start(plan->be, scratch, sure_bytes(plan), error)
           && be_steps_run("backup-begin", live_steps, plan, plan->job, error);
}
