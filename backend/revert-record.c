/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * revert-record.c - what a revert is about to do, on disk before it does it, and
 * what becomes of it when we died meanwhile.
 *
 * A record holds all that undo needs.  One whose revert runs in this process bears
 * its mark and is nobody else's.  Query workers load, action workers settle.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <unistd.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/record.h"
#include "backend/revert.h"
#include "backend/step.h"

#define KIND "reverts"

/* Of this process. */
static const char *mark(void)
{
    static gsize made;

    if (g_once_init_enter(&made)) {
        g_once_init_leave(&made, (gsize)g_uuid_string_random());
    }
    return (const char *)made;
}

/* ---- Writing ------------------------------------------------------------------------ */

static void set_images(JsonObject *record, const char *key, const GPtrArray *images)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < images->len; i++) {
        const BeXmlImage *image = g_ptr_array_index(images, i);
        JsonObject *row = json_object_new();

        be_record_set_string(row, "target", image->target);
        be_record_set_string(row, "path", image->path);
        be_record_set_string(row, "format", image->format);
        json_array_add_object_element(array, row);
    }
    json_object_set_array_member(record, key, array);
}

static JsonObject *to_json(const RevertPlan *plan, const char *owner)
{
    JsonObject *record = json_object_new();
    JsonArray *left = json_array_new();

    be_record_set_string(record, "owner", owner);
    be_record_set_string(record, "domain-uuid", plan->uuid);
    be_record_set_string(record, "snapshot", plan->name);
    be_record_set_string(record, "keep", plan->keep);
    be_record_set_string(record, "old-inactive", plan->old_inactive);
    be_record_set_string(record, "old-live", plan->old_live);
    be_record_set_string(record, "old-snapshot", plan->old_snapshot);
    be_record_set_string(record, "old-current", plan->old_current);
    be_record_set_string(record, "saved", plan->saved);
    json_object_set_int_member(record, "stage", plan->stage);
    json_object_set_int_member(record, "wants", revert_wants(plan));
    json_object_set_boolean_member(record, "restores", plan->restores);
    json_object_set_boolean_member(record, "was-active", plan->was_active);
    json_object_set_boolean_member(record, "was-paused", plan->was_paused);
    set_images(record, "overlays", plan->overlays);
    set_images(record, "bases", plan->bases);
    for (guint i = 0; i < plan->left->len; i++) {
        json_array_add_string_element(left, g_ptr_array_index(plan->left, i));
    }
    json_object_set_array_member(record, "left", left);
    return record;
}

static gboolean write_record(RevertPlan *plan, const char *owner, GError **error)
{
    g_autoptr(JsonObject) record = to_json(plan, owner);

    return be_record_write(plan->be, KIND, plan->id, record, error);
}

gboolean revert_record_write(RevertPlan *plan, RevertStage stage, GError **error)
{
    plan->stage = stage;
    return write_record(plan, mark(), error);
}

void revert_record_drop(RevertPlan *plan)
{
    if (plan->id) {
        be_record_remove(plan->be, KIND, plan->id);
        g_clear_pointer(&plan->id, g_free);
    }
}

void revert_record_give_up(RevertPlan *plan)
{
    if (plan->id) {
        (void)write_record(plan, NULL, NULL);
        g_clear_pointer(&plan->id, g_free);
    }
}

/* ---- Reading ------------------------------------------------------------------------ */

static void get_images(JsonObject *record, const char *key, GPtrArray *images)
{
    JsonArray *array = be_record_get_array(record, key);
    JsonObject *row;

    for (guint i = 0; (row = be_record_element(array, i)); i++) {
        const char *path = be_record_get_string(row, "path");

        if (path && g_path_is_absolute(path)) {
            g_ptr_array_add(images, be_xml_image_new(be_record_get_string(row, "target"), path,
                                                     be_record_get_string(row, "format"), FALSE));
        }
    }
}

static void get_left(JsonObject *record, GPtrArray *left)
{
    JsonArray *array = be_record_get_array(record, "left");
    guint count = array ? json_array_get_length(array) : 0;

    for (guint i = 0; i < count; i++) {
        JsonNode *node = json_array_get_element(array, i);
        const char *path = JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node) : NULL;

        if (path && g_path_is_absolute(path)) {
            g_ptr_array_add(left, g_strdup(path));
        }
    }
}

/* NULL: it makes no sense. */
static RevertPlan *from_json(Be *be, const char *id, JsonObject *record)
{
    const char *uuid = be_record_get_string(record, "domain-uuid");
    const char *name = be_record_get_string(record, "snapshot");
    g_autoptr(RevertPlan) plan = uuid && name ? revert_plan_new(be, uuid, name) : NULL;

    if (!plan) {
        return NULL;
    }
    g_free(plan->id);
    plan->id = g_strdup(id);
    plan->keep = g_strdup(be_record_get_string(record, "keep"));
    plan->kept = plan->keep != NULL;
    plan->old_inactive = g_strdup(be_record_get_string(record, "old-inactive"));
    plan->old_live = g_strdup(be_record_get_string(record, "old-live"));
    plan->old_snapshot = g_strdup(be_record_get_string(record, "old-snapshot"));
    plan->old_current = g_strdup(be_record_get_string(record, "old-current"));
    plan->saved = g_strdup(be_record_get_string(record, "saved"));
    plan->stage = (RevertStage)be_record_get_int(record, "stage");
    plan->to = (BeRevertTo)be_record_get_int(record, "wants");
    plan->restores = be_record_get_bool(record, "restores");
    plan->was_active = be_record_get_bool(record, "was-active");
    plan->was_paused = be_record_get_bool(record, "was-paused");
    get_images(record, "overlays", plan->overlays);
    get_images(record, "bases", plan->bases);
    get_left(record, plan->left);
    if (!plan->old_inactive || !plan->old_snapshot || plan->overlays->len == 0
        || plan->overlays->len != plan->bases->len || plan->to == BE_REVERT_AS_WAS
        || (plan->was_active && !plan->old_live)) {
        return NULL;
    }
    return g_steal_pointer(&plan);
}

