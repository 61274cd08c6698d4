/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-checkpoint.c - the XML of checkpoints, read and built; see xml.h.
 *
 * Pure functions: any thread, no locks.
 */
#include <errno.h>

#include "xml-node.h"
#include "xml.h"

static void checkpoint_disk_free(gpointer data)
{
    BeXmlCheckpointDisk *disk = data;

    g_free(disk->target);
    g_free(disk->bitmap);
    g_free(disk);
}

void be_xml_checkpoint_free(BeXmlCheckpoint *checkpoint)
{
    if (!checkpoint) {
        return;
    }
    g_free(checkpoint->name);
    g_free(checkpoint->description);
    g_free(checkpoint->parent);
    g_ptr_array_unref(checkpoint->disks);
    g_free(checkpoint->domain_uuid);
    g_free(checkpoint->domain_xml);
    g_free(checkpoint);
}

/* ---- Reading ------------------------------------------------------------------- */

static gboolean parse_disk(const xmlNode *node, BeXmlCheckpoint *checkpoint, GError **error)
{
    g_autofree char *name = xml_attribute(node, "name");
    BeXmlCheckpointDisk *disk;

    if (!xml_target_is_valid(name)) {
        g_set_error(error, BE_ERROR, EIO,
                    "line %ld: a disk of the checkpoint has no name or a bad one",
                    xmlGetLineNo(node));
        return FALSE;
    }
    disk = g_new0(BeXmlCheckpointDisk, 1);
    disk->target = g_steal_pointer(&name);
    /* 'bitmap' is libvirt's default for a disk that is listed, as is its name. */
    if (!xml_attribute_is(node, "checkpoint", "no")) {
        disk->bitmap = xml_attribute(node, "bitmap");
        if (!disk->bitmap) {
            disk->bitmap = g_strdup(checkpoint->name);
        }
        disk->has_size = xml_attribute_u64(node, "size", &disk->size);
    }
    g_ptr_array_add(checkpoint->disks, disk);
    return TRUE;
}

static gint64 parse_time(const xmlNode *node)
{
    g_autofree char *text = xml_content(node);
    gint64 seconds = 0;

    return text && g_ascii_string_to_signed(text, 10, 0, G_MAXINT64 / G_USEC_PER_SEC, &seconds,
                                            NULL)
               ? seconds
               : 0;
}

static void parse_domain(xmlNode *node, BeXmlCheckpoint *checkpoint)
{
    if (node) {
        checkpoint->domain_uuid = xml_content(xml_child(node, "uuid"));
        checkpoint->domain_xml = xml_write_element(node);
    }
}

BeXmlCheckpoint *be_xml_checkpoint_parse(const char *xml, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domaincheckpoint", error);
    g_autoptr(BeXmlCheckpoint) checkpoint = NULL;
    const xmlNode *root, *disks;

    if (!doc) {
        return NULL;
    }
    root = xmlDocGetRootElement(doc);
    checkpoint = g_new0(BeXmlCheckpoint, 1);
    checkpoint->disks = g_ptr_array_new_with_free_func(checkpoint_disk_free);
    checkpoint->name = xml_content(xml_child(root, "name"));
    if (!checkpoint->name) {
        g_set_error(error, BE_ERROR, EIO, "the checkpoint's XML has no name");
        return NULL;
    }
    checkpoint->description = xml_content(xml_child(root, "description"));
    checkpoint->parent = xml_content(xml_child(xml_child(root, "parent"), "name"));
    checkpoint->created_s = parse_time(xml_child(root, "creationTime"));
    disks = xml_child(root, "disks");
    for (const xmlNode *node = disks ? disks->children : NULL; node; node = node->next) {
        if (xml_is_element(node, "disk") && !parse_disk(node, checkpoint, error)) {
            return NULL;
        }
    }
    parse_domain(xml_child(root, "domain"), checkpoint);
    return g_steal_pointer(&checkpoint);
}

const BeXmlCheckpointDisk *be_xml_checkpoint_disk(const BeXmlCheckpoint *checkpoint,
                                                  const char *target)
{
    for (guint i = 0; i < checkpoint->disks->len; i++) {
        const BeXmlCheckpointDisk *disk = g_ptr_array_index(checkpoint->disks, i);

        if (disk->bitmap && g_str_equal(disk->target, target)) {
            return disk;
        }
    }
    return NULL;
}

/* ---- Writing ------------------------------------------------------------------- */

char *be_xml_checkpoint_build(const char *name, const char *description, const GPtrArray *disks,
                              GError **error)
{
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root, *list;

    if (!xml_check_text(name, "name of the checkpoint", error)
        || (description && !xml_check_text(description, "description of the checkpoint", error))) {
        return NULL;
    }
    doc = xml_new_document("domaincheckpoint", &root);
    xml_add_text(root, "name", name);
    if (description) {
        xml_add_text(root, "description", description);
    }
    list = xml_add_child(root, "disks");
    for (guint i = 0; i < disks->len; i++) {
        const BeXmlCheckpointDisk *disk = g_ptr_array_index(disks, i);
        xmlNode *node;

        if (!xml_target_is_valid(disk->target)) {
            g_set_error(error, BE_ERROR, EINVAL,
                        "a disk of the checkpoint has no name or a bad one");
            return NULL;
        }
        node = xml_add_child(list, "disk");
        xml_set_attribute(node, "name", disk->target);
        xml_set_attribute(node, "checkpoint", disk->bitmap ? "bitmap" : "no");
    }
    return xml_write_document(doc);
}

char *be_xml_checkpoint_without(const char *xml, const char *target, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domaincheckpoint", error);
    const xmlNode *disks = doc ? xml_child(xmlDocGetRootElement(doc), "disks") : NULL;

    for (xmlNode *node = disks ? disks->children : NULL; node; node = node->next) {
        if (xml_is_element(node, "disk") && xml_attribute_is(node, "name", target)
            && !xml_attribute_is(node, "checkpoint", "no")) {
            xmlSetProp(node, (const xmlChar *)"checkpoint", (const xmlChar *)"no");
            xmlUnsetProp(node, (const xmlChar *)"bitmap");
            xmlUnsetProp(node, (const xmlChar *)"size");
            return xml_write_document(doc);
        }
    }
    if (doc) {
        g_set_error(error, BE_ERROR, ENOENT, "the checkpoint does not have disk '%s'", target);
    }
    return NULL;
}

char *be_xml_checkpoint_with_parent(const char *xml, const char *parent, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domaincheckpoint", error);
    xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL;
    xmlNode *old = xml_child(root, "parent");

    if (!root) {
        return NULL;
    }
    if (old) {
        xmlUnlinkNode(old);
        xmlFreeNode(old);
    }
    if (parent) {
        xmlNode *node = xmlNewChild(root, NULL, (const xmlChar *)"parent", NULL);

        xmlNewTextChild(node, NULL, (const xmlChar *)"name", (const xmlChar *)parent);
    }
    return xml_write_document(doc);
}
