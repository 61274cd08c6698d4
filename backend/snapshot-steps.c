/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-steps.c - a snapshot is made: intent, one call inside the freeze, whose
 * it is.
 *
 * libvirt makes overlays and memory file itself and takes back what it began when
 * it fails (qemuSnapshotCreateXML()); what it leaves behind all the same is
 * removed here.  Action worker.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "backend/change.h"
#include "backend/error.h"
#include "backend/objects.h"
#include "backend/save-watch.h"
#include "backend/snapshot-plan.h"
#include "backend/step.h"

#define AREA "snapshot-create"

/* ---- Steps --------------------------------------------------------------------------- */

static gboolean run_record(gpointer work, GError **error)
{
    SnapshotPlan *plan = work;

    plan->record_id = g_uuid_string_random();
    return snapshot_record_write(plan, error);
}

static void undo_record(gpointer work)
{
    SnapshotPlan *plan = work;

    if (plan->uncertain) {
        snapshot_leave(plan);
    } else {
        snapshot_record_remove(plan);
    }
}

/*
 * libvirt 9.0 makes no snapshot of a machine that is off and has checkpoints (code
 * 84); of one that is paused it does, and the guest never runs.
 */
static gboolean run_hold(gpointer work, GError **error)
{
    SnapshotPlan *plan = work;
    g_autofree char *what = NULL;

    if (plan->active || !plan->has_checkpoints) {
        return TRUE;
    }
    what = g_strdup_printf("snapshot '%s'", plan->name);
    plan->held = be_paused_start(plan->be, plan->domain, what, error);
    return plan->held != NULL;
}

static void let_go(gpointer work)
{
    SnapshotPlan *plan = work;
    g_autoptr(GError) error = NULL;

    if (plan->held && !be_paused_end(g_steal_pointer(&plan->held), &error)) {
        g_warning("%s", error->message);
    }
}

static guint create_flags(const SnapshotPlan *plan)
{
    const BeXmlSnapshot *wanted = plan->wanted;
    gboolean external = FALSE;
    guint flags = VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;

    for (guint i = 0; i < wanted->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(wanted->disks, i);

        external = external || disk->part == BE_PART_EXTERNAL;
    }
    if (external && wanted->memory == BE_PART_NONE) {
        flags |= VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
    }
    return plan->asked.live ? flags | VIR_DOMAIN_SNAPSHOT_CREATE_LIVE : flags;
}

/* What call_libvirt() needs. */
typedef struct {
    const SnapshotPlan *plan;
    const char *xml;
} Call;

static gboolean call_libvirt(gpointer data, GError **error)
{
    const Call *call = data;
    virDomainSnapshotPtr made =
        virDomainSnapshotCreateXML(call->plan->domain, call->xml, create_flags(call->plan));

    if (!made) {
        be_error_from_libvirt(error, "libvirt cannot make the snapshot");
        return FALSE;
    }
    virDomainSnapshotFree(made);
    return TRUE;
}

/* Memory takes long and can be cancelled; all else is over before anybody asks. */
static gboolean call_watched(Call *call, GError **error)
{
    const SnapshotPlan *plan = call->plan;
    g_autofree char *object = g_strdup_printf("snapshots/%s", plan->name);

    return be_save_watched(plan->domain, plan->uuid, plan->job, "snapshot", object, call_libvirt,
                           call, error);
}

/* A host that is gone, or did not answer in time, may have done it. */
static gboolean leaves_doubt(const GError *error)
{
    return error->code == EHOSTUNREACH || error->code == ETIMEDOUT;
}

/* One call inside the window. */
static gboolean run_create(gpointer work, GError **error)
{
    SnapshotPlan *plan = work;
    g_autofree char *xml = be_xml_snapshot_build(plan->wanted, error);
    gboolean memory = plan->wanted->memory == BE_PART_EXTERNAL;
    g_autoptr(GError) create_error = NULL;
    Call call = {plan, xml};

    if (!xml) {
        return FALSE;
    }
    if (!memory && !be_job_no_return(plan->job)) {
        g_set_error(error, BE_ERROR, ECANCELED, "cancelled");
        return FALSE;
    }
    if (!be_quiesce_begin(plan->be, plan->domain, plan->uuid, plan->quiesce,
                          plan->running && plan->xml->agent_connected, &plan->window, error)) {
        return FALSE;
    }
    (void)(memory ? call_watched(&call, &create_error) : call_libvirt(&call, &create_error));
    be_quiesce_end(plan->be, plan->domain, plan->uuid, AREA, &plan->window);
    if (create_error) {
        if (plan->wanted->memory != BE_PART_NONE && plan->running) {
            be_domain_run_on(plan->be, plan->domain, plan->uuid, "the saving of its memory");
        }
        plan->uncertain = leaves_doubt(create_error);
        g_propagate_error(error, g_steal_pointer(&create_error));
        return FALSE;
    }
    return TRUE;
}

static void undo_create(gpointer work)
{
    SnapshotPlan *plan = work;

    if (!plan->uncertain) {
        plan->uncertain = snapshot_settle(plan->domain, plan->wanted) != SNAPSHOT_NOT_MADE;
    }
}

static const BeStep steps[] = {
    {"record", run_record, undo_record},
    {"hold", run_hold, let_go},
    {"create", run_create, undo_create},
    {NULL, NULL, NULL},
};

/* From here on it is there, also when its caller has given it up in the last moment. */
static void finish(SnapshotPlan *plan)
{
    BeOwner owner = {.uid = plan->caller.uid, .frozen_us = plan->window.frozen_us};

    /* With its memory a guest goes on as if nothing had been: there is no such question. */
    owner.known = plan->wanted->memory == BE_PART_NONE;
    owner.consistency = plan->active ? plan->window.consistency : BE_CONSISTENCY_OFFLINE;
    let_go(plan);
    be_crash_point(AREA, "finish", "before");
    be_change_mend(plan->be, plan->uuid, plan->name);   /* of one that others deleted */
    snapshot_finish(plan->be, plan->domain, plan->uuid, plan->wanted, &owner);
    be_crash_point(AREA, "finish", "after");
    snapshot_record_remove(plan);
}

/* Whoever lists meanwhile sees it when it is made, not when libvirt begins. */
gboolean snapshot_make(SnapshotPlan *plan, GError **error)
{
    g_autoptr(GError) read_error = NULL;
    gboolean made;

    be_objects_hide(plan->be, BE_SNAPSHOTS, plan->uuid, plan->name);
    made = be_steps_run(AREA, steps, plan, plan->job, error);
    if (made) {
        finish(plan);
    }
    be_objects_unhide(plan->be, BE_SNAPSHOTS, plan->uuid, plan->name);
    if (!be_objects_read(plan->be, BE_SNAPSHOTS, plan->uuid, &read_error)) {
        g_warning("%s", read_error->message);
    }
    return made;
}
