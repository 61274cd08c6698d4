/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-record.c - libFuzzer target: records, the journal's backups and those of
 * checkpoints from any bytes, and what was read written and read again.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backup.h"
#include "record.h"
#include "trust.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ours have no fractions: 1e999 is read as infinite, which is no JSON when written. */
static void fuzz_again(JsonObject *object)
{
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);
    g_autoptr(JsonObject) again = NULL;
    g_autofree char *text = NULL;

    json_node_set_object(node, object);
    text = json_to_string(node, TRUE);
    again = be_record_parse(text, strlen(text), NULL);
    if (again) {
        g_assert_cmpuint(json_object_get_size(again), ==, json_object_get_size(object));
    }
}

static void fuzz_checkpoint(JsonObject *object)
{
    g_autoptr(BeTrustRecord) record = be_trust_parse(object);
    g_autoptr(BeTrustRecord) again = NULL;
    g_autoptr(JsonObject) formatted = NULL;

    if (record) {
        formatted = be_trust_format(record);
        again = be_trust_parse(formatted);
        g_assert_cmpstr(again->name, ==, record->name);
        g_assert_cmpuint(again->disks->len, ==, record->disks->len);
    }
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
    fuzz_checkpoint(object);
    backup = be_journal_parse(&be, object);
    if (backup) {
        be_backup_unref(&backup->pub);
    }
    return 0;
}
