/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-recover.c - snapshots that were being made when we, or the connection,
 * went away.
 *
 * libvirt goes on without us: the snapshot is made or it is not.  One that is made
 * stays, for its user may have been told; of one that is not the files are removed.
 * Workers; `lock` guards the list of what is left.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/objects.h"
#include "backend/record.h"
#include "backend/snapshot-plan.h"
#include "backend/snapshot.h"

#define KIND "snapshots"
#define AGAIN_MS 2000
#define TRIES 30

/* One that an earlier process, or a lost connection, left. */
typedef struct {
    char *id;                  /* of the record */
    char *uuid;                /* of the domain */
    uid_t uid;
    BeXmlSnapshot *wanted;
    guint tries;
} Left;

struct BeSnapshotsLeft {
    GMutex lock;
    GPtrArray *left;           /* of Left; guarded by lock */
};

static void left_free(gpointer data)
{
    Left *left = data;

    be_xml_snapshot_free(left->wanted);
    g_free(left->id);
    g_free(left->uuid);
    g_free(left);
}

/* ---- The record ------------------------------------------------------------------------- */

gboolean snapshot_record_write(const SnapshotPlan *plan, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();
    g_autofree char *xml = be_xml_snapshot_build(plan->wanted, error);

    if (!xml) {
        return FALSE;
    }
    be_record_set_string(object, "domain-uuid", plan->uuid);
    be_record_set_string(object, "xml", xml);
    json_object_set_int_member(object, "uid", plan->caller.uid);
    return be_record_write(plan->be, KIND, plan->record_id, object, error);
}

void snapshot_record_remove(const SnapshotPlan *plan)
{
    be_record_remove(plan->be, KIND, plan->record_id);
}

static Left *left_of(Be *be, const BeRecord *record)
{
    const char *uuid = be_record_get_string(record->object, "domain-uuid");
    const char *xml = be_record_get_string(record->object, "xml");
    g_autoptr(BeXmlSnapshot) wanted = xml ? be_xml_snapshot_parse(xml, NULL) : NULL;
    Left *left;

    if (!uuid || !wanted) {
        be_record_set_aside(be, KIND, record->id, "no snapshot that makes sense");
        return NULL;
    }
    left = g_new0(Left, 1);
    left->id = g_strdup(record->id);
    left->uuid = g_strdup(uuid);
    left->uid = (uid_t)be_record_get_int(record->object, "uid");
    left->wanted = g_steal_pointer(&wanted);
    return left;
}

/* ---- Made or not -------------------------------------------------------------------------- */

static const BeXmlSnapshotDisk *first_external(const BeXmlSnapshot *snapshot)
{
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (disk->part == BE_PART_EXTERNAL) {
            return disk;
        }
    }
    return NULL;
}

/* The one of that name may be somebody else's, made when ours was not. */
static gboolean is_ours(const BeXmlSnapshot *found, const BeXmlSnapshot *wanted)
{
    const BeXmlSnapshotDisk *disk = first_external(wanted);
    const BeXmlSnapshotDisk *same = disk ? be_xml_snapshot_disk(found, disk->target) : NULL;

    return !disk || (same && g_strcmp0(same->overlay.path, disk->overlay.path) == 0);
}

/* libvirt lists a snapshot when it begins; the machine writes to its overlay at the end. */
static gboolean is_complete(virDomainPtr domain, const BeXmlSnapshot *wanted)
{
    const BeXmlSnapshotDisk *disk = first_external(wanted);
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, 0, NULL);
    const BeXmlDisk *now = xml && disk ? be_xml_domain_disk(xml, disk->target) : NULL;

    return xml && (!disk || (now && g_strcmp0(now->top.path, disk->overlay.path) == 0));
}

static SnapshotOutcome outcome_of(virDomainPtr domain, virDomainSnapshotPtr found,
                                  const BeXmlSnapshot *wanted)
{
    char *xml = virDomainSnapshotGetXMLDesc(found, 0);
    g_autoptr(BeXmlSnapshot) parsed = xml ? be_xml_snapshot_parse(xml, NULL) : NULL;

    free(xml);
    if (!parsed) {
        return SNAPSHOT_UNKNOWN;
    }
    if (!is_ours(parsed, wanted)) {
        return SNAPSHOT_NOT_MADE;
    }
    return is_complete(domain, wanted) ? SNAPSHOT_MADE : SNAPSHOT_UNKNOWN;
}

SnapshotOutcome snapshot_settle(virDomainPtr domain, const BeXmlSnapshot *wanted)
{
    SnapshotOutcome outcome = SNAPSHOT_UNKNOWN;
    virDomainSnapshotPtr found;

    if (virDomainIsActive(domain) == 1 && !be_domain_is_idle(domain, NULL, NULL)) {
        return SNAPSHOT_UNKNOWN;
    }
    found = virDomainSnapshotLookupByName(domain, wanted->name, 0);
    if (found) {
        outcome = outcome_of(domain, found, wanted);
        virDomainSnapshotFree(found);
    } else if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_SNAPSHOT) {
        outcome = SNAPSHOT_NOT_MADE;
    }
    if (outcome == SNAPSHOT_NOT_MADE) {
        snapshot_remove_files(domain, wanted);
    }
    return outcome;
}

