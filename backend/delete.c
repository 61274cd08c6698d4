/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * delete.c - deleting and committing snapshots; see delete.h.
 *
 * Action workers, one per domain; be_snapshot_delete() and be_snapshot_commit() from
 * any thread.
 */
#include "backend/delete.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/objects.h"
#include "backend/merge-progress.h"
#include "backend/qemu-img.h"
#include "backend/readings.h"
#include "backend/step.h"

void delete_disk_free(gpointer data)
{
    DeleteDisk *disk = data;

    g_free(disk->target);
    g_free(disk->from);
    g_free(disk->to);
    g_free(disk->format);
    g_free(disk);
}

DeletePlan *delete_plan_new(Be *be, const char *uuid, const char *name)
{
    DeletePlan *plan = g_new0(DeletePlan, 1);

    plan->be = be;
    plan->uuid = g_strdup(uuid);
    plan->name = g_strdup(name);
    plan->disks = g_ptr_array_new_with_free_func(delete_disk_free);
    plan->drops = g_ptr_array_new_with_free_func(g_free);
    plan->stamps = delete_stamps_new();
    return plan;
}

void delete_plan_free(gpointer data)
{
    DeletePlan *plan = data;

    if (!plan) {
        return;
    }
    be_auto_domain(plan->domain);
    g_ptr_array_unref(plan->disks);
    g_ptr_array_unref(plan->drops);
    g_array_unref(plan->stamps);
    g_free(plan->memory);
    g_free(plan->uuid);
    g_free(plan->name);
    g_free(plan);
}

/* ---- A machine that is off ---- */

static gboolean hold(DeletePlan *plan, GError **error)
{
    g_autofree char *what = NULL;

    if (plan->paused || virDomainIsActive(plan->domain) == 1) {
        return TRUE;
    }
    what = g_strdup_printf("%s of snapshot '%s'", plan->commit ? "commit" : "delete", plan->name);
    plan->paused = be_paused_start(plan->be, plan->domain, what, error);
    return plan->paused != NULL;
}

gboolean delete_let_go(DeletePlan *plan, GError **error)
{
    return !plan->paused || be_paused_end(g_steal_pointer(&plan->paused), error);
}

/* ---- libvirt's part ---- */

static gboolean delete_by_libvirt(DeletePlan *plan, const char *name, unsigned int flags,
                                  GError **error)
{
    virDomainSnapshotPtr snapshot = virDomainSnapshotLookupByName(plan->domain, name, 0);
    g_autofree char *what = g_strdup_printf("libvirt does not delete the snapshot '%s'", name);
    int deleted;

    if (!snapshot) {
        if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_SNAPSHOT) {
            return TRUE;
        }
        be_error_from_libvirt(error, what);
        return FALSE;
    }
    deleted = virDomainSnapshotDelete(snapshot, flags);
    if (deleted < 0) {
        be_error_from_libvirt(error, what);
    }
    virDomainSnapshotFree(snapshot);
    return deleted == 0;
}

static gboolean forget(DeletePlan *plan, const char *name, GError **error)
{
    if (!delete_by_libvirt(plan, name, VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY, error)) {
        return FALSE;
    }
    be_change_mend(plan->be, plan->uuid, name);
    return TRUE;
}

/* ---- An internal one ---- */

/* Where the images are those of the domain libvirt does it, running or off. */
static gboolean is_on_top(const BeTree *tree, const BeXmlSnapshotDisk *part,
                          const BeTreeImage *image)
{
    return image && be_tree_top(tree, part->target) == image;
}

