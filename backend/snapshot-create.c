/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-create.c - a snapshot is asked for: what it takes in, what is refused.
 *
 * Submitted from any thread; runs on an action worker.  All that can be known to
 * fail is refused here, before anything is touched.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/freeze.h"
#include "backend/foreign-job.h"
#include "backend/snapshot-plan.h"

static void plan_free(gpointer data)
{
    SnapshotPlan *plan = data;

    if (plan->domain) {
        virDomainFree(plan->domain);
    }
    be_xml_domain_free(plan->xml);
    be_xml_snapshot_free(plan->wanted);
    g_free(plan->uuid);
    g_free(plan->name);
    g_strfreev(plan->only);
    g_free(plan->record_id);
    g_free(plan);
}

/* ---- Which disks -------------------------------------------------------------------- */

/* What libvirt leaves out of every snapshot; NULL: it has to be in. */
static const char *why_left_out(const BeXmlDisk *disk)
{
    if (disk->device == BE_XML_DEVICE_CDROM || disk->device == BE_XML_DEVICE_FLOPPY) {
        return "removable media";
    }
    if (disk->top.source == BE_XML_SOURCE_NONE) {
        return "an empty drive";
    }
    return disk->readonly ? "read-only" : NULL;
}

static const char *why_not_external(const BeXmlDisk *disk)
{
    if (disk->device == BE_XML_DEVICE_LUN) {
        return "it is a SCSI LUN that is passed through";
    }
    if (disk->top.source == BE_XML_SOURCE_BLOCK) {
        return "it is a block device, which has no place beside it for an overlay";
    }
    if (disk->top.source != BE_XML_SOURCE_FILE || !disk->top.path) {
        return "it is no file of this host";
    }
    if (disk->shareable) {
        return "it is shared with other machines, which would not see the overlay";
    }
    if (disk->transient) {
        return "it is transient: its changes are thrown away at the end";
    }
    return disk->top.format ? NULL : "the domain's XML names no format for it";
}

static const char *why_not_internal(const BeXmlDisk *disk)
{
    if (disk->device == BE_XML_DEVICE_LUN || disk->top.source != BE_XML_SOURCE_FILE) {
        return "it is no image file of this host";
    }
    return g_strcmp0(disk->top.format, "qcow2") == 0
               ? NULL
               : "only a qcow2 image can hold a snapshot inside";
}

static gboolean add_disk(SnapshotPlan *plan, const BeXmlDisk *disk, BePart part, GError **error)
{
    BeXmlSnapshotDisk *row = g_new0(BeXmlSnapshotDisk, 1);
    const char *why = part == BE_PART_EXTERNAL   ? why_not_external(disk)
                      : part == BE_PART_INTERNAL ? why_not_internal(disk)
                                                 : NULL;

    row->target = g_strdup(disk->target);
    row->part = part;
    g_ptr_array_add(plan->wanted->disks, row);
    if (why) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "no %s snapshot of disk '%s' can be made: %s%s", be_part_name(part),
                    disk->target, why,
                    part == BE_PART_EXTERNAL && !plan->only ? " (leave it out with only=...)" : "");
        return FALSE;
    }
    if (disk->mirrored) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "a block job runs on disk '%s' (virsh blockjob); wait for its end",
                    disk->target);
        return FALSE;
    }
    return TRUE;
}

