/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * revert-check.c - whether a revert can be done, before anything is touched.
 *
 * Action worker.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/statvfs.h>

#include "backend/backup.h"
#include "backend/change.h"
#include "backend/error.h"
#include "backend/revert.h"

BeRevertTo revert_wants(const RevertPlan *plan)
{
    const char *state;

    if (plan->to != BE_REVERT_AS_WAS) {
        return plan->to;
    }
    state = plan->snapshot->xml->state;
    if (g_str_equal(state, "running")) {
        return BE_REVERT_RUNNING;
    }
    return g_str_equal(state, "paused") ? BE_REVERT_PAUSED : BE_REVERT_OFF;
}

/* ---- The machine ----------------------------------------------------------------- */

static gboolean check_state(RevertPlan *plan, GError **error)
{
    int state, saved;

    if (virDomainGetState(plan->domain, &state, NULL, 0) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    if (state != VIR_DOMAIN_RUNNING && state != VIR_DOMAIN_PAUSED && state != VIR_DOMAIN_SHUTOFF
        && state != VIR_DOMAIN_CRASHED && state != VIR_DOMAIN_BLOCKED) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "the domain is neither running, paused nor off; wait, or wake it up first");
        return FALSE;
    }
    plan->was_active = virDomainIsActive(plan->domain) == 1;
    plan->was_paused = state == VIR_DOMAIN_PAUSED;
    if (virDomainIsPersistent(plan->domain) != 1) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain is transient: it would be gone in the middle of a revert");
        return FALSE;
    }
    saved = virDomainHasManagedSaveImage(plan->domain, 0);
    if (saved > 0 && !plan->force) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the domain has a managed save image, whose memory belongs to its disks as "
                    "they are now; start it, or use 'revert force' to lose that memory");
        return FALSE;
    }
    return TRUE;
}

/* ---- The snapshot ----------------------------------------------------------------- */

static gboolean find_snapshot(RevertPlan *plan, GError **error)
{
    plan->tree = be_tree_read(plan->domain, error);
    plan->snapshot = plan->tree ? be_tree_snapshot(plan->tree, plan->name) : NULL;
    if (!plan->tree) {
        return FALSE;
    }
    if (!plan->snapshot) {
        g_set_error(error, BE_ERROR, ENOENT, "there is no snapshot '%s' any more", plan->name);
        return FALSE;
    }
    if (plan->keep && be_tree_snapshot(plan->tree, plan->keep)) {
        g_set_error(error, BE_ERROR, EEXIST, "keep=%s: a snapshot of that name exists",
                    plan->keep);
        return FALSE;
    }
    return be_change_is_whole(plan->be, plan->uuid, plan->name, error);
}

/*
 * QEMU 7.2 refuses to load the state of an image with a bitmap when it has already
 * dropped the state it had: the running machine is gone (facts).
 */
static gboolean check_no_bitmaps(RevertPlan *plan, GError **error)
{
    int count = virDomainListAllCheckpoints(plan->domain, NULL, 0);

    if (count < 0 && virGetLastErrorCode() != VIR_ERR_NO_SUPPORT) {
        be_error_from_libvirt(error, "cannot list the checkpoints");
        return FALSE;
    }
    if (count > 0) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the domain has %d checkpoint(s), and QEMU would end the machine on a revert "
                    "to an internal snapshot; delete them first (rmdir checkpoints/*)",
                    count);
        return FALSE;
    }
    return TRUE;
}

static gboolean check_inner_disk(const RevertPlan *plan, const BeXmlSnapshotDisk *part,
                                 GError **error)
{
    const BeXmlDomain *domain = plan->snapshot->xml->domain;
    const BeXmlDisk *disk = domain ? be_xml_domain_disk(domain, part->target) : NULL;
    BeTreeImage *image = disk && disk->top.path ? be_tree_image(plan->tree, disk->top.path) : NULL;
    const char *other;

    if (!image) {
        g_set_error(error, BE_ERROR, EIO, "the image of disk '%s' in snapshot '%s' is not there",
                    part->target, plan->name);
        return FALSE;
    }
    if (image->children->len > 0 || image->pins > 0) {
        other = be_tree_pinned_by(plan->tree, image);
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the internal snapshot '%s' is in '%s', on which external snapshots (%s) "
                    "stand; going back to it would destroy them: delete them first",
                    plan->name, image->path, other ? other : "no name is known");
        return FALSE;
    }
    if (image != be_tree_top(plan->tree, part->target)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "disk '%s' is on another image now than when the internal snapshot '%s' was "
                    "made ('%s')",
                    part->target, plan->name, image->path);
        return FALSE;
    }
    return TRUE;
}

static gboolean check_inner(RevertPlan *plan, GError **error)
{
    const GPtrArray *disks = plan->snapshot->xml->disks;

    if (plan->snapshot->disks->len > 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the snapshot '%s' is internal for one disk and external for another",
                    plan->name);
        return FALSE;
    }
    for (guint i = 0; i < disks->len; i++) {
        const BeXmlSnapshotDisk *part = g_ptr_array_index(disks, i);

        if (part->part == BE_PART_INTERNAL && !check_inner_disk(plan, part, error)) {
            return FALSE;
        }
    }
    return check_no_bitmaps(plan, error);
}

