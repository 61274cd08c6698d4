/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * revert.c - going back to a snapshot; see revert.h.
 *
 * Action workers, one per domain; be_snapshot_revert() from any thread.
 */
#include "backend/revert.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/change.h"
#include "backend/error.h"
#include "backend/objects.h"
#include "backend/step.h"
#include "backend/trust.h"

gboolean be_revert_to_parse(const char *word, BeRevertTo *ret_to)
{
    static const char *const words[] = {
        [BE_REVERT_RUNNING] = "running",
        [BE_REVERT_PAUSED] = "paused",
        [BE_REVERT_OFF] = "off",
    };

    for (gsize i = BE_REVERT_RUNNING; i < G_N_ELEMENTS(words); i++) {
        if (g_str_equal(word, words[i])) {
            *ret_to = (BeRevertTo)i;
            return TRUE;
        }
    }
    return FALSE;
}

RevertPlan *revert_plan_new(Be *be, const char *uuid, const char *name)
{
    RevertPlan *plan = g_new0(RevertPlan, 1);

    plan->be = be;
    plan->uuid = g_strdup(uuid);
    plan->name = g_strdup(name);
    plan->id = g_uuid_string_random();
    plan->overlays = g_ptr_array_new_with_free_func(be_xml_image_free);
    plan->bases = g_ptr_array_new_with_free_func(be_xml_image_free);
    plan->left = g_ptr_array_new_with_free_func(g_free);
    plan->sizes = g_array_new(FALSE, FALSE, sizeof(guint64));
    return plan;
}

void revert_plan_free(gpointer data)
{
    RevertPlan *plan = data;

    if (!plan) {
        return;
    }
    be_auto_domain(plan->domain);
    be_tree_free(plan->tree);
    g_ptr_array_unref(plan->overlays);
    g_ptr_array_unref(plan->bases);
    g_ptr_array_unref(plan->left);
    g_array_unref(plan->sizes);
    g_free(plan->uuid);
    g_free(plan->name);
    g_free(plan->keep);
    g_free(plan->id);
    g_free(plan->old_inactive);
    g_free(plan->old_live);
    g_free(plan->old_snapshot);
    g_free(plan->old_current);
    g_free(plan->new_inactive);
    g_free(plan->new_live);
    g_free(plan->saved);
    g_free(plan);
}

/*
 * The disks go back, and no bitmap will say so.  A revert that fails after this costs
 * the next increment its base, no more.
 */
static gboolean run_distrust(gpointer work, GError **error)
{
    RevertPlan *plan = work;
    g_autofree char *reason =
        g_strdup_printf("the machine was reverted to snapshot '%s'", plan->name);

    return be_trust_break(plan->be, plan->uuid, reason, error);
}

/* ---- By libvirt ------------------------------------------------------------------------ */

static gboolean run_native(gpointer work, GError **error)
{
    RevertPlan *plan = work;
    BeRevertTo wants = revert_wants(plan);
    gboolean has_memory = plan->snapshot->xml->memory != BE_PART_NONE;
    unsigned int flags = 0;
    g_autofree char *what = NULL;
    virDomainSnapshotPtr snapshot = virDomainSnapshotLookupByName(plan->domain, plan->name, 0);
    int reverted;

    if (!snapshot) {
        be_error_from_libvirt(error, "the snapshot is gone");
        return FALSE;
    }
    if (wants == BE_REVERT_RUNNING) {
        flags = VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING;
    } else if (wants == BE_REVERT_PAUSED || has_memory) {
        flags = VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED;
    }
    flags |= plan->force ? VIR_DOMAIN_SNAPSHOT_REVERT_FORCE : 0;
    reverted = virDomainRevertToSnapshot(snapshot, flags);
    if (reverted < 0) {
        what = g_strdup_printf("libvirt cannot revert to the snapshot '%s'%s", plan->name,
                               plan->was_active && virDomainIsActive(plan->domain) == 0
                                   ? ", and the domain, which was running, is off now"
                                   : "");
        be_error_from_libvirt(error, what);
    }
    virDomainSnapshotFree(snapshot);
    if (reverted == 0 && virDomainHasManagedSaveImage(plan->domain, 0) > 0) {
        (void)virDomainManagedSaveRemove(plan->domain, 0);
    }
    if (reverted == 0 && wants == BE_REVERT_OFF && virDomainIsActive(plan->domain) == 1
        && virDomainDestroy(plan->domain) < 0) {
        be_error_from_libvirt(error, "the snapshot is back, but the domain cannot be turned off");
        return FALSE;
    }
    return reverted == 0;
}

