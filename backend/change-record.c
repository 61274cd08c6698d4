/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * change-record.c - what we know of a domain's snapshots and libvirt does not: one
 * record for each domain, of overlays that no snapshot names, and of snapshots whose
 * deletion has begun and did not end.  Action workers, one per domain.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/change.h"
#include "backend/record.h"

#define KIND "trees"
#define OVERLAYS "overlays"
#define BROKEN "broken"

static JsonObject *load(Be *be, const char *uuid)
{
    JsonObject *record = be_record_read(be, KIND, uuid, NULL);

    return record ? record : json_object_new();
}

static JsonArray *member(JsonObject *record, const char *key)
{
    JsonArray *array = be_record_get_array(record, key);

    if (!array) {
        array = json_array_new();
        json_object_set_array_member(record, key, array);
    }
    return array;
}

/* -1: it is not there. */
static int index_of(JsonArray *array, const char *text)
{
    guint count = array ? json_array_get_length(array) : 0;

    for (guint i = 0; i < count; i++) {
        JsonNode *node = json_array_get_element(array, i);

        if (JSON_NODE_HOLDS_VALUE(node) && g_strcmp0(json_node_get_string(node), text) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static void add(JsonArray *array, const char *text)
{
    if (index_of(array, text) < 0) {
        json_array_add_string_element(array, text);
    }
}

/* Images that are gone need no memory. */
static void forget_gone(JsonArray *overlays)
{
    for (guint i = json_array_get_length(overlays); i > 0; i--) {
        JsonNode *node = json_array_get_element(overlays, i - 1);
        const char *path = JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node) : NULL;
        struct stat st;

        if (!path || (stat(path, &st) < 0 && errno == ENOENT)) {
            json_array_remove_element(overlays, i - 1);
        }
    }
}

static gboolean store(Be *be, const char *uuid, JsonObject *record, GError **error)
{
    forget_gone(member(record, OVERLAYS));
    if (json_array_get_length(member(record, OVERLAYS)) == 0
        && json_array_get_length(member(record, BROKEN)) == 0) {
        be_record_remove(be, KIND, uuid);
        return TRUE;
    }
    return be_record_write(be, KIND, uuid, record, error);
}

gboolean be_change_remember(Be *be, const char *uuid, const GPtrArray *paths, GError **error)
{
    g_autoptr(JsonObject) record = load(be, uuid);

    for (guint i = 0; i < paths->len; i++) {
        add(member(record, OVERLAYS), g_ptr_array_index(paths, i));
    }
    return store(be, uuid, record, error);
}

void be_change_tidy(Be *be, const char *uuid)
{
    g_autoptr(JsonObject) record = be_record_read(be, KIND, uuid, NULL);

    if (record) {
        (void)store(be, uuid, record, NULL);
    }
}

gboolean be_change_remembers(Be *be, const char *uuid, const char *path)
{
    g_autoptr(JsonObject) record = load(be, uuid);

    return index_of(be_record_get_array(record, OVERLAYS), path) >= 0;
}

gboolean be_change_is_whole(Be *be, const char *uuid, const char *name, GError **error)
{
    g_autoptr(JsonObject) record = load(be, uuid);

    if (index_of(be_record_get_array(record, BROKEN), name) >= 0) {
        g_set_error(error, BE_ERROR, EUCLEAN,
                    "the snapshot '%s' is no longer what it was: its deletion began and did not "
                    "end; delete it again (rmdir snapshots/%s)",
                    name, name);
        return FALSE;
    }
    return TRUE;
}

gboolean be_change_break(Be *be, const char *uuid, const char *name, GError **error)
{
    g_autoptr(JsonObject) record = load(be, uuid);

    add(member(record, BROKEN), name);
    return store(be, uuid, record, error);
}

void be_change_mend(Be *be, const char *uuid, const char *name)
{
    g_autoptr(JsonObject) record = load(be, uuid);
    g_autoptr(GError) error = NULL;
    int index = index_of(be_record_get_array(record, BROKEN), name);

    if (index >= 0) {
        json_array_remove_element(member(record, BROKEN), (guint)index);
    }
    if (!store(be, uuid, record, &error)) {
        g_warning("%s", error->message);
    }
}

void be_changes_forget_gone(Be *be)
{
    g_autoptr(GPtrArray) records = be_record_load(be, KIND);

    for (guint i = 0; i < records->len; i++) {
        const BeRecord *record = g_ptr_array_index(records, i);
        g_autoptr(GError) error = NULL;
        g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, record->id, &error);

        if (!domain && error->code == ENOENT) {
            be_record_remove(be, KIND, record->id);
        }
    }
}
