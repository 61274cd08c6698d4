/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * revert-step.c - the steps of a revert and what takes each of them back.
 *
 * Undo works from the plan alone, so that it is the same after a failure and after
 * a crash.  Action workers, one per domain.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/change.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/freeze.h"
#include "backend/qemu-img.h"
#include "backend/revert.h"
#include "backend/step.h"

/* ---- The images --------------------------------------------------------------------- */

gboolean revert_run_images(gpointer work, GError **error)
{
    RevertPlan *plan = work;

    for (guint i = 0; i < plan->overlays->len; i++) {
        const BeXmlImage *overlay = g_ptr_array_index(plan->overlays, i);
        const BeXmlImage *base = g_ptr_array_index(plan->bases, i);

        if (!be_qemu_img_overlay(overlay->path, base->path, base->format,
                                 g_array_index(plan->sizes, guint64, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* Not while the domain names them: then its definition could not be put back. */
static gboolean is_named(virDomainPtr domain, guint flags, const char *path)
{
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, flags, NULL);
    gboolean named = FALSE;

    for (guint i = 0; xml && i < xml->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(xml->disks, i);

        named = named || g_strcmp0(disk->top.path, path) == 0;
    }
    return named || !xml;
}

gboolean revert_is_built_on(RevertPlan *plan, gboolean *ret_built_on, GError **error)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, error);

    *ret_built_on = FALSE;
    for (guint i = 0; tree && i < plan->overlays->len; i++) {
        const BeXmlImage *overlay = g_ptr_array_index(plan->overlays, i);
        const BeTreeImage *image = be_tree_image(tree, overlay->path);

        *ret_built_on |= image && (image->children->len > 0 || image->pins > 0);
    }
    return tree != NULL;
}

void revert_undo_images(gpointer work)
{
    RevertPlan *plan = work;
    gboolean built_on = FALSE;
    gboolean known = revert_is_built_on(plan, &built_on, NULL);

    for (guint i = 0; i < plan->overlays->len; i++) {
        const BeXmlImage *overlay = g_ptr_array_index(plan->overlays, i);

        if (!known || built_on
            || is_named(plan->domain, VIR_DOMAIN_XML_INACTIVE, overlay->path)
            || is_named(plan->domain, 0, overlay->path)) {
            g_warning("the domain still uses '%s'", overlay->path);
            revert_record_give_up(plan);
        } else if (unlink(overlay->path) < 0 && errno != ENOENT) {
            g_warning("cannot remove '%s': %s", overlay->path, g_strerror(errno));
        }
    }
}

/* ---- What is defined ------------------------------------------------------------------- */

static gboolean define(RevertPlan *plan, const char *xml, guint flags, GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);
    virDomainPtr defined = conn ? virDomainDefineXMLFlags(conn, xml, flags) : NULL;

    if (conn && !defined) {
        be_error_from_libvirt(error, "libvirt does not take the domain's XML");
    }
    be_auto_domain(defined);
    return defined != NULL;
}

gboolean revert_run_define(gpointer work, GError **error)
{
    RevertPlan *plan = work;

    return define(plan, plan->new_inactive, VIR_DOMAIN_DEFINE_VALIDATE, error);
}

/* Only what names our overlays is ours to put back: when a record is old somebody may
 * have defined it anew, and removed what the old XML names. */
void revert_undo_define(gpointer work)
{
    RevertPlan *plan = work;
    const BeXmlImage *first = g_ptr_array_index(plan->overlays, 0);
    g_autoptr(GError) error = NULL;

    if (is_named(plan->domain, VIR_DOMAIN_XML_INACTIVE, first->path)
        && !define(plan, plan->old_inactive, 0, &error)) {
        g_warning("%s", error->message);
        revert_record_give_up(plan);
    }
}

/* ---- The snapshot that is the current one ---------------------------------------------- */

/*
 * While it has more than one overlay libvirt must not take ours for the only one;
 * be_change_prune() looks again at the end.
 */
gboolean revert_run_current(gpointer work, GError **error)
{
    RevertPlan *plan = work;
    g_autoptr(GPtrArray) overlays = g_ptr_array_new_with_free_func(be_xml_image_free);
    g_autofree char *xml = NULL;

    for (guint i = 0; i < plan->overlays->len; i++) {
        const BeXmlImage *overlay = g_ptr_array_index(plan->overlays, i);
        const BeXmlImage *base = g_ptr_array_index(plan->bases, i);
        g_autofree char *path = be_change_new_path(base->path, plan->name, "branches");

        g_ptr_array_add(overlays, be_xml_image_new(overlay->target, path, "qcow2", FALSE));
    }
    xml = be_xml_edit_overlays(plan->old_snapshot, overlays, error);
    return xml && be_change_redefine(plan->be, plan->domain, xml, TRUE, error);
}

/* Returns: its XML as it is now; NULL: there is no such snapshot, or no answer. */
static char *snapshot_text(virDomainPtr domain, const char *name, gboolean *ret_current)
{
    virDomainSnapshotPtr snapshot = virDomainSnapshotLookupByName(domain, name, 0);
    char *text = NULL;

    if (snapshot) {
        text = virDomainSnapshotGetXMLDesc(snapshot, VIR_DOMAIN_SNAPSHOT_XML_SECURE);
        *ret_current = virDomainSnapshotIsCurrent(snapshot, 0) == 1;
        virDomainSnapshotFree(snapshot);
    }
    return text;
}

/* Nothing where nothing was changed: each change can fail, and a machine that is off
 * and has checkpoints is even started for it. */
static gboolean put_back(RevertPlan *plan, const char *name, const char *xml, gboolean current,
                         GError **error)
{
    gboolean is_current = FALSE;
    char *now = snapshot_text(plan->domain, name, &is_current);
    gboolean changed = now && (strcmp(now, xml) != 0 || (current && !is_current));

    free(now);
    return !changed || be_change_redefine(plan->be, plan->domain, xml, current, error);
}

void revert_undo_current(gpointer work)
{
    RevertPlan *plan = work;
    g_autoptr(BeXmlSnapshot) current =
        plan->old_current ? be_xml_snapshot_parse(plan->old_current, NULL) : NULL;
    g_autoptr(GError) error = NULL;

    if (!put_back(plan, plan->name, plan->old_snapshot, FALSE, &error)
        || (current && !put_back(plan, current->name, plan->old_current, TRUE, &error))) {
        g_warning("%s", error->message);
        revert_record_give_up(plan);
    }
}

/* ---- Off --------------------------------------------------------------------------------- */

gboolean revert_run_stop(gpointer work, GError **error)
{
    RevertPlan *plan = work;

    if (!plan->was_active) {
        return TRUE;
    }
    if (!revert_record_write(plan, REVERT_STOPPING, error)) {
        return FALSE;
    }
    be_crash_point("revert", "stop", "recorded");
    if (plan->saved && virDomainSaveFlags(plan->domain, plan->saved, NULL, 0) < 0) {
        be_error_from_libvirt(error, "the memory of the running domain cannot be saved "
                                     "('revert force' does without)");
        if (!plan->was_paused) {
            be_domain_run_on(plan->be, plan->domain, plan->uuid, "the save before the revert");
        }
        return FALSE;
    }
    if (!plan->saved && virDomainDestroy(plan->domain) < 0) {
        be_error_from_libvirt(error, "cannot stop the domain");
        return FALSE;
    }
    return TRUE;
}

/* It runs as before; where its memory was given away, as after a power cut. */
static gboolean start_old(RevertPlan *plan, GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);
    int started;

    if (!conn) {
        return FALSE;
    }
    if (plan->saved && g_file_test(plan->saved, G_FILE_TEST_EXISTS)) {
        started = virDomainRestoreFlags(
            conn, plan->saved, plan->old_live,
            plan->was_paused ? VIR_DOMAIN_SAVE_PAUSED : VIR_DOMAIN_SAVE_RUNNING);
    } else {
        /* The old definition comes back after this step: it has to be there now. */
        revert_undo_define(plan);
        started = virDomainCreateWithFlags(plan->domain,
                                           plan->was_paused ? VIR_DOMAIN_START_PAUSED : 0);
    }
    if (started < 0) {
        be_error_from_libvirt(error, "the domain cannot be started again as it was");
    }
    return started == 0;
}