/* What is left becomes an internal snapshot of the same kind. */
static gboolean run_native_keep(gpointer work, GError **error)
{
    RevertPlan *plan = work;
    g_autoptr(BeXmlSnapshot) wanted = NULL;
    g_autofree char *xml = NULL;
    virDomainSnapshotPtr snapshot;

    if (!plan->keep) {
        return TRUE;
    }
    wanted = be_xml_snapshot_new(plan->keep, NULL);
    wanted->memory = plan->was_active ? BE_PART_INTERNAL : BE_PART_NONE;
    xml = be_xml_snapshot_build(wanted, error);
    if (!xml) {
        return FALSE;
    }
    snapshot = virDomainSnapshotCreateXML(plan->domain, xml, 0);
    if (!snapshot) {
        be_error_from_libvirt(error, "what would be left cannot be kept");
        return FALSE;
    }
    virDomainSnapshotFree(snapshot);
    plan->kept = TRUE;
    return TRUE;
}

static void undo_native_keep(gpointer work)
{
    RevertPlan *plan = work;
    virDomainSnapshotPtr snapshot =
        plan->kept ? virDomainSnapshotLookupByName(plan->domain, plan->keep, 0) : NULL;

    /* A machine that a failed revert has stopped can be brought back from it. */
    if (snapshot && virDomainIsActive(plan->domain) == (int)plan->was_active) {
        (void)virDomainSnapshotDelete(snapshot, 0);
    }
    if (snapshot) {
        virDomainSnapshotFree(snapshot);
    }
}

static const BeStep native_steps[] = {
    {"keep", run_native_keep, undo_native_keep},
    {"distrust", run_distrust, NULL},
    {"revert", run_native, NULL},
    {NULL, NULL, NULL},
};

/* ---- By us ------------------------------------------------------------------------------ */

/* qcow2 by the XML that was, so that no raw image of the owner's is ever taken for ours. */
static void note_left(RevertPlan *plan, const char *target)
{
    const BeXmlDomain *domain =
        plan->tree->live_domain ? plan->tree->live_domain : plan->tree->inactive_domain;
    const BeXmlDisk *disk = be_xml_domain_disk(domain, target);

    if (disk && disk->top.path && disk->top.source == BE_XML_SOURCE_FILE
        && g_strcmp0(disk->top.format, "qcow2") == 0) {
        g_ptr_array_add(plan->left, g_strdup(disk->top.path));
    }
}

static void choose_images(RevertPlan *plan)
{
    for (guint i = 0; i < plan->snapshot->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(plan->snapshot->disks, i);
        const BeTreeImage *base = disk->base;
        g_autofree char *path = be_change_new_path(base->path, plan->name, "r");

        g_ptr_array_add(plan->overlays,
                        be_xml_image_new(disk->target, path, "qcow2", FALSE));
        g_ptr_array_add(plan->bases,
                        be_xml_image_new(disk->target, base->path, base->format, base->block));
        g_array_append_val(plan->sizes, base->size);
        note_left(plan, disk->target);
    }
}

static gboolean write_texts(RevertPlan *plan, GError **error)
{
    const BeTreeSnapshot *current = be_tree_current(plan->tree);

    plan->old_inactive = g_strdup(plan->tree->inactive);
    plan->old_live = g_strdup(plan->tree->live);
    plan->old_snapshot = g_strdup(plan->snapshot->text);
    plan->old_current = current ? g_strdup(current->text) : NULL;
    plan->new_inactive =
        be_xml_edit_snapshot_domain(plan->snapshot->text, TRUE, plan->overlays, error);
    plan->new_live = plan->new_inactive ? be_xml_edit_snapshot_domain(
                                              plan->snapshot->text, FALSE, plan->overlays, error)
                                        : NULL;
    return plan->new_live != NULL;
}

static gboolean run_record(gpointer work, GError **error)
{
    return revert_record_write(work, REVERT_BEGUN, error);
}

static void undo_record(gpointer work)
{
    revert_record_drop(work);
}

/* From here on the new state is there, whatever happens to us. */
static gboolean run_stand(gpointer work, GError **error)
{
    RevertPlan *plan = work;

    (void)be_job_no_return(plan->job);
    return revert_record_write(plan, REVERT_STANDS, error);
}

