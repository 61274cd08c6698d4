/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * begin-off.c - a backup of a domain that is off: its images, under QEMU's own
 * image lock.
 *
 * Nothing is started at mkdir: the lock is taken, and the first read of a disk
 * does the rest (image-stream.c).  As long as the lock is held a start of the
 * domain fails (Failed to get "write" lock).  Action worker.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/chain.h"
#include "backend/error.h"
#include "backend/image-stream.h"
#include "backend/imagelock.h"
#include "backend/step.h"

/* One disk: its chain and the lock on it; what reads it belongs to its stream. */
typedef struct {
    GPtrArray *chain;          /* of BeImage */
    BeImageLock *lock;
} OfflineDisk;

struct BeOffline {
    GPtrArray *disks;          /* of OfflineDisk */
};

static void offline_disk_free(gpointer data)
{
    OfflineDisk *disk = data;

    be_image_lock_free(disk->lock);
    g_clear_pointer(&disk->chain, g_ptr_array_unref);
    g_free(disk);
}

void be_offline_free(BeOffline *offline)
{
    if (offline) {
        g_ptr_array_unref(offline->disks);
        g_free(offline);
    }
}

/* ---- Before the first step ---------------------------------------------------------- */

/*
 * The lock of a block device belongs to its node in /dev, and libvirt gives each
 * QEMU a /dev of its own: the machine would start, and write under the backup.
 * What is below the top is opened for reading alone, and the top's lock keeps the
 * machine off.
 */
static gboolean lock_holds(const GPtrArray *chain, const char *target, GError **error)
{
    const BeImage *top = g_ptr_array_index(chain, 0);

    if (top->block_device) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "disk '%s' is the block device '%s', which cannot be locked against a start "
                    "of the machine; use offline=paused, or start the machine to back it up",
                    target, top->path);
    }
    return !top->block_device;
}

static gboolean inspect(BackupPlan *plan, const BeXmlDisk *disk, GError **error)
{
    const BeXmlLevel *top = &disk->top;
    OfflineDisk *offline;
    GPtrArray *chain;

    if ((top->source != BE_XML_SOURCE_FILE && top->source != BE_XML_SOURCE_BLOCK) || !top->path
        || top->sliced || top->encrypted) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "disk '%s' is no plain local image (%s); start the domain to back it up",
                    disk->target, be_xml_source_name(top->source));
        return FALSE;
    }
    if (!top->format) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain's XML names no format for disk '%s', and formats are not guessed",
                    disk->target);
        return FALSE;
    }
    chain = be_image_chain_inspect(top->path, top->format, error);
    if (!chain) {
        return FALSE;
    }
    if (!lock_holds(chain, disk->target, error)) {
        g_ptr_array_unref(chain);
        return FALSE;
    }
    offline = g_new0(OfflineDisk, 1);
    offline->chain = chain;
    g_ptr_array_add(plan->backup->offline->disks, offline);
    backup_add_disk(plan->backup, disk->target, be_image_chain_size(chain),
                    be_image_chain_allocated(chain), NULL);
    return TRUE;
}

/* The memory of a machine with a managed save image holds what its disks lack. */
static gboolean find_consistency(BackupPlan *plan, GError **error)
{
    int saved = virDomainHasManagedSaveImage(plan->domain, 0);

    if (saved < 0) {
        be_error_from_libvirt(error, "cannot ask for a managed save image");
        return FALSE;
    }
    plan->backup->pub.consistency = saved ? BE_CONSISTENCY_CRASH : BE_CONSISTENCY_OFFLINE;
    return TRUE;
}

static gboolean inspect_all(BackupPlan *plan, GError **error)
{
    plan->backup->off = TRUE;
    plan->backup->pub.chain = g_strdup(plan->chain);
    plan->backup->offline = g_new0(BeOffline, 1);
    plan->backup->offline->disks = g_ptr_array_new_with_free_func(offline_disk_free);
    for (guint i = 0; i < plan->chosen->len; i++) {
        if (!inspect(plan, g_ptr_array_index(plan->chosen, i), error)) {
            return FALSE;
        }
    }
    return find_consistency(plan, error);
}

/* ---- Steps ---------------------------------------------------------------------------- */

static gboolean run_record(gpointer work, GError **error)
{
    BackupPlan *plan = work;

    plan->backup->run_path = be_dirs_random(plan->be->run_dir, error);
    plan->backup->scratch_path =
        plan->backup->run_path ? be_dirs_random(backup_scratch_dir(plan), error) : NULL;
    return plan->backup->scratch_path && backup_step_record(plan, error);
}

static gboolean run_directories(gpointer work, GError **error)
{
    BackupPlan *plan = work;

    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);
    uid_t uid;
    gid_t gid;

    /* A machine that boots from the backup writes to the scratch directory. */
    return conn
           && be_host_qemu_identity(plan->be, conn, plan->xml->dac_label, &uid, &gid, error)
           && be_dirs_private(plan->backup->run_path, geteuid(), getegid(), error)
           && be_dirs_private(plan->backup->scratch_path, uid, gid, error);
}

static void undo_directories(gpointer work)
{
    BackupPlan *plan = work;

    backup_release(plan->backup);
}

/* From here on no QEMU opens an image for writing. */
static gboolean run_lock(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    const GPtrArray *disks = plan->backup->offline->disks;

    for (guint i = 0; i < disks->len; i++) {
        OfflineDisk *disk = g_ptr_array_index(disks, i);

        disk->lock = be_image_lock_take(disk->chain, error);
        if (!disk->lock) {
            return FALSE;
        }
    }
    plan->backup->pub.created_us = g_get_real_time();
    return TRUE;
}

/*
 * It was off when it was looked at; the lock stands now, so this answer holds.
 */
static gboolean run_check(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    int active = virDomainIsActive(plan->domain);

    if (active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
    } else if (active) {
        g_set_error(error, BE_ERROR, EBUSY, "the domain was started in this moment; try again");
    }
    return active == 0;
}

static gboolean run_describe(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    Backup *backup = plan->backup;
    BeImageSource source = {.directory = backup->run_path};

    backup->pub.backup_xml = g_strdup("");
    for (guint i = 0; i < backup->pub.disks->len; i++) {
        BeDisk *disk = g_ptr_array_index(backup->pub.disks, i);
        OfflineDisk *offline = g_ptr_array_index(backup->offline->disks, i);

        source.chain = offline->chain;
        disk->stream = be_stream_new_image(&source, error);
        if (!disk->stream) {
            return FALSE;
        }
    }
    return TRUE;
}

static const BeStep off_steps[] = {
    {"record", run_record, backup_undo_record},
    {"directories", run_directories, undo_directories},
    {"extras", backup_step_extras, NULL},
    {"lock", run_lock, NULL},
    {"check", run_check, NULL},
    {"describe", run_describe, NULL},
    {"list", backup_step_list, NULL},
    {NULL, NULL, NULL},
};

gboolean backup_begin_off(BackupPlan *plan, GError **error)
{
    return backup_chain_refuse(plan, error) && inspect_all(plan, error)
           && be_steps_run("backup-off", off_steps, plan, plan->job, error);
}