static gboolean drop_inside(DeletePlan *plan, const BeTree *tree, const BeXmlSnapshotDisk *part,
                            const BeTreeImage *image, const char *name, GError **error)
{
    const char *const argv[] = {"snapshot", "-q", "-d", name, "--image-opts", NULL, NULL};
    const char *words[G_N_ELEMENTS(argv)];
    g_autofree char *options = NULL;
    g_autoptr(GString) path = g_string_new(NULL);

    if (!image) {
        g_set_error(error, BE_ERROR, EIO,
                    "the image of disk '%s' is not there; only 'delete metadata' is possible",
                    part->target);
        return FALSE;
    }
    if (tree->active && be_tree_is_below(be_tree_top(tree, part->target), image)) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the internal snapshot '%s' is in '%s', which the running domain has open "
                    "below other images; shut it down first",
                    name, image->path);
        return FALSE;
    }
    g_string_append(path, image->path);
    g_string_replace(path, ",", ",,", 0);
    options = g_strdup_printf("driver=qcow2,file.driver=file,file.filename=%s", path->str);
    memcpy(words, argv, sizeof argv);
    words[5] = options;
    return be_qemu_img(plan->job, words, error);
}

static gboolean delete_inner(DeletePlan *plan, const BeTree *tree, const BeTreeSnapshot *snapshot,
                             GError **error)
{
    const BeXmlDomain *domain = snapshot->xml->domain;
    g_autoptr(GPtrArray) paths = g_ptr_array_new();
    gboolean all_on_top = TRUE;

    for (guint i = 0; domain && i < snapshot->xml->disks->len; i++) {
        const BeXmlSnapshotDisk *part = g_ptr_array_index(snapshot->xml->disks, i);
        const BeXmlDisk *disk = be_xml_domain_disk(domain, part->target);

        if (part->part != BE_PART_INTERNAL) {
            continue;
        }
        all_on_top = all_on_top && disk && disk->top.path
                     && is_on_top(tree, part, be_tree_image(tree, disk->top.path));
        if (disk && disk->top.path) {
            g_ptr_array_add(paths, disk->top.path);
        }
    }
    /* Its clusters are free for others then, whoever reads them. */
    if (!be_change_nobody_reads(plan->be, plan->uuid, paths, error)) {
        return FALSE;
    }
    if (all_on_top) {
        return delete_by_libvirt(plan, snapshot->xml->name, 0, error);
    }
    for (guint i = 0; domain && i < snapshot->xml->disks->len; i++) {
        const BeXmlSnapshotDisk *part = g_ptr_array_index(snapshot->xml->disks, i);
        const BeXmlDisk *disk = be_xml_domain_disk(domain, part->target);
        BeTreeImage *image = disk && disk->top.path ? be_tree_image(tree, disk->top.path) : NULL;

        if (part->part == BE_PART_INTERNAL
            && !drop_inside(plan, tree, part, image, snapshot->xml->name, error)) {
            return FALSE;
        }
    }
    /* An image that a revert has left for what was in it. */
    return forget(plan, snapshot->xml->name, error)
           && be_change_prune(plan->be, plan->domain, plan->uuid, paths, error);
}

/* ---- An external one ---- */

static gboolean merges_in_use(const DeletePlan *plan)
{
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->fate == DELETE_MERGES && disk->in_use) {
            return TRUE;
        }
    }
    return FALSE;
}

static gboolean merge_all(DeletePlan *plan, const char *name, GError **error)
{
    for (guint i = 0; i < plan->disks->len; i++) {
        DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->fate != DELETE_MERGES) {
            continue;
        }
        if (be_fail_point("delete", "merge", "before", error)
            || !delete_merge(plan, disk, error)) {
            return FALSE;
        }
        be_crash_point("delete", "merge", "after");
        plan->no_return = TRUE;
        disk->merged = TRUE;
        if (be_fail_point("delete", "merge", "after", error)
            || !delete_record_write(plan, name, error) || !delete_switch(plan, disk, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/*
 * Where two branches stand on its image, and no snapshot is there any more to name
 * them, we do: they may become one line again, or go.
 */
static gboolean remember_branches(DeletePlan *plan, const BeTree *tree, GError **error)
{
    g_autoptr(GPtrArray) paths = g_ptr_array_new();

    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);
        const BeTreeImage *base = be_tree_image(tree, disk->to);

        if (!base || base->pins > 1 || base->top || base->children->len < 2) {
            continue;
        }
        for (guint j = 0; j < base->children->len; j++) {
            const BeTreeImage *child = g_ptr_array_index(base->children, j);

            g_ptr_array_add(paths, child->path);
        }
        if (base->parent) {
            g_ptr_array_add(paths, base->path);
        }
    }
    return paths->len == 0 || be_change_remember(plan->be, plan->uuid, paths, error);
}

gboolean delete_clear(DeletePlan *plan, GError **error)
{
    if (plan->memory && unlink(plan->memory) < 0 && errno != ENOENT) {
        g_warning("cannot remove '%s': %s", plan->memory, g_strerror(errno));
    }
    return be_change_prune(plan->be, plan->domain, plan->uuid, plan->drops, error);
}

static void note_what_goes(DeletePlan *plan, const BeTreeSnapshot *snapshot)
{
    g_free(plan->memory);
    plan->memory = g_strdup(snapshot->xml->memory_file);
    g_ptr_array_set_size(plan->drops, 0);
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->fate == DELETE_REMOVES && g_str_equal(disk->format, "qcow2") && !disk->block) {
            g_ptr_array_add(plan->drops, g_strdup(disk->to));
        }
    }
}

