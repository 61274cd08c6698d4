/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-snapshot.c - the XML of snapshots; see xml.h.
 *
 * Pure functions: any thread, no locks.
 */
#include <errno.h>
#include <string.h>

#include "xml-node.h"
#include "xml.h"

/* More than any machine has; it bounds the search for double targets. */
enum { MAX_DISKS = 1024 };

static const char *const part_names[] = {
    [BE_PART_UNSAID] = "default",
    [BE_PART_NONE] = "none",         /* libvirt writes "no" */
    [BE_PART_INTERNAL] = "internal",
    [BE_PART_EXTERNAL] = "external",
    [BE_PART_MANUAL] = "manual",
};

/* The states libvirt writes (virDomainSnapshotState). */
static const char *const state_names[] = {
    "nostate",  "running", "blocked",     "paused",        "shutdown",
    "shutoff",  "crashed", "pmsuspended", "disk-snapshot",
};

const char *be_part_name(BePart part)
{
    return part_names[part];
}

gboolean be_part_parse(const char *word, BePart *ret_part)
{
    *ret_part =
        (BePart)xml_word_index(word, part_names, G_N_ELEMENTS(part_names), BE_PART_UNSAID);
    return *ret_part == BE_PART_NONE || *ret_part == BE_PART_INTERNAL
           || *ret_part == BE_PART_EXTERNAL;
}

static BePart read_part(const xmlNode *node, BePart otherwise)
{
    g_autofree char *word = xml_attribute(node, "snapshot");
    int part = word ? xml_word_index(word, part_names, G_N_ELEMENTS(part_names), BE_PART_NONE)
                    : BE_PART_UNSAID;

    return part == BE_PART_UNSAID ? otherwise : (BePart)part;
}

static void disk_free(gpointer data)
{
    BeXmlSnapshotDisk *disk = data;

    g_free(disk->target);
    xml_level_clear(&disk->overlay);
    g_free(disk);
}

void be_xml_snapshot_free(BeXmlSnapshot *snapshot)
{
    if (!snapshot) {
        return;
    }
    g_free(snapshot->name);
    g_free(snapshot->description);
    g_free(snapshot->parent);
    g_free(snapshot->state);
    g_free(snapshot->memory_file);
    g_ptr_array_unref(snapshot->disks);
    be_xml_domain_free(snapshot->domain);
    g_free(snapshot);
}

BeXmlSnapshot *be_xml_snapshot_new(const char *name, const char *description)
{
    BeXmlSnapshot *snapshot = g_new0(BeXmlSnapshot, 1);

    snapshot->name = g_strdup(name);
    snapshot->description = g_strdup(description);
    snapshot->memory = BE_PART_NONE;
    snapshot->disks = g_ptr_array_new_with_free_func(disk_free);
    return snapshot;
}

const BeXmlSnapshotDisk *be_xml_snapshot_disk(const BeXmlSnapshot *snapshot, const char *target)
{
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (strcmp(disk->target, target) == 0) {
            return disk;
        }
    }
    return NULL;
}

static BeXmlSnapshotDisk *add_disk(BeXmlSnapshot *snapshot, const char *target, BePart part)
{
    BeXmlSnapshotDisk *disk = g_new0(BeXmlSnapshotDisk, 1);

    disk->target = g_strdup(target);
    disk->part = part;
    g_ptr_array_add(snapshot->disks, disk);
    return disk;
}

static gboolean parse_disk(const xmlNode *node, BeXmlSnapshot *snapshot, GError **error)
{
    g_autofree char *name = xml_attribute(node, "name");
    BeXmlSnapshotDisk *disk;

    if (!xml_target_is_valid(name) || be_xml_snapshot_disk(snapshot, name)
        || snapshot->disks->len >= MAX_DISKS) {
        g_set_error(error, BE_ERROR, EIO, "line %ld: a disk of the snapshot has no name or a bad "
                    "one", xmlGetLineNo(node));
        return FALSE;
    }
    disk = add_disk(snapshot, name,
                    read_part(node, xml_child(node, "source") ? BE_PART_EXTERNAL
                                                              : BE_PART_INTERNAL));
    if (disk->part == BE_PART_EXTERNAL) {
        xml_read_level(node, &disk->overlay);
        disk->overlay.format = xml_attribute(xml_child(node, "driver"), "type");
    }
    return TRUE;
}

/* Whoever made it long ago, or by hand, may have listed no disk at all. */
static void add_unlisted(BeXmlSnapshot *snapshot)
{
    gboolean internal = snapshot->memory == BE_PART_INTERNAL
                        || (snapshot->disks->len == 0
                            && g_strcmp0(snapshot->state, "shutoff") == 0);

    for (guint i = 0; snapshot->domain && i < snapshot->domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(snapshot->domain->disks, i);

        if (!be_xml_snapshot_disk(snapshot, disk->target)) {
            add_disk(snapshot, disk->target,
                     internal && disk->device == BE_XML_DEVICE_DISK && !disk->readonly
                         ? BE_PART_INTERNAL
                         : BE_PART_NONE);
        }
    }
}

/* Without <memory> a snapshot of a running domain is one with memory inside. */
static void parse_memory(const xmlNode *root, BeXmlSnapshot *snapshot)
{
    const xmlNode *memory = xml_child(root, "memory");
    gboolean active = g_strcmp0(snapshot->state, "running") == 0
                      || g_strcmp0(snapshot->state, "paused") == 0;

    snapshot->memory = read_part(memory, active ? BE_PART_INTERNAL : BE_PART_NONE);
    if (snapshot->memory == BE_PART_EXTERNAL) {
        snapshot->memory_file = xml_attribute(memory, "file");
    }
}