static const BeStep external_steps[] = {
    {"record", run_record, undo_record},
    {"distrust", run_distrust, NULL},
    {"images", revert_run_images, revert_undo_images},
    {"define", revert_run_define, revert_undo_define},
    {"current", revert_run_current, revert_undo_current},
    {"stop", revert_run_stop, revert_undo_stop},
    {"keep", revert_run_keep, revert_undo_keep},
    {"start", revert_run_start, revert_undo_start},
    {"stand", run_stand, NULL},
    {NULL, NULL, NULL},
};

gboolean revert_external(RevertPlan *plan, GError **error)
{
    choose_images(plan);
    if (!write_texts(plan, error)
        || !be_steps_run("revert", external_steps, plan, plan->job, error)) {
        return FALSE;
    }
    revert_settle(plan);
    be_crash_point("revert", "settle", "after");
    revert_record_drop(plan);
    return TRUE;
}

/* ---- The action --------------------------------------------------------------------------- */

static gboolean libvirt_can(RevertPlan *plan, gboolean *ret_can, GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);
    BeXmlCapabilities capabilities = {0};
    char *text = conn ? virConnectGetCapabilities(conn) : NULL;
    gboolean good;

    if (!text) {
        if (conn) {
            be_error_from_libvirt(error, "cannot read the host's capabilities");
        }
        return FALSE;
    }
    good = be_xml_capabilities_parse(text, &capabilities, error);
    free(text);
    *ret_can = capabilities.external_snapshot;
    return good;
}

/*
 * libvirt stops a machine before it knows whether the snapshot's state comes back, so it
 * never does it for one that runs; and it has no way to keep what is left.  It then
 * unlinks the overlays that the current snapshot has in <disks>, and needs one to be
 * current (11.3: qemuSnapshotRevertExternalFinish()); after a revert of ours those are
 * not always what the machine leaves.
 */
static gboolean libvirt_should(const RevertPlan *plan)
{
    const BeTreeSnapshot *current = be_tree_current(plan->tree);

    if (plan->keep || plan->was_active || !current || current->has_inner) {
        return FALSE;
    }
    for (guint i = 0; i < current->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(current->disks, i);

        if (!disk->overlay
            || be_tree_image(plan->tree, disk->overlay) != be_tree_top(plan->tree, disk->target)) {
            return FALSE;
        }
    }
    return current->disks->len > 0;
}

/* Where libvirt fails and the machine is off still, nothing has changed: we do it. */
static gboolean revert_either_way(RevertPlan *plan, GError **error)
{
    g_autoptr(GError) refusal = NULL;

    if (be_steps_run("revert-native", native_steps, plan, plan->job, &refusal)) {
        return TRUE;
    }
    if (refusal->code == ECANCELED || virDomainIsActive(plan->domain) != 0) {
        g_propagate_error(error, g_steal_pointer(&refusal));
        return FALSE;
    }
    g_info("%s; it is done without", refusal->message);
    return revert_external(plan, error);
}

static gboolean run_revert(Be *be, BeJob *job, gpointer data, GError **error)
{
    RevertPlan *plan = data;
    gboolean by_libvirt, good;

    plan->job = job;
    plan->domain = be_conn_domain(be->action_conn, plan->uuid, error);
    if (!plan->domain || !libvirt_can(plan, &by_libvirt, error) || !revert_check(plan, error)) {
        return FALSE;
    }
    if (plan->snapshot->has_inner) {
        good = be_steps_run("revert-native", native_steps, plan, job, error);
    } else {
        good = by_libvirt && libvirt_should(plan) ? revert_either_way(plan, error)
                                                  : revert_external(plan, error);
    }
    (void)be_objects_read(be, BE_SNAPSHOTS, plan->uuid, NULL);
    (void)be_inventory_read(be, NULL);
    return good;
}

BeJob *be_snapshot_revert(Be *be, const char *uuid, const char *name,
                          const BeRevertOptions *options, BeDone done, gpointer user)
{
    g_autofree char *what = g_strdup_printf("revert to snapshot %s", name);
    RevertPlan *plan;

    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    plan = revert_plan_new(be, uuid, name);
    plan->to = options->to;
    plan->force = options->force;
    plan->keep = g_strdup(options->keep);
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, what, run_revert, plan, revert_plan_free, done,
                         user);
}
