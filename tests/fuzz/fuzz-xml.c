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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlDomain) domain = be_xml_domain_parse(text, &error);
    BeXmlCapabilities caps;

    g_assert_true((domain == NULL) == (error != NULL));
    (void)be_xml_capabilities_parse(text, &caps, NULL);
    fuzz_backup(text);
    return 0;
}