void revert_undo_stop(gpointer work)
{
    RevertPlan *plan = work;
    g_autoptr(GError) error = NULL;

    if (plan->was_active && virDomainIsActive(plan->domain) == 0 && !start_old(plan, &error)) {
        BeEvent event = {.kind = BE_EVENT_WARNING,
                         .time_us = g_get_real_time(),
                         .domain_uuid = plan->uuid,
                         .domain_name = virDomainGetName(plan->domain),
                         .errnum = error->code,
                         .text = error->message};

        g_warning("%s", error->message);
        be_notify(plan->be, &event);
        revert_record_give_up(plan);
        return;
    }
    if (plan->saved && virDomainIsActive(plan->domain) == 1) {
        unlink(plan->saved);
    }
}

/* ---- What is left, as a snapshot ------------------------------------------------------------ */

static gboolean is_reverted(const RevertPlan *plan, const char *target)
{
    return be_tree_disk(plan->snapshot, target) != NULL;
}

/* Its overlays do not exist: what is kept is what is below them, as in any snapshot. */
static void sort_disks(const RevertPlan *plan, GPtrArray *disks, GPtrArray *others)
{
    const BeXmlDomain *domain =
        plan->was_active ? plan->tree->live_domain : plan->tree->inactive_domain;

    for (guint i = 0; i < domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(domain->disks, i);

        if (is_reverted(plan, disk->target) && disk->top.path) {
            g_autofree char *path = be_change_new_path(disk->top.path, plan->keep, "left");

            g_ptr_array_add(disks, be_xml_image_new(disk->target, path, "qcow2", FALSE));
        } else {
            g_ptr_array_add(others, g_strdup(disk->target));
        }
    }
}

