/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-edit.c - other images in libvirt's XML; see xml-edit.h.
 *
 * Pure functions: any thread, no locks.
 */
#include "xml-edit.h"

#include <errno.h>
#include <string.h>

#include "xml-node.h"

BeXmlImage *be_xml_image_new(const char *target, const char *path, const char *format,
                             gboolean block)
{
    BeXmlImage *image = g_new0(BeXmlImage, 1);

    image->target = g_strdup(target);
    image->path = g_strdup(path);
    image->format = g_strdup(format);
    image->block = block;
    return image;
}

void be_xml_image_free(gpointer data)
{
    BeXmlImage *image = data;

    g_free(image->target);
    g_free(image->from);
    g_free(image->path);
    g_free(image->format);
    g_free(image);
}

/* ---- One disk ------------------------------------------------------------------ */

static void put_attribute(xmlNode *node, const char *name, const char *value)
{
    xmlUnsetProp(node, (const xmlChar *)name);
    xml_set_attribute(node, name, value);
}

static void drop_child(xmlNode *node, const char *name)
{
    xmlNode *child = xml_child(node, name);

    if (child) {
        xmlUnlinkNode(child);
        xmlFreeNode(child);
    }
}

/* A snapshot's <disk> and a domain's have the same parts, but for the driver's name. */
static void put_image(xmlNode *disk, const BeXmlImage *image)
{
    static const char *const source_attributes[] = {"file", "dev", "index", "startupPolicy", NULL};
    xmlNode *driver = xml_child(disk, "driver");
    xmlNode *source = xml_child(disk, "source");

    driver = driver ? driver : xml_add_child(disk, "driver");
    source = source ? source : xml_add_child(disk, "source");
    for (gsize i = 0; source_attributes[i]; i++) {
        xmlUnsetProp(source, (const xmlChar *)source_attributes[i]);
    }
    put_attribute(disk, "type", image->block ? "block" : "file");
    put_attribute(driver, "type", image->format);
    xml_set_attribute(source, image->block ? "dev" : "file", image->path);
    drop_child(disk, "backingStore");
}

static char *source_path(const xmlNode *disk)
{
    const xmlNode *source = xml_child(disk, "source");
    char *path = xml_attribute(source, "file");

    return path ? path : xml_attribute(source, "dev");
}

static const BeXmlImage *image_of_target(const GPtrArray *images, const char *target)
{
    for (guint i = 0; i < images->len; i++) {
        const BeXmlImage *image = g_ptr_array_index(images, i);

        if (g_strcmp0(image->target, target) == 0) {
            return image;
        }
    }
    return NULL;
}

static const BeXmlImage *image_of_path(const GPtrArray *renames, const char *path)
{
    for (guint i = 0; i < renames->len; i++) {
        const BeXmlImage *image = g_ptr_array_index(renames, i);

        if (g_strcmp0(image->from, path) == 0) {
            return image;
        }
    }
    return NULL;
}

/* ---- All disks ------------------------------------------------------------------- */

/* An empty <backingStore/> ends a chain on purpose, and stays. */
static void forget_backing(xmlNode *disk)
{
    const xmlNode *backing = xml_child(disk, "backingStore");

    if (xml_child(backing, "source")) {
        drop_child(disk, "backingStore");
    }
}

static void edit_disk(xmlNode *disk, const GPtrArray *images, const GPtrArray *renames)
{
    g_autofree char *target = xml_attribute(xml_child(disk, "target"), "dev");
    g_autofree char *path = source_path(disk);
    const BeXmlImage *image =
        images ? image_of_target(images, target) : image_of_path(renames, path);

    forget_backing(disk);
    if (image) {
        put_image(disk, image);
    }
}

static void edit_domain(xmlNode *domain, const GPtrArray *images, const GPtrArray *renames)
{
    xmlNode *devices = xml_child(domain, "devices");

    for (xmlNode *node = devices ? devices->children : NULL; node; node = node->next) {
        if (xml_is_element(node, "disk")) {
            edit_disk(node, images, renames);
        }
    }
}

/* The <disks> of a snapshot: those that it has with a source. */
static void edit_overlays(xmlNode *root, const GPtrArray *images, const GPtrArray *renames)
{
    xmlNode *disks = xml_child(root, "disks");

    for (xmlNode *node = disks ? disks->children : NULL; node; node = node->next) {
        g_autofree char *name = NULL;
        g_autofree char *path = NULL;
        const BeXmlImage *image;

        if (!xml_is_element(node, "disk") || !xml_attribute_is(node, "snapshot", "external")) {
            continue;
        }
        name = xml_attribute(node, "name");
        path = source_path(node);
        image = images ? image_of_target(images, name) : image_of_path(renames, path);
        if (image) {
            put_image(node, image);
        }
    }
}

/* ---- Texts ----------------------------------------------------------------------- */

