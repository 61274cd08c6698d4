/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-boot.c - the XML of a throw-away machine that boots from a backup; see
 * xml.h.
 *
 * Of the original only what is known to be harmless stays: a device of a kind
 * that this file does not name could be the host's (a passed-through card, a
 * shared directory, a socket) or the original's own, and two machines must never
 * hold the same one.
 *
 * Pure functions: any thread, no locks.
 */
#include <errno.h>
#include <string.h>

#include "xml-node.h"
#include "xml.h"

/* Of the domain itself; name and uuid are ours. */
static const char *const kept_parts[] = {
    "memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "iothreads", "iothreadids",
    "os", "sysinfo", "features", "cpu", "clock", "on_poweroff",
    "on_reboot", "on_crash", "pm", "genid", "devices", NULL,
};

/* Where a disk's bytes are, and limits and locks of the original's. */
static const char *const foreign_to_disk[] = {
    "source", "backingStore", "mirror", "auth", "encryption", "iotune", "shareable", "transient",
    "reservations", "alias", NULL,
};

static void drop(xmlNode *node)
{
    xmlUnlinkNode(node);
    xmlFreeNode(node);
}

static void drop_attribute(xmlNode *node, const char *name)
{
    xmlAttr *attribute = node ? xmlHasProp(node, (const xmlChar *)name) : NULL;

    if (attribute) {
        (void)xmlRemoveProp(attribute);
    }
}

static void put_attribute(xmlNode *node, const char *name, const char *value)
{
    drop_attribute(node, name);
    xml_set_attribute(node, name, value);
}

/* Drops the child elements that are in @names (@listed), or those that are not. */
static void drop_children(xmlNode *node, const char *const *names, gboolean listed)
{
    xmlNode *next;

    for (xmlNode *child = node ? node->children : NULL; child; child = next) {
        next = child->next;
        if (child->type == XML_COMMENT_NODE
            || (child->type == XML_ELEMENT_NODE
                && g_strv_contains(names, (const char *)child->name) == listed)) {
            drop(child);
        }
    }
}

static void drop_child(xmlNode *node, const char *name)
{
    const char *const names[] = {name, NULL};

    drop_children(node, names, TRUE);
}

static void put_text(xmlNode *parent, const char *name, const char *text)
{
    drop_child(parent, name);
    xmlNodeAddContent(xml_add_child(parent, name), (const xmlChar *)text);
}

/* ---- One function for each kind of device; FALSE: it is left out --------------- */

static const BeXmlBootDisk *find_disk(const GPtrArray *disks, const char *target)
{
    for (guint i = 0; i < disks->len; i++) {
        const BeXmlBootDisk *disk = g_ptr_array_index(disks, i);

        if (g_strcmp0(disk->target, target) == 0) {
            return disk;
        }
    }
    return NULL;
}

/* A drive stays, empty, so that the guest finds the buses it knows. */
static gboolean is_drive(const xmlNode *node)
{
    return xml_attribute_is(node, "device", "cdrom") || xml_attribute_is(node, "device", "floppy");
}

static gboolean change_disk(xmlNode *node, const GPtrArray *disks)
{
    g_autofree char *target = xml_attribute(xml_child(node, "target"), "dev");
    const BeXmlBootDisk *disk = find_disk(disks, target);
    xmlNode *driver = xml_child(node, "driver");

    if (!disk && !is_drive(node)) {
        return FALSE;
    }
    drop_children(node, foreign_to_disk, TRUE);
    drop_attribute(node, "snapshot");
    put_attribute(node, "type", "file");
    if (!disk) {
        drop_child(node, "driver");
        return TRUE;
    }
    driver = driver ? driver : xml_add_child(node, "driver");
    put_attribute(driver, "name", "qemu");
    put_attribute(driver, "type", "qcow2");
    /* It is thrown away: nothing of it need reach a disk. */
    put_attribute(driver, "cache", "unsafe");
    drop_attribute(driver, "io");
    drop_attribute(driver, "error_policy");
    drop_attribute(driver, "rerror_policy");
    xml_set_attribute(xml_add_child(node, "source"), "file", disk->overlay);
    return TRUE;
}

/* The card stays, its cable is out. */
static gboolean change_interface(xmlNode *node, const GPtrArray *disks G_GNUC_UNUSED)
{
    static const char *const kept[] = {"model", "driver", "boot", "rom", "address", NULL};

    drop_children(node, kept, FALSE);
    put_attribute(node, "type", "user");
    drop_attribute(node, "managed");
    drop_attribute(node, "trustGuestRxFilters");
    put_attribute(xml_add_child(node, "link"), "state", "down");
    return TRUE;
}