/* The images that are written to or go. */
static gboolean nobody_reads(const DeletePlan *plan, GError **error)
{
    g_autoptr(GPtrArray) paths = g_ptr_array_new();

    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->fate != DELETE_KEEPS) {
            g_ptr_array_add(paths, disk->to);
        }
        if (disk->fate == DELETE_MERGES) {
            g_ptr_array_add(paths, disk->from);
        }
    }
    return be_change_nobody_reads(plan->be, plan->uuid, paths, error);
}

static gboolean write_record(DeletePlan *plan, const BeTree *tree, const char *name,
                             GError **error)
{
    return !be_fail_point("delete", "record", "before", error)
           && remember_branches(plan, tree, error) && delete_record_write(plan, name, error)
           && !be_fail_point("delete", "record", "after", error);
}

static gboolean hold_if_off(DeletePlan *plan, GError **error)
{
    if (be_fail_point("delete", "hold", "before", error) || !hold(plan, error)) {
        return FALSE;
    }
    be_crash_point("delete", "hold", "after");
    return !be_fail_point("delete", "hold", "after", error);
}

static gboolean forget_it(DeletePlan *plan, const char *name, GError **error)
{
    be_crash_point("delete", "forget", "before");
    return !be_fail_point("delete", "forget", "before", error) && forget(plan, name, error);
}

static gboolean delete_by_us(DeletePlan *plan, const BeTree *tree, const BeTreeSnapshot *snapshot,
                             GError **error)
{
    const char *name = snapshot->xml->name;
    gboolean good;

    note_what_goes(plan, snapshot);
    good = write_record(plan, tree, name, error)
           && (!merges_in_use(plan) || hold_if_off(plan, error));
    delete_look(plan, name);
    good = good && delete_begin(plan, name, error) && merge_all(plan, name, error)
           && forget_it(plan, name, error);
    if (!good) {
        delete_take_back(plan, name, error);
        return FALSE;
    }
    plan->begun = TRUE;
    plan->forgotten = TRUE;
    be_crash_point("delete", "forget", "after");
    return !be_fail_point("delete", "forget", "after", error) && delete_clear(plan, error);
}

/* libvirt 9.0 leaves the memory of an external snapshot. */
static gboolean delete_natively(DeletePlan *plan, const BeTree *tree,
                                const BeTreeSnapshot *snapshot, GError **error)
{
    const char *name = snapshot->xml->name;
    gboolean good;

    note_what_goes(plan, snapshot);
    good = hold_if_off(plan, error);
    delete_look(plan, name);
    g_ptr_array_set_size(plan->disks, 0);   /* libvirt's affair, also after a crash of ours */
    good = good && write_record(plan, tree, name, error) && delete_begin(plan, name, error)
           && !be_fail_point("delete", "libvirt", "before", error)
           && delete_by_libvirt(plan, name, 0, error);
    if (!good) {
        delete_take_back(plan, name, error);
        return FALSE;
    }
    plan->begun = TRUE;
    plan->forgotten = TRUE;
    be_crash_point("delete", "libvirt", "after");
    be_change_mend(plan->be, plan->uuid, name);
    return !be_fail_point("delete", "libvirt", "after", error) && delete_clear(plan, error);
}

