/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * merge.c - one overlay into the image below it; see delete.h.
 *
 * Action workers, one per domain.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <unistd.h>

#include "backend/delete.h"
#include "backend/error.h"
#include "backend/merge-progress.h"
#include "backend/qemu-img.h"
#include "backend/step.h"

#define POLL_US (20 * 1000)

static void show_progress(const DeletePlan *plan, guint64 done, guint64 total)
{
    g_autofree char *object = g_strdup_printf("snapshots/%s", plan->name);

    be_progress_set(plan->uuid, plan->commit ? "commit" : "delete", object, done, total);
}

/* ---- By a block job ---- */

static gboolean abort_job(DeletePlan *plan, const DeleteDisk *disk, GError **error)
{
    (void)virDomainBlockJobAbort(plan->domain, disk->target, 0);
    g_set_error(error, BE_ERROR, ECANCELED, "cancelled; the domain goes on as before");
    return FALSE;
}

static gboolean pivot(DeletePlan *plan, const DeleteDisk *disk, gboolean *ret_over, GError **error)
{
    if (!plan->no_return && !be_job_no_return(plan->job)) {
        return abort_job(plan, disk, error);
    }
    plan->no_return = TRUE;
    be_crash_point("merge", "pivot", "before");
    *ret_over = virDomainBlockJobAbort(plan->domain, disk->target,
                                       VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                == 0;
    be_crash_point("merge", "pivot", "after");
    if (*ret_over || virGetLastErrorCode() == VIR_ERR_BLOCK_COPY_ACTIVE) {
        return TRUE;           /* or: the guest was quicker, once more */
    }
    be_error_from_libvirt(error, "the merged image cannot be gone over to");
    (void)virDomainBlockJobAbort(plan->domain, disk->target, 0);
    return FALSE;
}

/* libvirt says of a job that ended only that there is none. */
static gboolean is_merged(DeletePlan *plan, const DeleteDisk *disk)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, NULL);
    BeTreeImage *from = tree ? be_tree_image(tree, disk->from) : NULL;

    return tree && !(from && be_tree_is_below(be_tree_top(tree, disk->target), from));
}

static gboolean wait_for_job(DeletePlan *plan, const DeleteDisk *disk, GError **error)
{
    gboolean over = FALSE;

    while (!over) {
        virDomainBlockJobInfo info = {0};
        int there = virDomainGetBlockJobInfo(plan->domain, disk->target, &info, 0);

        if (there < 0) {
            be_error_from_libvirt(error, "the block job cannot be watched");
            return FALSE;
        }
        if (there == 0) {
            break;
        }
        show_progress(plan, info.cur, info.end);
        if (!plan->no_return && be_job_is_cancelled(plan->job)) {
            return abort_job(plan, disk, error);
        }
        if (disk->top && info.end > 0 && info.cur == info.end
            && !pivot(plan, disk, &over, error)) {
            return FALSE;
        }
        if (!over) {
            g_usleep(POLL_US);
        }
    }
    if (!is_merged(plan, disk)) {
        g_set_error(error, BE_ERROR, EIO,
                    "QEMU did not merge '%s' into '%s'; is the file system full?", disk->from,
                    disk->to);
        return FALSE;
    }
    return TRUE;
}

static gboolean merge_live(DeletePlan *plan, const DeleteDisk *disk, GError **error)
{
    unsigned int flags = disk->top ? VIR_DOMAIN_BLOCK_COMMIT_ACTIVE : 0;

    if (virDomainBlockCommit(plan->domain, disk->target, disk->to, disk->from, 0, flags) < 0) {
        be_error_from_libvirt(error, "the block job cannot be started");
        return FALSE;
    }
    be_crash_point("merge", "job", "after");
    return wait_for_job(plan, disk, error);
}

void delete_stop_job(DeletePlan *plan, const char *target)
{
    virDomainBlockJobInfo info;

    if (virDomainIsActive(plan->domain) == 1
        && virDomainGetBlockJobInfo(plan->domain, target, &info, 0) > 0) {
        (void)virDomainBlockJobAbort(plan->domain, target, 0);
    }
}

/* ---- By qemu-img ---- */

/*
 * Bitmaps need no care here: these images are in no chain of the domain's, and come
 * into one only by a revert, which puts an overlay without bitmaps on top; libvirt
 * uses none of those below such an overlay.
 */
static gboolean merge_off(DeletePlan *plan, const DeleteDisk *disk, GError **error)
{
    const char *const argv[] = {"commit", "-q", "-d", "-f", "qcow2", disk->from, NULL};

    show_progress(plan, 0, 0);
    return be_qemu_img(plan->no_return ? NULL : plan->job, argv, error);
}