static char *parent_of_left(const RevertPlan *plan)
{
    const BeTreeSnapshot *current = be_tree_current(plan->tree);

    return current ? g_strdup(current->xml->name) : NULL;
}

gboolean revert_run_keep(gpointer work, GError **error)
{
    RevertPlan *plan = work;
    g_autoptr(GPtrArray) disks = g_ptr_array_new_with_free_func(be_xml_image_free);
    g_autoptr(GPtrArray) others = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *xml = NULL;
    g_autofree char *parent = NULL;
    g_autofree char *what = NULL;
    BeXmlNewSnapshot left = {
        .name = plan->keep,
        .state = !plan->was_active ? "shutoff" : plan->was_paused ? "paused" : "running",
        .memory_file = plan->saved,
        .created_s = g_get_real_time() / G_USEC_PER_SEC,
        .disks = disks,
        .others = others,
        .domain = plan->was_active ? plan->old_live : plan->old_inactive,
        .inactive = plan->was_active ? plan->old_inactive : NULL,
    };

    if (!plan->keep) {
        return TRUE;
    }
    sort_disks(plan, disks, others);
    parent = parent_of_left(plan);
    left.parent = parent;
    what = g_strdup_printf("left by a revert to %s", plan->name);
    left.description = g_utf8_validate(what, -1, NULL) ? what : NULL;
    xml = be_xml_edit_new_snapshot(&left, error);
    plan->kept = xml && be_change_redefine(plan->be, plan->domain, xml, FALSE, error);
    return plan->kept;
}

void revert_undo_keep(gpointer work)
{
    RevertPlan *plan = work;
    virDomainSnapshotPtr snapshot =
        plan->kept ? virDomainSnapshotLookupByName(plan->domain, plan->keep, 0) : NULL;

    if (snapshot) {
        (void)virDomainSnapshotDelete(snapshot, VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY);
        virDomainSnapshotFree(snapshot);
    }
}

/* ---- The new state --------------------------------------------------------------------------- */

static gboolean restore(RevertPlan *plan, gboolean paused, GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);

    if (!conn) {
        return FALSE;
    }
    if (virDomainRestoreFlags(conn, plan->snapshot->xml->memory_file, plan->new_live,
                              paused ? VIR_DOMAIN_SAVE_PAUSED : VIR_DOMAIN_SAVE_RUNNING)
        < 0) {
        be_error_from_libvirt(error, "the memory of the snapshot cannot be restored");
        return FALSE;
    }
    return TRUE;
}

gboolean revert_run_start(gpointer work, GError **error)
{
    RevertPlan *plan = work;
    BeRevertTo wants = revert_wants(plan);
    unsigned int flags = VIR_DOMAIN_START_FORCE_BOOT;

    if (plan->restores) {
        return restore(plan, wants == BE_REVERT_PAUSED, error);
    }
    if (wants == BE_REVERT_OFF) {
        return TRUE;
    }
    flags |= wants == BE_REVERT_PAUSED ? VIR_DOMAIN_START_PAUSED : 0;
    if (virDomainCreateWithFlags(plan->domain, flags) < 0) {
        be_error_from_libvirt(error, "the domain does not start from the snapshot");
        return FALSE;
    }
    return TRUE;
}

/* Only what runs on our overlays is ours to stop. */
void revert_undo_start(gpointer work)
{
    RevertPlan *plan = work;
    const BeXmlImage *first = g_ptr_array_index(plan->overlays, 0);

    if (virDomainIsActive(plan->domain) == 1 && is_named(plan->domain, 0, first->path)) {
        (void)virDomainDestroy(plan->domain);
    }
}

/* ---- Afterwards ------------------------------------------------------------------------------ */

void revert_settle(RevertPlan *plan)
{
    g_autoptr(GError) error = NULL;

    if (plan->restores && revert_wants(plan) == BE_REVERT_RUNNING) {
        be_freeze_thaw_restored(plan->domain);
    }
    if (virDomainHasManagedSaveImage(plan->domain, 0) > 0) {
        (void)virDomainManagedSaveRemove(plan->domain, 0);
    }
    if (plan->saved && !plan->keep) {
        unlink(plan->saved);
    }
    if (!be_change_prune(plan->be, plan->domain, plan->uuid, plan->left, &error)) {
        BeEvent event = {.kind = BE_EVENT_WARNING,
                         .time_us = g_get_real_time(),
                         .domain_uuid = plan->uuid,
                         .domain_name = virDomainGetName(plan->domain),
                         .errnum = error->code,
                         .text = error->message};

        g_warning("after a revert: %s", error->message);
        be_notify(plan->be, &event);
    }
}