static gboolean check_commit(const DeletePlan *plan, GError **error)
{
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->fate != DELETE_MERGES || !disk->in_use) {
            g_set_error(error, BE_ERROR, EINVAL,
                        "disk '%s' of the domain does not go on from the snapshot '%s' alone: it "
                        "is on another branch, or several stand on it; 'delete' is possible",
                        disk->target, plan->name);
            return FALSE;
        }
    }
    return TRUE;
}

gboolean delete_one(DeletePlan *plan, const char *name, GError **error)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, error);
    const BeTreeSnapshot *snapshot = tree ? be_tree_snapshot(tree, name) : NULL;

    plan->begun = FALSE;
    plan->forgotten = FALSE;
    if (!tree) {
        return FALSE;
    }
    if (!snapshot) {
        be_change_mend(plan->be, plan->uuid, name);   /* gone already, and its note with it */
        return TRUE;
    }
    if (snapshot->has_inner && snapshot->disks->len > 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the snapshot '%s' is internal for one disk and external for another; only "
                    "'delete metadata' is possible",
                    name);
        return FALSE;
    }
    if (snapshot->has_inner && plan->commit) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "the snapshot '%s' is internal: the domain goes on in the same image, and "
                    "there is nothing to commit; 'delete' it",
                    name);
        return FALSE;
    }
    if (snapshot->has_inner) {
        return delete_inner(plan, tree, snapshot, error);
    }
    if (!be_host_is_local(plan->be)) {
        return delete_by_libvirt(plan, name, 0, error);
    }
    if (!delete_decide(plan, tree, snapshot, error)
        || (plan->commit && !check_commit(plan, error)) || !nobody_reads(plan, error)) {
        return FALSE;
    }
    return !plan->commit && delete_is_libvirts(plan, tree, snapshot)
               ? delete_natively(plan, tree, snapshot, error)
               : delete_by_us(plan, tree, snapshot, error);
}

/* ---- Branches that are one line again ---- */

static const char *target_of(const BeTree *tree, const BeTreeImage *image)
{
    const BeXmlDomain *domain = tree->live_domain ? tree->live_domain : tree->inactive_domain;

    for (guint i = 0; i < domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(domain->disks, i);

        if (be_tree_is_below(be_tree_top(tree, disk->target), image)) {
            return disk->target;
        }
    }
    return NULL;
}

/* An image that was kept for its branches, and has one of them left. */
static DeleteDisk *find_line(const DeletePlan *plan, const BeTree *tree)
{
    for (guint i = 0; i < tree->images->len; i++) {
        const BeTreeImage *image = g_ptr_array_index(tree->images, i);
        const BeTreeImage *only =
            image->children->len == 1 ? g_ptr_array_index(image->children, 0) : NULL;
        const char *target = only ? target_of(tree, only) : NULL;
        DeleteDisk *row;

        if (!only || image->pins > 0 || image->top || only->inner > 0 || only->block
            || !be_change_remembers(plan->be, plan->uuid, only->path)) {
            continue;
        }
        row = g_new0(DeleteDisk, 1);
        row->target = g_strdup(target);
        row->fate = DELETE_MERGES;
        row->from = g_strdup(only->path);
        row->to = g_strdup(image->path);
        row->format = g_strdup(image->format);
        row->block = image->block;
        row->in_use = target != NULL;
        row->top = only->top;
        return row;
    }
    return NULL;
}