/* ---- After a crash ---------------------------------------------------------------------- */

static gboolean stands(const RevertPlan *plan)
{
    const BeXmlImage *first = g_ptr_array_index(plan->overlays, 0);
    g_autoptr(BeXmlDomain) xml = be_domain_read(plan->domain, 0, NULL);
    const BeXmlDisk *disk = xml && first->target ? be_xml_domain_disk(xml, first->target) : NULL;

    return disk && g_strcmp0(disk->top.path, first->path) == 0;
}

#define JOB_WAIT_US (60 * G_USEC_PER_SEC)
#define JOB_POLL_US (100 * 1000)

/* A save that we began goes on without us, and turns the machine off at its end. */
static gboolean no_job_runs(const RevertPlan *plan)
{
    gint64 until_us = g_get_monotonic_time() + JOB_WAIT_US;
    virDomainJobInfo info = {.type = VIR_DOMAIN_JOB_NONE};

    while (virDomainIsActive(plan->domain) == 1 && virDomainGetJobInfo(plan->domain, &info) == 0
           && info.type != VIR_DOMAIN_JOB_NONE) {
        if (g_get_monotonic_time() > until_us || be_job_is_cancelled(plan->job)) {
            return FALSE;
        }
        g_usleep(JOB_POLL_US);
    }
    return TRUE;
}

/* A state that was to be kept, and is no snapshot yet, must not be left behind. */
static gboolean nothing_is_lost(const RevertPlan *plan)
{
    virDomainSnapshotPtr kept =
        plan->keep ? virDomainSnapshotLookupByName(plan->domain, plan->keep, 0) : NULL;
    gboolean found = kept != NULL;

    if (kept) {
        virDomainSnapshotFree(kept);
    }
    return found || !plan->keep;
}

/*
 * What the host shows decides: a machine that runs on the new images stands; one
 * that was to be off, and is, needs no going back; all else is taken back.
 */
static void settle(RevertPlan *plan)
{
    gboolean active, off_by_us, built_on;

    if (!no_job_runs(plan)) {
        return;                /* the record stays, for the next connect */
    }
    active = virDomainIsActive(plan->domain) == 1;
    off_by_us = !active && plan->stage >= REVERT_STOPPING;
    if (plan->stage == REVERT_STANDS || (active && stands(plan))
        || (off_by_us && plan->to == BE_REVERT_OFF && stands(plan) && nothing_is_lost(plan))) {
        g_info("finishing the revert to snapshot '%s' that was left", plan->name);
        revert_settle(plan);
        revert_record_drop(plan);
        return;
    }
    if (!revert_is_built_on(plan, &built_on, NULL)) {
        return;
    }
    if (built_on) {
        g_warning("the revert to snapshot '%s' is not taken back: the domain went on from it",
                  plan->name);
        revert_record_drop(plan);
        return;
    }
    g_info("taking back the revert to snapshot '%s' that was left", plan->name);
    revert_undo_start(plan);
    revert_undo_keep(plan);
    revert_undo_stop(plan);
    revert_undo_current(plan);
    revert_undo_define(plan);
    revert_undo_images(plan);
    if (plan->saved && plan->id) {
        unlink(plan->saved);
    }
    revert_record_drop(plan);
}

static gboolean run_recover(Be *be, BeJob *job, gpointer data, GError **error G_GNUC_UNUSED)
{
    const char *id = data;
    g_autoptr(JsonObject) record = be_record_read(be, KIND, id, NULL);
    g_autoptr(GError) domain_error = NULL;
    g_autoptr(RevertPlan) plan = NULL;

    if (!record || g_strcmp0(be_record_get_string(record, "owner"), mark()) == 0) {
        return TRUE;
    }
    plan = from_json(be, id, record);
    if (!plan) {
        be_record_set_aside(be, KIND, id, "it is no record of a revert");
        return TRUE;
    }
    plan->job = job;
    plan->domain = be_conn_domain(be->action_conn, plan->uuid, &domain_error);
    if (plan->domain) {
        settle(plan);
    } else if (domain_error->code == ENOENT) {
        revert_record_drop(plan);
    }
    return TRUE;
}

static void recovered(const GError *error, gpointer user G_GNUC_UNUSED)
{
    if (error) {
        g_warning("a revert that was interrupted is not settled: %s", error->message);
    }
}

void be_reverts_recover(Be *be)
{
    g_autoptr(GPtrArray) records = be->read_only ? NULL : be_record_load(be, KIND);

    for (guint i = 0; records && i < records->len; i++) {
        const BeRecord *record = g_ptr_array_index(records, i);
        const char *uuid = be_record_get_string(record->object, "domain-uuid");

        if (!uuid) {
            be_record_set_aside(be, KIND, record->id, "it names no domain");
        } else if (g_strcmp0(be_record_get_string(record->object, "owner"), mark()) != 0) {
            be_job_unref(be_job_submit(be, uuid, BE_JOB_WAITS, "recovery of a revert",
                                       run_recover, g_strdup(record->id), g_free, recovered,
                                       NULL));
        }
    }
}