static void parse_state(const xmlNode *root, BeXmlSnapshot *snapshot)
{
    g_autofree char *state = xml_content(xml_child(root, "state"));
    int which = xml_word_index(state, state_names, G_N_ELEMENTS(state_names), 0);

    snapshot->state = g_strdup(state_names[which]);
}

static gint64 parse_time(const xmlNode *root)
{
    g_autofree char *text = xml_content(xml_child(root, "creationTime"));
    gint64 seconds = 0;

    /* Up to the year 9999, as GLib's own times. */
    if (!text || !g_ascii_string_to_signed(text, 10, 0, G_GINT64_CONSTANT(253402300799), &seconds,
                                           NULL)) {
        return 0;
    }
    return seconds;
}

static gboolean parse_disks(const xmlNode *root, BeXmlSnapshot *snapshot, GError **error)
{
    const xmlNode *disks = xml_child(root, "disks");

    for (const xmlNode *node = disks ? disks->children : NULL; node; node = node->next) {
        if (xml_is_element(node, "disk") && !parse_disk(node, snapshot, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

BeXmlSnapshot *be_xml_snapshot_parse(const char *xml, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domainsnapshot", error);
    g_autoptr(BeXmlSnapshot) snapshot = NULL;
    const xmlNode *root, *domain;

    if (!doc) {
        return NULL;
    }
    root = xmlDocGetRootElement(doc);
    domain = xml_child(root, "domain");
    snapshot = be_xml_snapshot_new(NULL, NULL);
    snapshot->name = xml_content(xml_child(root, "name"));
    snapshot->description = xml_content(xml_child(root, "description"));
    snapshot->parent = xml_content(xml_child(xml_child(root, "parent"), "name"));
    snapshot->created_s = parse_time(root);
    if (!snapshot->name) {
        g_set_error(error, BE_ERROR, EIO, "the <domainsnapshot> XML has no name");
        return NULL;
    }
    parse_state(root, snapshot);
    parse_memory(root, snapshot);
    /* One without a type is only a UUID, of a libvirt before 0.9.5. */
    if (xml_child(domain, "devices")) {
        snapshot->domain = xml_read_domain(domain, error);
        if (!snapshot->domain) {
            return NULL;
        }
    }
    if (!parse_disks(root, snapshot, error)) {
        return NULL;
    }
    add_unlisted(snapshot);
    return g_steal_pointer(&snapshot);
}

char *be_xml_snapshot_domain_text(const char *xml, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domainsnapshot", error);
    g_autoptr(xmlDoc) alone = NULL;
    xmlNode *domain, *copy;

    if (!doc) {
        return NULL;
    }
    domain = xml_child(xmlDocGetRootElement(doc), "domain");
    if (!domain) {
        g_set_error(error, BE_ERROR, ENOENT, "the snapshot has no XML of its domain");
        return NULL;
    }
    alone = xmlNewDoc((const xmlChar *)"1.0");
    copy = alone ? xmlDocCopyNode(domain, alone, 1) : NULL;
    if (!copy) {
        g_set_error(error, BE_ERROR, ENOMEM, "no memory for the domain's XML");
        return NULL;
    }
    xmlDocSetRootElement(alone, copy);
    return xml_write_document(alone);
}

/* ---- Building --------------------------------------------------------------- */

/* libvirt's word for what is left out. */
static const char *word_of(BePart part)
{
    return part == BE_PART_NONE ? "no" : part_names[part];
}

static gboolean build_disk(xmlNode *disks, const BeXmlSnapshotDisk *disk, GError **error)
{
    xmlNode *node;

    if (!xml_target_is_valid(disk->target)) {
        g_set_error(error, BE_ERROR, EINVAL, "a disk of the snapshot has no name or a bad one");
        return FALSE;
    }
    node = xml_add_child(disks, "disk");
    xml_set_attribute(node, "name", disk->target);
    xml_set_attribute(node, "snapshot", word_of(disk->part));
    if (disk->part != BE_PART_EXTERNAL) {
        return TRUE;
    }
    if (!xml_check_path(disk->overlay.path, "overlay", error)) {
        return FALSE;
    }
    xml_set_attribute(node, "type", "file");
    xml_set_attribute(xml_add_child(node, "driver"), "type", "qcow2");
    xml_set_attribute(xml_add_child(node, "source"), "file", disk->overlay.path);
    return TRUE;
}

char *be_xml_snapshot_build(const BeXmlSnapshot *snapshot, GError **error)
{
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root = NULL, *memory, *disks;

    if (!xml_check_text(snapshot->name, "name of the snapshot", error)
        || (snapshot->description && !xml_check_text(snapshot->description, "description", error))
        || (snapshot->memory_file
            && !xml_check_path(snapshot->memory_file, "memory file", error))) {
        return NULL;
    }
    doc = xml_new_document("domainsnapshot", &root);
    xml_add_text(root, "name", snapshot->name);
    if (snapshot->description) {
        xml_add_text(root, "description", snapshot->description);
    }
    memory = xml_add_child(root, "memory");
    xml_set_attribute(memory, "snapshot", word_of(snapshot->memory));
    if (snapshot->memory_file) {
        xml_set_attribute(memory, "file", snapshot->memory_file);
    }
    disks = xml_add_child(root, "disks");
    for (guint i = 0; i < snapshot->disks->len; i++) {
        if (!build_disk(disks, g_ptr_array_index(snapshot->disks, i), error)) {
            return NULL;
        }
    }
    return xml_write_document(doc);
}