/* The agent's channel alone; libvirt gives it a socket of its own. */
static gboolean change_channel(xmlNode *node, const GPtrArray *disks G_GNUC_UNUSED)
{
    xmlNode *target = xml_child(node, "target");

    if (!xml_attribute_is(target, "type", "virtio")
        || !xml_attribute_is(target, "name", "org.qemu.guest_agent.0")) {
        return FALSE;
    }
    put_attribute(node, "type", "unix");
    drop_attribute(target, "state");
    drop_child(node, "source");
    return TRUE;
}

static gboolean change_terminal(xmlNode *node, const GPtrArray *disks G_GNUC_UNUSED)
{
    static const char *const host_side[] = {"source", "protocol", "log", NULL};

    put_attribute(node, "type", "pty");
    drop_attribute(node, "tty");
    drop_children(node, host_side, TRUE);
    return TRUE;
}

static gboolean change_rng(xmlNode *node, const GPtrArray *disks G_GNUC_UNUSED)
{
    xmlNode *backend = xml_child(node, "backend");

    drop_child(node, "backend");
    backend = xml_add_child(node, "backend");
    xml_set_attribute(backend, "model", "random");
    xmlNodeAddContent(backend, (const xmlChar *)"/dev/urandom");
    return TRUE;
}

/* An emulated one; libvirt finds the state that was put there for it, or makes a new one. */
static gboolean change_tpm(xmlNode *node, const GPtrArray *disks G_GNUC_UNUSED)
{
    xmlNode *backend = xml_child(node, "backend");

    if (!xml_attribute_is(backend, "type", "emulator")) {
        return FALSE;
    }
    drop_children(backend, (const char *const[]){"encryption", "source", NULL}, TRUE);
    drop_attribute(backend, "persistent_state");
    return TRUE;
}

/* Of the others some are the host's own devices. */
static gboolean change_input(xmlNode *node, const GPtrArray *disks G_GNUC_UNUSED)
{
    return !xml_attribute_is(node, "type", "passthrough")
           && !xml_attribute_is(node, "type", "evdev");
}

static gboolean keep(xmlNode *node G_GNUC_UNUSED, const GPtrArray *disks G_GNUC_UNUSED)
{
    return TRUE;
}

static const struct {
    const char *kind;
    gboolean (*change)(xmlNode *node, const GPtrArray *disks);
} devices[] = {
    {"emulator", keep},
    {"disk", change_disk},
    {"controller", keep},
    {"input", change_input},
    {"video", keep},
    {"memballoon", keep},
    {"rng", change_rng},
    {"panic", keep},
    {"channel", change_channel},
    {"serial", change_terminal},
    {"console", change_terminal},
    {"interface", change_interface},
    {"tpm", change_tpm},
    {"iommu", keep},
};

static gboolean change_device(xmlNode *node, const GPtrArray *disks)
{
    for (gsize i = 0; i < G_N_ELEMENTS(devices); i++) {
        if (xml_is_element(node, devices[i].kind)) {
            drop_child(node, "alias");
            return devices[i].change(node, disks);
        }
    }
    return FALSE;
}

static void change_devices(xmlNode *list, const GPtrArray *disks)
{
    xmlNode *next;

    for (xmlNode *node = list ? list->children : NULL; node; node = next) {
        next = node->next;
        if (node->type != XML_TEXT_NODE && !change_device(node, disks)) {
            drop(node);
        }
    }
}

/* ---- The machine ----------------------------------------------------------------- */

/* Without a copy libvirt makes a new variable store, from its template. */
static void change_nvram(xmlNode *os, const char *nvram)
{
    if (xml_child(os, "nvram")) {
        drop_child(os, "nvram");
        if (nvram) {
            put_text(os, "nvram", nvram);
        }
    }
}

static gboolean check(const char *name, const GPtrArray *disks, const char *nvram, GError **error)
{
    for (guint i = 0; i < disks->len; i++) {
        const BeXmlBootDisk *disk = g_ptr_array_index(disks, i);

        if (!xml_check_path(disk->overlay, "overlay of a disk", error)) {
            return FALSE;
        }
    }
    return xml_check_text(name, "name of the machine", error)
           && (!nvram || xml_check_path(nvram, "variable store", error));
}

char *be_xml_boot_build(const char *domain_xml, const char *name, const char *uuid,
                        const GPtrArray *disks, const char *nvram, GError **error)
{
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root;

    if (!check(name, disks, nvram, error)) {
        return NULL;
    }
    doc = xml_read_document(domain_xml, "domain", error);
    if (!doc) {
        return NULL;
    }
    root = xmlDocGetRootElement(doc);
    drop_children(root, kept_parts, FALSE);
    drop_attribute(root, "id");
    put_text(root, "name", name);
    put_text(root, "uuid", uuid);
    drop_attribute(xml_child(root, "vcpu"), "cpuset");
    if (xml_child(root, "genid")) {
        drop_child(root, "genid");
        xml_add_child(root, "genid");
    }
    change_nvram(xml_child(root, "os"), nvram);
    change_devices(xml_child(root, "devices"), disks);
    return xml_write_document(doc);
}
