/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot.c - snapshots as libvirt has them: their list and their texts.
 *
 * On query workers, and on the workers of actions.
 */
#include "backend/snapshot.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "backend/error.h"
#include "backend/files.h"
#include "backend/job.h"
#include "backend/objects.h"
#include "backend/snapshot-read.h"

/* ---- The list ---------------------------------------------------------------------- */

static int list_snapshots(virDomainPtr domain, void ***ret_handles)
{
    virDomainSnapshotPtr *snapshots = NULL;
    int count = virDomainListAllSnapshots(domain, &snapshots, 0);

    *ret_handles = (void **)snapshots;
    return count;
}

static const char *snapshot_name(void *handle)
{
    return virDomainSnapshotGetName(handle);
}

static char *snapshot_xml(void *handle)
{
    return virDomainSnapshotGetXMLDesc(handle, 0);
}

static void snapshot_free_handle(void *handle)
{
    virDomainSnapshotFree(handle);
}

static char *current_snapshot(virDomainPtr domain)
{
    virDomainSnapshotPtr snapshot = virDomainSnapshotCurrent(domain, 0);
    char *name;

    if (!snapshot) {
        return NULL;
    }
    name = g_strdup(virDomainSnapshotGetName(snapshot));
    virDomainSnapshotFree(snapshot);
    return name;
}

static BeObject *parse_snapshot(const char *xml, GError **error)
{
    g_autoptr(BeXmlSnapshot) parsed = be_xml_snapshot_parse(xml, error);
    BeSnapshot *snapshot;

    if (!parsed) {
        return NULL;
    }
    snapshot = g_new0(BeSnapshot, 1);
    snapshot->object.name = g_steal_pointer(&parsed->name);
    snapshot->object.parent = g_steal_pointer(&parsed->parent);
    snapshot->object.description = g_steal_pointer(&parsed->description);
    snapshot->object.created_us = parsed->created_s * G_USEC_PER_SEC;
    snapshot->state = g_steal_pointer(&parsed->state);
    snapshot->memory = parsed->memory;
    snapshot->files = be_snapshot_files_new(parsed);
    snapshot->memory_file = g_steal_pointer(&parsed->memory_file);
    return &snapshot->object;
}

static void clear_snapshot(BeObject *object)
{
    BeSnapshot *snapshot = (BeSnapshot *)object;

    g_free(snapshot->state);
    g_free(snapshot->memory_file);
    be_files_discard(snapshot->guest_files);
    g_ptr_array_unref(snapshot->files);
}

const BeObjectOps be_snapshot_ops = {
    .what = "snapshots",
    .list = list_snapshots,
    .name = snapshot_name,
    .xml = snapshot_xml,
    .free_handle = snapshot_free_handle,
    .current = current_snapshot,
    .parse = parse_snapshot,
    .clear = clear_snapshot,
};

/* ---- One of them ------------------------------------------------------------------- */

static gboolean is_the_same(const BeSnapshot *snapshot, const char *xml, GError **error)
{
    g_autoptr(BeXmlSnapshot) now = be_xml_snapshot_parse(xml, error);

    if (now && now->created_s * G_USEC_PER_SEC != snapshot->object.created_us) {
        g_set_error(error, BE_ERROR, ENOENT, "the snapshot '%s' is gone; another has its name now",
                    snapshot->object.name);
        return FALSE;
    }
    return now != NULL;
}

virDomainSnapshotPtr be_snapshot_find(virDomainPtr domain, const BeSnapshot *snapshot,
                                      char **ret_xml, GError **error)
{
    virDomainSnapshotPtr found = virDomainSnapshotLookupByName(domain, snapshot->object.name, 0);
    char *xml = found ? virDomainSnapshotGetXMLDesc(found, 0) : NULL;

    if (!xml) {
        be_error_from_libvirt(error, "cannot look at the snapshot");
    } else if (is_the_same(snapshot, xml, error)) {
        if (ret_xml) {
            *ret_xml = g_steal_pointer(&xml);
        }
        free(xml);
        return found;
    }
    free(xml);
    if (found) {
        virDomainSnapshotFree(found);
    }
    return NULL;
}

/* ---- Texts ---------------------------------------------------------------------------- */

typedef struct {
    BeSnapshot *snapshot;      /* a reference */
    gboolean domain_only;
    BeTextDone done;
    gpointer user;
} XmlQuery;

static void xml_query_free(gpointer data)
{
    XmlQuery *query = data;

    be_object_unref(&query->snapshot->object);
    g_free(query);
}

static char *read_xml(Be *be, const BeSnapshot *snapshot, GError **error)
{
    g_autoptr(BeVirDomain) domain =
        be_conn_domain(be->query_conn, snapshot->object.domain_uuid, error);
    virDomainSnapshotPtr found;
    char *xml = NULL;

    if (!domain) {
        return NULL;
    }
    found = be_snapshot_find(domain, snapshot, &xml, error);
    if (found) {
        virDomainSnapshotFree(found);
    }
    return xml;
}

static void xml_query_run(Be *be, gpointer data)
{
    const XmlQuery *query = data;
    g_autoptr(GError) error = NULL;
    char *xml = read_xml(be, query->snapshot, &error);
    g_autofree char *domain_xml =
        xml && query->domain_only ? be_xml_snapshot_domain_text(xml, &error) : NULL;

    query->done(query->domain_only ? domain_xml : xml, error, query->user);
    free(xml);
}

static void fetch(Be *be, BeSnapshot *snapshot, gboolean domain_only, BeTextDone done,
                  gpointer user)
{
    XmlQuery *query = g_new0(XmlQuery, 1);

    be_object_ref(&snapshot->object);
    query->snapshot = snapshot;
    query->domain_only = domain_only;
    query->done = done;
    query->user = user;
    be_query(be, xml_query_run, query, xml_query_free);
}

void be_snapshot_xml_fetch(Be *be, BeSnapshot *snapshot, BeTextDone done, gpointer user)
{
    fetch(be, snapshot, FALSE, done, user);
}

void be_snapshot_domain_xml_fetch(Be *be, BeSnapshot *snapshot, BeTextDone done, gpointer user)
{
    fetch(be, snapshot, TRUE, done, user);
}
