/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * delete-record.c - deletions on disk before they begin, and what becomes of one when
 * we died meanwhile: it is finished, because what it has written into the image of the
 * snapshot cannot be taken back.
 *
 * Query workers load, action workers settle.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <unistd.h>

#include "backend/delete.h"
#include "backend/error.h"
#include "backend/objects.h"
#include "backend/readings.h"
#include "backend/record.h"

#define KIND "deletes"

/* Of this process. */
static const char *mark(void)
{
    static gsize made;

    if (g_once_init_enter(&made)) {
        g_once_init_leave(&made, (gsize)g_uuid_string_random());
    }
    return (const char *)made;
}

/* ---- Writing ---- */

static JsonObject *to_json(const DeletePlan *plan, const char *name, const char *owner)
{
    JsonObject *record = json_object_new();
    JsonArray *disks = json_array_new();
    JsonArray *drops = json_array_new();

    be_record_set_string(record, "owner", owner);
    be_record_set_string(record, "domain-uuid", plan->uuid);
    be_record_set_string(record, "snapshot", name);
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);
        JsonObject *row = json_object_new();

        be_record_set_string(row, "target", disk->target);
        be_record_set_string(row, "from", disk->from);
        be_record_set_string(row, "to", disk->to);
        be_record_set_string(row, "format", disk->format);
        json_object_set_boolean_member(row, "block", disk->block);
        json_object_set_boolean_member(row, "in-use", disk->in_use);
        json_object_set_boolean_member(row, "merged", disk->merged);
        json_array_add_object_element(disks, row);
    }
    json_object_set_array_member(record, "disks", disks);
    be_record_set_string(record, "memory", plan->memory);
    for (guint i = 0; i < plan->drops->len; i++) {
        json_array_add_string_element(drops, g_ptr_array_index(plan->drops, i));
    }
    json_object_set_array_member(record, "drops", drops);
    return record;
}

gboolean delete_record_write(DeletePlan *plan, const char *name, GError **error)
{
    g_autoptr(JsonObject) record = to_json(plan, name, mark());

    plan->recorded = be_record_write(plan->be, KIND, plan->uuid, record, error);
    return plan->recorded;
}

static void delete_record_give_up(DeletePlan *plan)
{
    g_autoptr(JsonObject) record =
        plan->recorded ? be_record_read(plan->be, KIND, plan->uuid, NULL) : NULL;

    if (record) {
        json_object_remove_member(record, "owner");
        (void)be_record_write(plan->be, KIND, plan->uuid, record, NULL);
    }
    plan->recorded = FALSE;
}

/* ---- After a crash ---- */

static void get_disks(JsonObject *record, GPtrArray *disks)
{
    JsonArray *array = be_record_get_array(record, "disks");
    JsonObject *row;

    for (guint i = 0; (row = be_record_element(array, i)); i++) {
        const char *target = be_record_get_string(row, "target");
        const char *from = be_record_get_string(row, "from");
        const char *to = be_record_get_string(row, "to");
        const char *format = be_record_get_string(row, "format");
        DeleteDisk *disk;

        if (!from || !to || !format || !g_path_is_absolute(from)
            || !g_path_is_absolute(to)) {
            continue;
        }
        disk = g_new0(DeleteDisk, 1);
        disk->target = g_strdup(target);
        disk->from = g_strdup(from);
        disk->to = g_strdup(to);
        disk->format = g_strdup(format);
        disk->block = be_record_get_bool(row, "block");
        disk->in_use = be_record_get_bool(row, "in-use");
        disk->merged = be_record_get_bool(row, "merged");
        g_ptr_array_add(disks, disk);
    }
}

static void get_drops(JsonObject *record, DeletePlan *plan)
{
    JsonArray *array = be_record_get_array(record, "drops");
    const char *memory = be_record_get_string(record, "memory");
    guint count = array ? json_array_get_length(array) : 0;

    g_free(plan->memory);
    plan->memory = memory && g_path_is_absolute(memory) ? g_strdup(memory) : NULL;
    for (guint i = 0; i < count; i++) {
        JsonNode *node = json_array_get_element(array, i);
        const char *path = JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node) : NULL;

        if (path && g_path_is_absolute(path)) {
            g_ptr_array_add(plan->drops, g_strdup(path));
        }
    }
}

/* QEMU may have finished a merge that we did not live to write down. */
static gboolean is_merged(const DeletePlan *plan, const DeleteDisk *disk)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, NULL);
    BeTreeImage *from = tree ? be_tree_image(tree, disk->from) : NULL;
    BeTreeImage *top = tree && disk->target ? be_tree_top(tree, disk->target) : NULL;

    return disk->merged || (disk->in_use && top && !(from && be_tree_is_below(top, from)));
}

/* Returns: FALSE with the record kept. */
static gboolean settle(DeletePlan *plan, GError **error)
{
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->target) {
            delete_stop_job(plan, disk->target);
        }
        if (is_merged(plan, disk) && !delete_switch(plan, disk, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean is_gone(const DeletePlan *plan, const char *name)
{
    g_autoptr(BeTree) tree = be_tree_read(plan->domain, NULL);

    return tree && name && !be_tree_snapshot(tree, name);
}

gboolean delete_settle_pending(DeletePlan *plan, GError **error)
{
    g_autoptr(JsonObject) record = be_record_read(plan->be, KIND, plan->uuid, NULL);
    const char *name = record ? be_record_get_string(record, "snapshot") : NULL;
    gboolean gone;

    if (!record) {
        return TRUE;
    }
    get_disks(record, plan->disks);
    get_drops(record, plan);
    if (!settle(plan, error)) {
        return FALSE;
    }
    gone = is_gone(plan, name);
    if (gone && !delete_clear(plan, error)) {
        return FALSE;
    }
    g_ptr_array_set_size(plan->disks, 0);
    g_ptr_array_set_size(plan->drops, 0);
    g_clear_pointer(&plan->memory, g_free);
    if (gone || g_strcmp0(name, plan->name) != 0) {
        be_record_remove(plan->be, KIND, plan->uuid);
    }
    return TRUE;
}

static gboolean is_half_switched(const DeletePlan *plan)
{
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);

        if (disk->merged && access(disk->from, F_OK) == 0) {
            return TRUE;
        }
    }
    return FALSE;
}

