/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-record.c - libFuzzer target: records and the journal's backups from any
 * bytes, and what was read of a record written and read again.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backup.h"
#include "record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_again(JsonObject *object)
{
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);
    g_autoptr(JsonObject) again = NULL;
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;

    json_node_set_object(node, object);
    text = json_to_string(node, TRUE);
    again = be_record_parse(text, strlen(text), &error);
    g_assert_no_error(error);
    g_assert_cmpuint(json_object_get_size(again), ==, json_object_get_size(object));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static Be be;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = be_record_parse((const char *)data, size, &error);
    Backup *backup;

    g_assert_true((object == NULL) == (error != NULL));
    if (!object) {
        return 0;
    }
    fuzz_again(object);
    backup = be_journal_parse(&be, object);
    if (backup) {
        be_backup_unref(&backup->pub);
    }
    return 0;
}