/* The snapshot is gone whatever comes of this: it only leaves longer chains. */
static void straighten(DeletePlan *plan)
{
    g_autoptr(GPtrArray) none = g_ptr_array_new();
    g_autoptr(GError) error = NULL;
    gboolean good = TRUE;

    while (good && !be_job_is_cancelled(plan->job)) {
        g_autoptr(BeTree) tree = be_tree_read(plan->domain, &error);
        DeleteDisk *row = tree && !tree->unreadable ? find_line(plan, tree) : NULL;

        if (!row) {
            break;
        }
        g_ptr_array_set_size(plan->disks, 0);
        g_ptr_array_add(plan->disks, row);
        good = delete_is_ours_alone(plan, tree, row, &error)
               && nobody_reads(plan, &error)
               && delete_record_write(plan, plan->name, &error)
               && (!row->in_use || hold(plan, &error)) && merge_all(plan, plan->name, &error)
               && be_change_prune(plan->be, plan->domain, plan->uuid, none, &error);
    }
    if (error) {
        g_info("after the deletion of snapshot '%s': %s", plan->name, error->message);
    }
}

/* ---- The action ---- */

/* Children before their parents. */
static void add_below(const BeTree *tree, const char *name, GPtrArray *names)
{
    for (guint i = 0; i < tree->snapshots->len; i++) {
        const BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);

        if (g_strcmp0(snapshot->xml->parent, name) == 0) {
            add_below(tree, snapshot->xml->name, names);
            g_ptr_array_add(names, g_strdup(snapshot->xml->name));
        }
    }
}

static gboolean delete_all(DeletePlan *plan, GError **error)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, error);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    if (!tree) {
        return FALSE;
    }
    if (!be_tree_snapshot(tree, plan->name)) {
        g_set_error(error, BE_ERROR, ENOENT, "there is no snapshot '%s' any more", plan->name);
        return FALSE;
    }
    if (plan->how == BE_DELETE_METADATA) {
        return forget(plan, plan->name, error);
    }
    if (plan->how == BE_DELETE_CHILDREN) {
        add_below(tree, plan->name, names);
    }
    g_ptr_array_add(names, g_strdup(plan->name));
    for (guint i = 0; i < names->len; i++) {
        if (!delete_one(plan, g_ptr_array_index(names, i), error)) {
            return FALSE;
        }
    }
    straighten(plan);
    return TRUE;
}

static gboolean run_delete(Be *be, BeJob *job, gpointer data, GError **error)
{
    DeletePlan *plan = data;
    gboolean good;

    plan->job = job;
    plan->domain = be_conn_domain(be->action_conn, plan->uuid, error);
    good = plan->domain && be_change_nothing_runs(be, plan->domain, plan->uuid, error);
    if (good) {
        be_readings_stop(be, plan->uuid);
        plan->hidden = !plan->commit;
        if (plan->hidden) {
            be_objects_hide(be, BE_SNAPSHOTS, plan->uuid, plan->name);
        }
        good = delete_settle_pending(plan, error) && delete_all(plan, error);
        good = delete_let_go(plan, good ? error : NULL) && good;
        delete_record_end(plan, good);
        be_readings_go_on(be, plan->uuid);
    }
    if (plan->hidden) {
        be_objects_unhide(be, BE_SNAPSHOTS, plan->uuid, plan->name);
    }
    (void)be_objects_read(be, BE_SNAPSHOTS, plan->uuid, NULL);
    return good;
}

static BeJob *submit(Be *be, const char *uuid, const char *name, BeDeleteHow how, gboolean commit,
                     BeDone done, gpointer user)
{
    g_autofree char *what =
        g_strdup_printf("%s of snapshot %s", commit ? "commit" : "delete", name);
    DeletePlan *plan;

    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    plan = delete_plan_new(be, uuid, name);
    plan->how = how;
    plan->commit = commit;
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, what, run_delete, plan, delete_plan_free, done,
                         user);
}

BeJob *be_snapshot_delete(Be *be, const char *uuid, const char *name, BeDeleteHow how,
                          BeDone done, gpointer user)
{
    return submit(be, uuid, name, how, FALSE, done, user);
}

BeJob *be_snapshot_commit(Be *be, const char *uuid, const char *name, BeDone done, gpointer user)
{
    return submit(be, uuid, name, BE_DELETE_MERGE, TRUE, done, user);
}