#define RETRY_MS 1000
#define RETRY_BUSY_MS 5000

static void recover_on_worker(Be *be, gpointer data G_GNUC_UNUSED)
{
    be_deletes_recover(be, TRUE);
}

static gboolean recover_again(gpointer data)
{
    Be *be = data;

    if (!g_atomic_int_get(&be->stopping)) {
        be_query(be, recover_on_worker, NULL, NULL);
    }
    return G_SOURCE_REMOVE;
}

static void recover_later(Be *be, guint delay_ms)
{
    g_source_unref(be_timer_add(be, delay_ms, recover_again, be, NULL));
}

/*
 * Whoever cancelled a deletion does not want it to go on by itself.  Where the snapshot
 * is gone and only its files could not be removed, that is tried once more.
 */
void delete_record_end(DeletePlan *plan, gboolean good)
{
    gboolean half = !good && plan->begun && !be_job_is_cancelled(plan->job);

    if (half || is_half_switched(plan)) {
        delete_record_give_up(plan);
        if (half && plan->forgotten) {
            recover_later(plan->be, RETRY_MS);
        }
    } else if (plan->recorded || good) {
        be_record_remove(plan->be, KIND, plan->uuid);   /* that of an earlier attempt, too */
    }
    plan->recorded = FALSE;
}

/* Nobody's job lock may be waited for, nor a reader be shown what is half written. */
static gboolean recover(DeletePlan *plan, const char *name, GError **error)
{
    gboolean good;

    be_readings_stop(plan->be, plan->uuid);
    good = delete_settle_pending(plan, error)
           && be_change_nothing_runs(plan->be, plan->domain, plan->uuid, error)
           && delete_one(plan, name, error);
    good = delete_let_go(plan, good ? error : NULL) && good;
    delete_record_end(plan, good);
    be_readings_go_on(plan->be, plan->uuid);
    return good;
}

static gboolean run_recover(Be *be, BeJob *job, gpointer data, GError **error)
{
    const char *id = data;
    g_autoptr(JsonObject) record = be_record_read(be, KIND, id, NULL);
    const char *name = record ? be_record_get_string(record, "snapshot") : NULL;
    g_autoptr(GError) domain_error = NULL;
    g_autoptr(GError) failure = NULL;
    g_autoptr(DeletePlan) plan = NULL;
    gboolean good;

    if (!record || g_strcmp0(be_record_get_string(record, "owner"), mark()) == 0) {
        return TRUE;
    }
    if (!name) {
        be_record_set_aside(be, KIND, id, "it is no record of a deletion");
        return TRUE;
    }
    plan = delete_plan_new(be, id, name);
    plan->job = job;
    plan->domain = be_conn_domain(be->action_conn, id, &domain_error);
    if (!plan->domain && domain_error->code == ENOENT) {
        be_record_remove(be, KIND, id);
        return TRUE;
    }
    if (!plan->domain) {
        return TRUE;           /* at the next connect */
    }
    /* Whoever holds it for the process that died is about to turn it off. */
    if (be_paused_is_left(be, id)) {
        recover_later(be, RETRY_MS);
        return TRUE;
    }
    g_info("finishing the deletion of snapshot '%s' that a crash left", name);
    good = recover(plan, name, &failure);
    (void)be_objects_read(be, BE_SNAPSHOTS, id, NULL);
    if (!good && failure->code == EBUSY) {
        g_info("the deletion of snapshot '%s' waits: %s", name, failure->message);
        recover_later(be, RETRY_BUSY_MS);
        return TRUE;
    }
    if (!good) {
        g_propagate_error(error, g_steal_pointer(&failure));
    }
    return good;
}

static void recovered(const GError *error, gpointer user G_GNUC_UNUSED)
{
    if (error) {
        g_warning("a deletion that was interrupted is not finished: %s", error->message);
    }
}

static gboolean domain_is_gone(Be *be, const char *uuid)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, uuid, &error);

    return !domain && error->code == ENOENT;
}

static gboolean is_due(Be *be, const BeRecord *record, gboolean again)
{
    const char *owner = be_record_get_string(record->object, "owner");

    return owner ? !g_str_equal(owner, mark()) : again || domain_is_gone(be, record->id);
}

void be_deletes_recover(Be *be, gboolean again)
{
    g_autoptr(GPtrArray) records = be->read_only ? NULL : be_record_load(be, KIND);

    if (records) {
        be_changes_forget_gone(be);
    }
    for (guint i = 0; records && i < records->len; i++) {
        const BeRecord *record = g_ptr_array_index(records, i);

        if (is_due(be, record, again)) {
            be_job_unref(be_job_submit(be, record->id, BE_JOB_WAITS, "recovery of a deletion",
                                       run_recover, g_strdup(record->id), g_free, recovered,
                                       NULL));
        }
    }
}
