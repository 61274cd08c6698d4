/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-xml.c - libFuzzer target: each XML parser on any text, and what was read
 * of a backup built and read again.
 */
#include <stddef.h>
#include <stdint.h>

#include "xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_backup(const char *text)
{
    g_autoptr(BeXmlBackup) backup = be_xml_backup_parse(text, NULL);
    g_autofree char *xml = NULL;

    if (!backup || !backup->socket) {
        return;
    }
    xml = be_xml_backup_build(backup->socket, backup->disks, NULL);
    if (xml) {
        g_autoptr(GError) error = NULL;
        g_autoptr(BeXmlBackup) again = be_xml_backup_parse(xml, &error);

        g_assert_no_error(error);
        g_assert_cmpstr(again->socket, ==, backup->socket);
        g_assert_cmpuint(again->disks->len, ==, backup->disks->len);
    }
}

static void fuzz_checkpoint(const char *text)
{
    g_autoptr(BeXmlCheckpoint) checkpoint = be_xml_checkpoint_parse(text, NULL);
    g_autofree char *xml = NULL;

    if (!checkpoint) {
        return;
    }
    xml = be_xml_checkpoint_build(checkpoint->name, checkpoint->description, checkpoint->disks,
                                  NULL);
    if (xml) {
        g_autoptr(GError) error = NULL;
        g_autoptr(BeXmlCheckpoint) again = be_xml_checkpoint_parse(xml, &error);

        g_assert_no_error(error);
        g_assert_cmpstr(again->name, ==, checkpoint->name);
        g_assert_cmpstr(again->description, ==, checkpoint->description);
        g_assert_cmpuint(again->disks->len, ==, checkpoint->disks->len);
    }
    for (guint i = 0; i < checkpoint->disks->len; i++) {
        const BeXmlCheckpointDisk *disk = g_ptr_array_index(checkpoint->disks, i);
        g_autofree char *less = be_xml_checkpoint_without(text, disk->target, NULL);

        g_assert_true(less != NULL || !be_xml_checkpoint_disk(checkpoint, disk->target));
    }
}

static void fuzz_snapshot(const char *text)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlSnapshot) snapshot = be_xml_snapshot_parse(text, &error);
    g_autofree char *domain = be_xml_snapshot_domain_text(text, NULL);

    g_assert_true((snapshot == NULL) == (error != NULL));
    if (snapshot && snapshot->domain) {
        g_autoptr(BeXmlDomain) again = be_xml_domain_parse(domain, &error);

        g_assert_no_error(error);
        g_assert_cmpuint(again->disks->len, ==, snapshot->domain->disks->len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlDomain) domain = be_xml_domain_parse(text, &error);
    BeXmlCapabilities caps;

    g_assert_true((domain == NULL) == (error != NULL));
    (void)be_xml_capabilities_parse(text, &caps, NULL);
    fuzz_backup(text);
    fuzz_checkpoint(text);
    fuzz_snapshot(text);
    return 0;
}