static gboolean only_known(const SnapshotPlan *plan, GError **error)
{
    for (char **target = plan->only; target && *target; target++) {
        const BeXmlDisk *disk = be_xml_domain_disk(plan->xml, *target);
        const char *why = disk ? why_left_out(disk) : NULL;

        if (!disk) {
            g_set_error(error, BE_ERROR, EINVAL, "the domain has no disk '%s'", *target);
            return FALSE;
        }
        if (why) {
            g_set_error(error, BE_ERROR, EOPNOTSUPP, "disk '%s' cannot be in a snapshot: %s",
                        *target, why);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean choose_disks(SnapshotPlan *plan, BePart part, GError **error)
{
    guint taken = 0;

    if (!only_known(plan, error)) {
        return FALSE;
    }
    for (guint i = 0; i < plan->xml->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(plan->xml->disks, i);
        gboolean in = plan->only
                          ? g_strv_contains((const char *const *)plan->only, disk->target)
                          : why_left_out(disk) == NULL;

        if (!add_disk(plan, disk, in ? part : BE_PART_NONE, error)) {
            return FALSE;
        }
        taken += in;
    }
    if (taken == 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain has no disk of which a snapshot can be made");
    }
    return taken > 0;
}

/* ---- Which kind --------------------------------------------------------------------- */

static gboolean refuse(GError **error, int errnum, const char *text)
{
    g_set_error_literal(error, BE_ERROR, errnum, text);
    return FALSE;
}

/* What cannot be asked for, whatever the machine is. */
static gboolean options_fit(const BeSnapshotOptions *options, GError **error)
{
    gboolean memory = options->memory == BE_PART_INTERNAL || options->memory == BE_PART_EXTERNAL;

    if (memory && (options->quiesce == BE_QUIESCE_TRY || options->quiesce == BE_QUIESCE_REQUIRE)) {
        return refuse(error, EINVAL, "quiesce= and memory= do not go together: the guest would "
                                     "come back frozen");
    }
    if (options->live && options->memory != BE_PART_EXTERNAL) {
        return refuse(error, EINVAL, "live goes with memory=external only");
    }
    if (options->memory == BE_PART_INTERNAL && options->disk == BE_PART_EXTERNAL) {
        return refuse(error, EINVAL, "memory=internal is kept inside the images: disk=internal");
    }
    if (options->memory == BE_PART_EXTERNAL && options->disk == BE_PART_INTERNAL) {
        return refuse(error, EINVAL, "memory=external goes with disk=external only");
    }
    if (options->only
        && (options->disk == BE_PART_INTERNAL || options->memory == BE_PART_INTERNAL)) {
        return refuse(error, EINVAL, "an internal snapshot takes in all disks: no only=");
    }
    return TRUE;
}

/* A running machine keeps an internal snapshot together with its memory, or not at all. */
static gboolean find_kind(const SnapshotPlan *plan, BePart *ret_memory, BePart *ret_disk,
                          GError **error)
{
    const BeSnapshotOptions *options = &plan->asked;
    gboolean internal = options->disk == BE_PART_INTERNAL || options->memory == BE_PART_INTERNAL;

    *ret_disk = internal ? BE_PART_INTERNAL : BE_PART_EXTERNAL;
    *ret_memory = options->memory == BE_PART_EXTERNAL ? BE_PART_EXTERNAL : BE_PART_NONE;
    if (!plan->active) {
        return options->memory == BE_PART_NONE || options->memory == BE_PART_UNSAID
                   ? TRUE
                   : refuse(error, EINVAL, "the machine is off: it has no memory to keep");
    }
    if (internal && options->memory == BE_PART_NONE) {
        return refuse(error, EOPNOTSUPP, "an internal snapshot of a running machine keeps its "
                                         "memory, too: memory=internal, or disk=external");
    }
    if (internal) {
        *ret_memory = BE_PART_INTERNAL;
    }
    return TRUE;
}

static gboolean is_pflash(const BeXmlDomain *xml)
{
    return g_strcmp0(xml->loader_type, "pflash") == 0;
}

/* What libvirt or QEMU would refuse late, do badly, or wait for. */
static gboolean kind_fits(const SnapshotPlan *plan, BePart memory, BePart disk, GError **error)
{
    if (disk == BE_PART_INTERNAL && is_pflash(plan->xml)) {
        return refuse(error, EOPNOTSUPP, "internal snapshots do not hold the firmware's variables "
                                         "(pflash) of this machine: disk=external");
    }
    if (memory != BE_PART_NONE && plan->xml->has_hostdevs) {
        return refuse(error, EOPNOTSUPP, "the memory of a machine with host devices cannot be "
                                         "kept: memory=none");
    }
    if (memory != BE_PART_NONE && be_freeze_is_held(plan->be, plan->uuid)) {
        return refuse(error, EBUSY, "the guest is frozen by a command of yours, and would come "
                                    "back frozen; thaw it first");
    }
    if (!plan->active && virDomainHasManagedSaveImage(plan->domain, 0) == 1) {
        return refuse(error, EBUSY, "the machine's state is saved (virsh managedsave) and goes "
                                    "on with the disks as they are; start it first, or remove "
                                    "it (virsh managedsave-remove)");
    }
    if (!plan->active && plan->has_checkpoints && disk == BE_PART_INTERNAL) {
        return refuse(error, EOPNOTSUPP, "a machine that is off and has checkpoints takes no "
                                         "internal snapshot; start it first, or disk=external");
    }
    if (plan->active && !plan->running && plan->quiesce == BE_QUIESCE_REQUIRE) {
        return refuse(error, EHOSTDOWN, "quiesce=require: the machine is paused, and its guest "
                                        "agent with it");
    }
    return TRUE;
}

/* ---- The machine ---------------------------------------------------------------------- */

static gboolean look_at_domain(SnapshotPlan *plan, GError **error)
{
    int state = VIR_DOMAIN_NOSTATE;

    plan->domain = be_conn_domain(plan->be->action_conn, plan->uuid, error);
    if (!plan->domain) {
        return FALSE;
    }
    if (virDomainGetState(plan->domain, &state, NULL, 0) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    plan->active = state != VIR_DOMAIN_SHUTOFF && state != VIR_DOMAIN_CRASHED;
    plan->running = state == VIR_DOMAIN_RUNNING || state == VIR_DOMAIN_BLOCKED;
    plan->xml = be_domain_read(plan->domain, plan->active ? 0 : VIR_DOMAIN_XML_INACTIVE, error);
    plan->has_checkpoints = virDomainListAllCheckpoints(plan->domain, NULL, 0) > 0;
    return plan->xml != NULL;
}

static gboolean name_is_free(const SnapshotPlan *plan, GError **error)
{
    virDomainSnapshotPtr found = virDomainSnapshotLookupByName(plan->domain, plan->name, 0);

    if (!found) {
        if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_SNAPSHOT) {
            return TRUE;
        }
        be_error_from_libvirt(error, "cannot look for a snapshot of that name");
        return FALSE;
    }
    virDomainSnapshotFree(found);
    g_set_error(error, BE_ERROR, EEXIST, "the snapshot '%s' exists", plan->name);
    return FALSE;
}

static gboolean run_create(Be *be G_GNUC_UNUSED, BeJob *job, gpointer data, GError **error)
{
    SnapshotPlan *plan = data;
    BeXmlSnapshot *wanted = plan->wanted;
    BePart disk;

    plan->job = job;
    if (!look_at_domain(plan, error) || !name_is_free(plan, error)
        || !find_kind(plan, &wanted->memory, &disk, error)
        || !kind_fits(plan, wanted->memory, disk, error) || !choose_disks(plan, disk, error)
        || (plan->active && !be_domain_is_idle(plan->domain, plan->xml, error))) {
        return FALSE;
    }
    if (plan->quiesce == BE_QUIESCE_DEFAULT) {
        plan->quiesce = plan->be->quiesce;
    }
    if (wanted->memory != BE_PART_NONE || !plan->active) {
        plan->quiesce = BE_QUIESCE_OFF;
    }
    return snapshot_name_files(plan, error) && snapshot_make(plan, error);
}

/* What can be refused without asking the host; NULL: nothing. */
static GError *refusal(Be *be, const char *uuid, const BeSnapshotOptions *options)
{
    GError *error = NULL;
    g_autofree char *busy = NULL;

    if (be->read_only) {
        return g_error_new(BE_ERROR, EROFS, "this mount is read-only");
    }
    if (!options_fit(options, &error)) {
        return error;
    }
    if (!be_host_is_local(be)) {
        return g_error_new(BE_ERROR, EOPNOTSUPP,
                           "snapshots of a remote host are made on the host itself");
    }
    busy = be_domain_busy(be, uuid);
    return busy ? g_error_new_literal(BE_ERROR, EBUSY, busy) : NULL;
}

BeJob *be_snapshot_create(Be *be, const char *uuid, const char *name,
                          const BeSnapshotOptions *options, const BeCaller *caller, BeDone done,
                          gpointer user)
{
    BeSnapshotOptions asked = options ? *options : (BeSnapshotOptions){.live = FALSE};
    GError *error = refusal(be, uuid, &asked);
    g_autofree char *what = g_strdup_printf("snapshot %s", name);
    SnapshotPlan *plan;

    if (error) {
        return be_job_refuse(be, error, done, user);
    }
    plan = g_new0(SnapshotPlan, 1);
    plan->be = be;
    plan->uuid = g_strdup(uuid);
    plan->name = g_strdup(name);
    plan->only = g_strdupv((char **)asked.only);
    plan->asked = asked;
    plan->asked.only = (const char *const *)plan->only;
    plan->asked.description = NULL;
    plan->quiesce = asked.quiesce;
    plan->caller = *caller;
    plan->wanted = be_xml_snapshot_new(name, asked.description);
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, what, run_create, plan, plan_free, done, user);
}