gboolean delete_merge(DeletePlan *plan, const DeleteDisk *disk, GError **error)
{
    gboolean merged =
        disk->in_use ? merge_live(plan, disk, error) : merge_off(plan, disk, error);

    be_progress_clear(plan->uuid);
    return merged;
}

/* ---- What names the image that goes ---- */

/* Those that QEMU has not put on the other image itself. */
static gboolean move_children(const BeTree *tree, const DeleteDisk *disk, GError **error)
{
    for (guint i = 0; i < tree->images->len; i++) {
        const BeTreeImage *image = g_ptr_array_index(tree->images, i);
        const char *const argv[] = {"rebase",     "-q", "-u",    "-f",     image->format, "-b",
                                    disk->to,     "-F", disk->format, image->path, NULL};

        if (image->parent && be_tree_image(tree, disk->from) == image->parent
            && !be_qemu_img(NULL, argv, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* The path of an image as a text has it need not be the one we know it by. */
static void add_renames(const BeTree *tree, const BeXmlDomain *domain, const BeTreeImage *from,
                        const DeleteDisk *disk, GPtrArray *renames)
{
    for (guint i = 0; domain && i < domain->disks->len; i++) {
        const BeXmlDisk *row = g_ptr_array_index(domain->disks, i);

        if (row->top.path && (!from ? strcmp(row->top.path, disk->from) == 0
                                    : be_tree_image(tree, row->top.path) == from)) {
            BeXmlImage *rename = be_xml_image_new(NULL, disk->to, disk->format, disk->block);

            rename->from = g_strdup(row->top.path);
            g_ptr_array_add(renames, rename);
        }
    }
}

static gboolean stands_on(const BeTreeSnapshot *snapshot, const BeTreeImage *image)
{
    for (guint i = 0; image && i < snapshot->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (disk->base && be_tree_is_below(disk->base, image)) {
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * Also those that have the image only somewhere below: what <backingStore> says in
 * their XML is stale, and a start from it would fail (facts).
 */
static gboolean rename_in_snapshots(DeletePlan *plan, const BeTree *tree, const DeleteDisk *disk,
                                    GError **error)
{
    const BeTreeImage *from = be_tree_image(tree, disk->from);
    const BeTreeImage *to = be_tree_image(tree, disk->to);

    for (guint i = 0; i < tree->snapshots->len; i++) {
        const BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);
        g_autoptr(GPtrArray) renames = g_ptr_array_new_with_free_func(be_xml_image_free);
        g_autofree char *xml = NULL;

        add_renames(tree, snapshot->xml->domain, from, disk, renames);
        if (renames->len == 0 && !stands_on(snapshot, to)) {
            continue;
        }
        xml = be_xml_edit_rename(snapshot->text, "domainsnapshot", renames, error);
        if (!xml || !be_change_redefine(plan->be, plan->domain, xml, snapshot->current, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/*
 * A machine that was turned off while QEMU finished a merge: its definition may still
 * say that the image is in the chain, and a start would be refused.
 */
static gboolean rename_in_definition(DeletePlan *plan, const BeTree *tree, const DeleteDisk *disk,
                                     GError **error)
{
    g_autoptr(GPtrArray) renames = g_ptr_array_new_with_free_func(be_xml_image_free);
    g_autoptr(BeVirConnect) conn = NULL;
    g_autofree char *xml = NULL;
    virDomainPtr defined;

    if (!strstr(tree->inactive, disk->from)) {
        return TRUE;
    }
    conn = be_conn_get(plan->be->action_conn, error);
    add_renames(tree, tree->inactive_domain, be_tree_image(tree, disk->from), disk, renames);
    xml = conn ? be_xml_edit_rename(tree->inactive, "domain", renames, error) : NULL;
    if (!xml) {
        return FALSE;
    }
    defined = virDomainDefineXMLFlags(conn, xml, 0);
    if (!defined) {
        be_error_from_libvirt(error, "libvirt does not take the domain's XML");
        return FALSE;
    }
    be_auto_domain(defined);
    return TRUE;
}

gboolean delete_switch(DeletePlan *plan, const DeleteDisk *disk, GError **error)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, error);
    BeTreeImage *from = tree ? be_tree_image(tree, disk->from) : NULL;

    if (!tree) {
        return FALSE;
    }
    if (from && from->top) {
        g_set_error(error, BE_ERROR, EIO, "the domain still runs on '%s'", disk->from);
        return FALSE;
    }
    be_crash_point("delete", "switch", "before");
    if (!move_children(tree, disk, error) || !rename_in_snapshots(plan, tree, disk, error)
        || !rename_in_definition(plan, tree, disk, error)) {
        return FALSE;
    }
    be_crash_point("delete", "switch", "after");
    if (unlink(disk->from) < 0 && errno != ENOENT) {
        be_error_set_errno(error, errno, "cannot remove the merged image '%s'", disk->from);
        return FALSE;
    }
    return TRUE;
}