/* A disk that was plugged since would be gone, one that was unplugged would be back. */
static gboolean check_same_disks(const BeXmlDomain *one, const BeXmlDomain *other,
                                 const char *sentence, GError **error)
{
    for (guint i = 0; i < one->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(one->disks, i);

        if (disk->device == BE_XML_DEVICE_DISK && !be_xml_domain_disk(other, disk->target)) {
            g_set_error(error, BE_ERROR, EINVAL,
                        "disk '%s' %s; 'revert force' does it all the same", disk->target,
                        sentence);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_base(const RevertPlan *plan, const BeTreeDisk *disk, GError **error)
{
    if (!disk->base) {
        g_set_error(error, BE_ERROR, EIO,
                    "the image that holds the snapshot '%s' cannot be read: %s", plan->name,
                    plan->tree->unreadable);
        return FALSE;
    }
    if (disk->base->top && !plan->force) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "the domain runs on '%s' itself, which held the snapshot '%s' and has "
                    "changed since; 'revert force' goes on from what is there",
                    disk->base->path, plan->name);
        return FALSE;
    }
    return TRUE;
}

static gboolean check_external(RevertPlan *plan, GError **error)
{
    const BeXmlDomain *then = plan->snapshot->xml->domain;

    if (!be_host_is_local(plan->be)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "this libvirt cannot revert to external snapshots, and vmsnapfs does it only "
                    "where the images are: on the host itself");
        return FALSE;
    }
    if (plan->snapshot->disks->len == 0 || !then) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "the snapshot '%s' has no disk", plan->name);
        return FALSE;
    }
    for (guint i = 0; i < plan->snapshot->disks->len; i++) {
        if (!check_base(plan, g_ptr_array_index(plan->snapshot->disks, i), error)) {
            return FALSE;
        }
    }
    return plan->force
           || (check_same_disks(plan->tree->inactive_domain, then,
                                "was added after the snapshot and would be taken away", error)
               && check_same_disks(then, plan->tree->inactive_domain,
                                   "was removed after the snapshot and would come back", error));
}

/* ---- Room for the memory ------------------------------------------------------------ */

/* What virsh save writes besides the memory itself. */
#define SAVE_EXTRA ((guint64)64 * 1024 * 1024)

static gboolean check_room(RevertPlan *plan, const char *dir, GError **error)
{
    struct statvfs space;
    virDomainInfo info;
    guint64 need, free_bytes;

    if (virDomainGetInfo(plan->domain, &info) < 0) {
        be_error_from_libvirt(error, "cannot ask for the domain's memory");
        return FALSE;
    }
    if (statvfs(dir, &space) < 0) {
        be_error_set_errno(error, errno, "cannot look at '%s'", dir);
        return FALSE;
    }
    need = (guint64)info.memory * 1024 + SAVE_EXTRA;
    free_bytes = (guint64)space.f_bavail * space.f_frsize;
    if (free_bytes < need) {
        g_set_error(error, BE_ERROR, ENOSPC,
                    "the memory of the running domain is kept in '%s' until the snapshot stands: "
                    "%" G_GUINT64_FORMAT " MiB are needed, %" G_GUINT64_FORMAT " MiB are free; "
                    "'revert force' does without",
                    dir, need >> 20, free_bytes >> 20);
        return FALSE;
    }
    return TRUE;
}

static char *memory_path(const RevertPlan *plan)
{
    if (plan->keep) {
        const BeTreeDisk *disk = g_ptr_array_index(plan->snapshot->disks, 0);

        return be_change_new_path(disk->base->path, plan->keep, "mem");
    }
    return g_strdup_printf("%s/revert-%s.memory", plan->be->state_dir, plan->id);
}

/* Nothing can fail once a machine that shall be off is off: its memory may go. */
static gboolean choose_memory(RevertPlan *plan, GError **error)
{
    g_autofree char *dir = NULL;

    if (!plan->was_active
        || (!plan->keep && (plan->force || revert_wants(plan) == BE_REVERT_OFF))) {
        return TRUE;
    }
    plan->saved = memory_path(plan);
    dir = g_path_get_dirname(plan->saved);
    return check_room(plan, dir, error);
}

/* The restore would fail only after the machine is gone: look at the file first. */
static gboolean check_memory(RevertPlan *plan, GError **error)
{
    g_autofree char *what = NULL;
    g_autoptr(BeVirConnect) conn = NULL;
    const char *file = plan->snapshot->xml->memory_file;
    char *xml;

    plan->restores = file && revert_wants(plan) != BE_REVERT_OFF;
    if (!plan->restores) {
        return TRUE;
    }
    conn = be_conn_get(plan->be->action_conn, error);
    if (!conn) {
        return FALSE;
    }
    xml = virDomainSaveImageGetXMLDesc(conn, file, 0);
    if (!xml) {
        what = g_strdup_printf("the memory of the snapshot '%s' cannot be restored", plan->name);
        be_error_from_libvirt(error, what);
        return FALSE;
    }
    free(xml);
    return TRUE;
}

gboolean revert_check(RevertPlan *plan, GError **error)
{
    if (!be_change_nothing_runs(plan->be, plan->domain, plan->uuid, error)
        || !check_state(plan, error) || !find_snapshot(plan, error)) {
        return FALSE;
    }
    if (plan->snapshot->has_inner) {
        return check_inner(plan, error);
    }
    return check_external(plan, error) && check_memory(plan, error)
           && choose_memory(plan, error);
}
