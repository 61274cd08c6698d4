/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-disk.c - the XML of a single disk; see xml.h.
 *
 * Pure functions: any thread, no locks.
 */
#include "xml-node.h"
#include "xml.h"

char *be_xml_copy_build(const char *path, const char *format, GError **error)
{
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root = NULL;
    xmlNode *node = NULL;

    if (!xml_check_path(path, "path of the copy", error)
        || !xml_check_text(format, "format", error)) {
        return NULL;
    }
    doc = xml_new_document("disk", &root);
    xml_set_attribute(root, "type", "file");
    node = xml_add_child(root, "source");
    xml_set_attribute(node, "file", path);
    node = xml_add_child(root, "driver");
    xml_set_attribute(node, "type", format);
    return xml_write_document(doc);
}