char *be_xml_edit_snapshot_domain(const char *xml, gboolean inactive, const GPtrArray *images,
                                  GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domainsnapshot", error);
    g_autoptr(xmlDoc) alone = NULL;
    xmlNode *domain, *copy;

    if (!doc) {
        return NULL;
    }
    domain = inactive ? xml_child(xmlDocGetRootElement(doc), "inactiveDomain") : NULL;
    domain = domain ? domain : xml_child(xmlDocGetRootElement(doc), "domain");
    if (!domain || !xml_child(domain, "devices")) {
        g_set_error(error, BE_ERROR, ENOENT, "the snapshot has no XML of its domain");
        return NULL;
    }
    alone = xml_new_document("domain", &copy);
    copy = xmlDocCopyNode(domain, alone, 1);
    if (!copy) {
        g_set_error(error, BE_ERROR, ENOMEM, "no memory for the domain's XML");
        return NULL;
    }
    xmlNodeSetName(copy, (const xmlChar *)"domain");
    xmlFreeNode(xmlDocSetRootElement(alone, copy));
    edit_domain(copy, images, NULL);
    return xml_write_document(alone);
}

char *be_xml_edit_overlays(const char *xml, const GPtrArray *overlays, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domainsnapshot", error);

    if (!doc) {
        return NULL;
    }
    edit_overlays(xmlDocGetRootElement(doc), overlays, NULL);
    return xml_write_document(doc);
}

char *be_xml_edit_rename(const char *xml, const char *root, const GPtrArray *renames,
                         GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, root, error);
    xmlNode *top;

    if (!doc) {
        return NULL;
    }
    top = xmlDocGetRootElement(doc);
    if (strcmp(root, "domain") == 0) {
        edit_domain(top, NULL, renames);
    } else {
        edit_overlays(top, NULL, renames);
        edit_domain(xml_child(top, "domain"), NULL, renames);
        edit_domain(xml_child(top, "inactiveDomain"), NULL, renames);
    }
    return xml_write_document(doc);
}

/* ---- A new snapshot ---------------------------------------------------------------- */

static void add_text(xmlNode *parent, const char *name, const char *text)
{
    xmlNode *node = xml_add_child(parent, name);

    xmlNodeAddContent(node, (const xmlChar *)text);
}

static void add_disks(xmlNode *root, const BeXmlNewSnapshot *snapshot)
{
    xmlNode *disks = xml_add_child(root, "disks");

    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeXmlImage *image = g_ptr_array_index(snapshot->disks, i);
        xmlNode *disk = xml_add_child(disks, "disk");

        xml_set_attribute(disk, "name", image->target);
        xml_set_attribute(disk, "snapshot", "external");
        put_image(disk, image);
    }
    for (guint i = 0; i < snapshot->others->len; i++) {
        xmlNode *disk = xml_add_child(disks, "disk");

        xml_set_attribute(disk, "name", g_ptr_array_index(snapshot->others, i));
        xml_set_attribute(disk, "snapshot", "no");
    }
}

static gboolean add_domain(xmlDoc *doc, xmlNode *root, const char *xml, const char *name,
                           GError **error)
{
    g_autoptr(xmlDoc) domain = xml_read_document(xml, "domain", error);
    xmlNode *copy = domain ? xmlDocCopyNode(xmlDocGetRootElement(domain), doc, 1) : NULL;

    if (!domain) {
        return FALSE;
    }
    if (!copy) {
        g_set_error(error, BE_ERROR, ENOMEM, "no memory for the snapshot's XML");
        return FALSE;
    }
    xmlNodeSetName(copy, (const xmlChar *)name);
    xmlAddChild(root, copy);
    return TRUE;
}

char *be_xml_edit_new_snapshot(const BeXmlNewSnapshot *snapshot, GError **error)
{
    g_autofree char *created = g_strdup_printf("%" G_GINT64_FORMAT, snapshot->created_s);
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root, *memory;

    if (!xml_check_text(snapshot->name, "name of the snapshot", error)
        || (snapshot->description
            && !xml_check_text(snapshot->description, "description", error))) {
        return NULL;
    }
    doc = xml_new_document("domainsnapshot", &root);
    add_text(root, "name", snapshot->name);
    if (snapshot->description) {
        add_text(root, "description", snapshot->description);
    }
    add_text(root, "state", snapshot->state);
    if (snapshot->parent) {
        add_text(xml_add_child(root, "parent"), "name", snapshot->parent);
    }
    add_text(root, "creationTime", created);
    memory = xml_add_child(root, "memory");
    xml_set_attribute(memory, "snapshot", snapshot->memory_file ? "external" : "no");
    if (snapshot->memory_file) {
        xml_set_attribute(memory, "file", snapshot->memory_file);
    }
    add_disks(root, snapshot);
    if (!add_domain(doc, root, snapshot->domain, "domain", error)
        || (snapshot->inactive
            && !add_domain(doc, root, snapshot->inactive, "inactiveDomain", error))) {
        return NULL;
    }
    return xml_write_document(doc);
}