void snapshot_finish(Be *be, virDomainPtr domain, const char *uuid, const BeXmlSnapshot *wanted,
                     const BeOwner *owner)
{
    virDomainSnapshotPtr found = virDomainSnapshotLookupByName(domain, wanted->name, 0);
    char *xml = found ? virDomainSnapshotGetXMLDesc(found, 0) : NULL;
    g_autoptr(BeXmlSnapshot) made = xml ? be_xml_snapshot_parse(xml, NULL) : NULL;
    g_autofree char *id = NULL;
    g_autoptr(GError) error = NULL;

    snapshot_protect_files(wanted);
    if (made) {
        id = be_object_identity(BE_SNAPSHOTS, uuid, made->name, made->created_s * G_USEC_PER_SEC);
    }
    if (!id || !be_owner_set(be, BE_SNAPSHOTS, uuid, id, owner, &error)) {
        g_warning("snapshot '%s': only root may delete it: %s", wanted->name,
                  error ? error->message : "libvirt does not show it");
    }
    free(xml);
    if (found) {
        virDomainSnapshotFree(found);
    }
}

/* ---- What is left ------------------------------------------------------------------ */

static void recover_again(Be *be, gpointer data G_GNUC_UNUSED)
{
    be_snapshots_recover(be);
}

static gboolean ask_again(gpointer data)
{
    be_query(data, recover_again, NULL, NULL);
    return G_SOURCE_REMOVE;
}

/* Returns: whether nothing more has to be done. */
static gboolean recover_one(Be *be, Left *left)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, left->uuid, &error);
    BeOwner owner = {.uid = left->uid};
    SnapshotOutcome outcome;

    if (!domain) {
        return error->code == ENOENT;
    }
    outcome = snapshot_settle(domain, left->wanted);
    if (outcome == SNAPSHOT_UNKNOWN) {
        return ++left->tries >= TRIES;
    }
    if (outcome == SNAPSHOT_MADE) {
        snapshot_finish(be, domain, left->uuid, left->wanted, &owner);
    }
    g_info("snapshot '%s' that was being made: %s", left->wanted->name,
           outcome == SNAPSHOT_MADE ? "it is there" : "it was not made");
    return TRUE;
}

void be_snapshots_recover(Be *be)
{
    GPtrArray *again = g_ptr_array_new_with_free_func(left_free);
    GPtrArray *left;

    g_mutex_lock(&be->snapshots_left->lock);
    left = be->snapshots_left->left;
    be->snapshots_left->left = again;
    g_mutex_unlock(&be->snapshots_left->lock);
    while (left->len > 0) {
        Left *one = g_ptr_array_steal_index(left, left->len - 1);

        if (recover_one(be, one)) {
            be_record_remove(be, KIND, one->id);
            left_free(one);
        } else {
            g_mutex_lock(&be->snapshots_left->lock);
            g_ptr_array_add(be->snapshots_left->left, one);
            g_mutex_unlock(&be->snapshots_left->lock);
            g_source_unref(be_timer_add(be, AGAIN_MS, ask_again, be, NULL));
        }
    }
    g_ptr_array_unref(left);
}

void snapshot_leave(SnapshotPlan *plan)
{
    Left *left = g_new0(Left, 1);

    left->id = g_strdup(plan->record_id);
    left->uuid = g_strdup(plan->uuid);
    left->uid = plan->caller.uid;
    left->wanted = g_steal_pointer(&plan->wanted);
    g_mutex_lock(&plan->be->snapshots_left->lock);
    g_ptr_array_add(plan->be->snapshots_left->left, left);
    g_mutex_unlock(&plan->be->snapshots_left->lock);
    g_source_unref(be_timer_add(plan->be, AGAIN_MS, ask_again, plan->be, NULL));
}

void be_snapshots_load(Be *be)
{
    g_autoptr(GPtrArray) records = be_record_load(be, KIND);

    for (guint i = 0; i < records->len; i++) {
        Left *left = left_of(be, g_ptr_array_index(records, i));

        if (left) {
            g_ptr_array_add(be->snapshots_left->left, left);
        }
    }
}

BeSnapshotsLeft *be_snapshots_left_new(void)
{
    BeSnapshotsLeft *all = g_new0(BeSnapshotsLeft, 1);

    g_mutex_init(&all->lock);
    all->left = g_ptr_array_new_with_free_func(left_free);
    return all;
}

void be_snapshots_left_free(BeSnapshotsLeft *all)
{
    if (all) {
        g_ptr_array_unref(all->left);
        g_mutex_clear(&all->lock);
        g_free(all);
    }
}
