/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml.c - domains and capabilities read from libvirt's XML; see xml.h.
 *
 * Pure functions: any thread, no locks.
 */
#include "xml.h"

#include <errno.h>
#include <string.h>

#include "xml-node.h"

/* Of what libvirt makes and lets a user make as an alias; it becomes part of a JSON text. */
#define ALIAS_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

/* More than any machine has; it bounds the search for double targets. */
enum { MAX_DISKS = 1024 };

static const char *const source_names[] = {
    [BE_XML_SOURCE_NONE] = "none",
    [BE_XML_SOURCE_FILE] = "file",
    [BE_XML_SOURCE_BLOCK] = "block",
    [BE_XML_SOURCE_DIR] = "dir",
    [BE_XML_SOURCE_NETWORK] = "network",
    [BE_XML_SOURCE_VOLUME] = "volume",
    [BE_XML_SOURCE_NVME] = "nvme",
    [BE_XML_SOURCE_VHOSTUSER] = "vhostuser",
    [BE_XML_SOURCE_OTHER] = "other",
};

/* The attribute of <source> that is a local path; NULL: there is none. */
static const char *const source_path_attributes[G_N_ELEMENTS(source_names)] = {
    [BE_XML_SOURCE_FILE] = "file",
    [BE_XML_SOURCE_BLOCK] = "dev",
    [BE_XML_SOURCE_DIR] = "dir",
};

static const char *const device_names[] = {
    [BE_XML_DEVICE_DISK] = "disk",
    [BE_XML_DEVICE_CDROM] = "cdrom",
    [BE_XML_DEVICE_FLOPPY] = "floppy",
    [BE_XML_DEVICE_LUN] = "lun",
};

const char *be_xml_source_name(BeXmlSource source)
{
    return source_names[source];
}

const char *be_xml_device_name(BeXmlDevice device)
{
    return device_names[device];
}

int xml_word_index(const char *word, const char *const *words, size_t count, int otherwise)
{
    for (size_t i = 0; word && i < count; i++) {
        if (strcmp(word, words[i]) == 0) {
            return (int)i;
        }
    }
    return otherwise;
}

/* ---- Domain ------------------------------------------------------------- */

void xml_level_clear(BeXmlLevel *level)
{
    g_free(level->path);
    g_free(level->format);
}

static void level_free(gpointer data)
{
    xml_level_clear(data);
    g_free(data);
}

static void disk_free(gpointer data)
{
    BeXmlDisk *disk = data;

    g_free(disk->target);
    g_free(disk->bus);
    xml_level_clear(&disk->top);
    g_free(disk->protocol);
    g_free(disk->pool);
    g_free(disk->volume);
    g_ptr_array_unref(disk->backing);
    g_free(disk->error_policy);
    g_free(disk);
}

void be_xml_domain_free(BeXmlDomain *domain)
{
    if (!domain) {
        return;
    }
    g_free(domain->uuid);
    g_free(domain->name);
    g_free(domain->type);
    g_ptr_array_unref(domain->disks);
    g_free(domain->loader);
    g_free(domain->loader_type);
    g_free(domain->nvram);
    g_free(domain->tpm_version);
    g_free(domain->kernel);
    g_free(domain->initrd);
    g_free(domain->dac_label);
    g_free(domain->agent_socket);
    g_free(domain->agent_alias);
    g_free(domain);
}

/*
 * What <disk> and <backingStore> have in common.  The format is not: it is an
 * attribute of <driver> in the one and of <format> in the other.  libvirt 9.0
 * writes the index on the <source> of a <disk>, but on <backingStore> itself.
 */
void xml_read_level(const xmlNode *node, BeXmlLevel *level)
{
    const xmlNode *source = xml_child(node, "source");
    g_autofree char *type = xml_attribute(node, "type");
    const char *path_attribute = NULL;

    level->source = (BeXmlSource)xml_word_index(type, source_names, BE_XML_SOURCE_OTHER,
                                            type ? BE_XML_SOURCE_OTHER : BE_XML_SOURCE_FILE);
    path_attribute = source_path_attributes[level->source];
    if (path_attribute) {
        level->path = xml_attribute(source, path_attribute);
    }
    if (!source || (path_attribute && (!level->path || !*level->path))) {
        g_clear_pointer(&level->path, g_free);
        level->source = BE_XML_SOURCE_NONE;
    }
    level->index = xml_attribute_uint(source, "index");
    if (level->index == 0) {
        level->index = xml_attribute_uint(node, "index");
    }
    level->encrypted = xml_child(node, "encryption") || xml_child(source, "encryption");
    level->sliced = xml_child(source, "slices") != NULL;
}

/*
 * An empty <backingStore/> ends the chain.  The depth is bounded by libxml2's
 * own limit on nesting.
 */
static void parse_backing(const xmlNode *disk_node, BeXmlDisk *disk)
{
    const xmlNode *node = xml_child(disk_node, "backingStore");

    for (; node; node = xml_child(node, "backingStore")) {
        BeXmlLevel *level = NULL;

        if (!xml_child(node, "source") && !xml_child(node, "format")) {
            disk->backing_complete = TRUE;
            return;
        }
        level = g_new0(BeXmlLevel, 1);
        xml_read_level(node, level);
        level->format = xml_attribute(xml_child(node, "format"), "type");
        g_ptr_array_add(disk->backing, level);
    }
}

static void parse_disk_source(const xmlNode *node, BeXmlDisk *disk)
{
    const xmlNode *source = xml_child(node, "source");
    const xmlNode *driver = xml_child(node, "driver");

    xml_read_level(node, &disk->top);
    disk->top.format = xml_attribute(driver, "type");
    disk->error_policy = xml_attribute(driver, "error_policy");
    if (disk->top.source == BE_XML_SOURCE_NETWORK) {
        disk->protocol = xml_attribute(source, "protocol");
    }
    if (disk->top.source == BE_XML_SOURCE_VOLUME) {
        disk->pool = xml_attribute(source, "pool");
        disk->volume = xml_attribute(source, "volume");
    }
    parse_backing(node, disk);
}

static gboolean parse_disk(const xmlNode *node, BeXmlDomain *domain, GError **error)
{
    const xmlNode *target = xml_child(node, "target");
    g_autofree char *name = xml_attribute(target, "dev");
    g_autofree char *device = xml_attribute(node, "device");
    BeXmlDisk *disk = NULL;

    if (domain->disks->len >= MAX_DISKS) {
        g_set_error(error, BE_ERROR, EIO, "'%s' has more than %d disks", domain->name, MAX_DISKS);
        return FALSE;
    }
    if (!xml_target_is_valid(name) || be_xml_domain_disk(domain, name)) {
        g_set_error(error, BE_ERROR, EIO, "line %ld: a disk of '%s' has no target or a bad one",
                    xmlGetLineNo(node), domain->name);
        return FALSE;
    }
    disk = g_new0(BeXmlDisk, 1);
    disk->target = g_steal_pointer(&name);
    disk->bus = xml_attribute(target, "bus");
    disk->backing = g_ptr_array_new_with_free_func(level_free);
    disk->device = (BeXmlDevice)xml_word_index(device, device_names, G_N_ELEMENTS(device_names),
                                           BE_XML_DEVICE_DISK);
    disk->readonly = xml_child(node, "readonly") != NULL;
    disk->shareable = xml_child(node, "shareable") != NULL;
    disk->transient = xml_child(node, "transient") != NULL;
    disk->mirrored = xml_child(node, "mirror") != NULL;
    parse_disk_source(node, disk);
    g_ptr_array_add(domain->disks, disk);
    return TRUE;
}

/* libvirt tells state and alias only of an active domain. */
static void parse_channel(const xmlNode *channel, BeXmlDomain *domain)
{
    const xmlNode *target = xml_child(channel, "target");
    const xmlNode *source = xml_child(channel, "source");
    g_autofree char *alias = NULL;

    if (!xml_attribute_is(target, "name", "org.qemu.guest_agent.0")) {
        return;
    }
    domain->agent_connected |= xml_attribute_is(target, "state", "connected");
    alias = xml_attribute(xml_child(channel, "alias"), "name");
    if (!domain->agent_socket && alias && !alias[strspn(alias, ALIAS_CHARACTERS)]
        && xml_attribute_is(channel, "type", "unix") && xml_attribute_is(source, "mode", "bind")) {
        domain->agent_socket = xml_attribute(source, "path");
        domain->agent_alias = domain->agent_socket ? g_steal_pointer(&alias) : NULL;
    }
}

static void parse_tpm(const xmlNode *tpm, BeXmlDomain *domain)
{
    const xmlNode *backend = xml_child(tpm, "backend");

    if (!domain->tpm_emulated && xml_attribute_is(backend, "type", "emulator")) {
        domain->tpm_emulated = TRUE;
        domain->tpm_version = xml_attribute(backend, "version");
        domain->tpm_encrypted = xml_child(backend, "encryption") != NULL;
    }
}

/* Also a function of a network card, and an NVMe drive: both are devices of the host. */
static gboolean is_host_device(const xmlNode *node)
{
    return xml_is_element(node, "hostdev")
           || (xml_is_element(node, "interface")
               && (xml_attribute_is(node, "type", "hostdev")
                   || xml_attribute_is(node, "type", "vdpa")))
           || (xml_is_element(node, "disk") && xml_attribute_is(node, "type", "nvme"));
}

static gboolean parse_devices(const xmlNode *devices, BeXmlDomain *domain, GError **error)
{
    for (const xmlNode *node = devices ? devices->children : NULL; node; node = node->next) {
        domain->has_hostdevs = domain->has_hostdevs || is_host_device(node);
        if (xml_is_element(node, "disk")) {
            if (!parse_disk(node, domain, error)) {
                return FALSE;
            }
        } else if (xml_is_element(node, "tpm")) {
            parse_tpm(node, domain);
        } else if (xml_is_element(node, "channel")) {
            parse_channel(node, domain);
        }
    }
    return TRUE;
}

/*
 * Since libvirt 8.5 the variable store may be <nvram type='file'><source
 * file='...'/></nvram>; before, and for plain files still, the path is the text.
 */
static char *nvram_path(const xmlNode *os)
{
    const xmlNode *nvram = xml_child(os, "nvram");
    const xmlNode *source = xml_child(nvram, "source");
    char *path = NULL;

    if (!source) {
        return xml_content(nvram);
    }
    path = xml_attribute(source, "file");
    return path ? path : xml_attribute(source, "dev");
}

static void parse_os(const xmlNode *os, BeXmlDomain *domain)
{
    const xmlNode *loader = xml_child(os, "loader");

    domain->loader = xml_content(loader);
    domain->loader_type = xml_attribute(loader, "type");
    domain->nvram = nvram_path(os);
    domain->kernel = xml_content(xml_child(os, "kernel"));
    domain->initrd = xml_content(xml_child(os, "initrd"));
}

static char *dac_label(const xmlNode *root)
{
    for (const xmlNode *node = root->children; node; node = node->next) {
        if (xml_is_element(node, "seclabel") && xml_attribute_is(node, "model", "dac")) {
            return xml_content(xml_child(node, "label"));
        }
    }
    return NULL;
}

BeXmlDomain *xml_read_domain(const xmlNode *root, GError **error)
{
    g_autoptr(BeXmlDomain) domain = g_new0(BeXmlDomain, 1);

    domain->disks = g_ptr_array_new_with_free_func(disk_free);
    domain->type = xml_attribute(root, "type");
    domain->uuid = xml_content(xml_child(root, "uuid"));
    domain->name = xml_content(xml_child(root, "name"));
    if (!domain->type || !domain->uuid || !domain->name) {
        g_set_error(error, BE_ERROR, EIO, "the <domain> XML lacks its type, name or UUID");
        return NULL;
    }
    parse_os(xml_child(root, "os"), domain);
    domain->dac_label = dac_label(root);
    if (!parse_devices(xml_child(root, "devices"), domain, error)) {
        return NULL;
    }
    return g_steal_pointer(&domain);
}

BeXmlDomain *be_xml_domain_parse(const char *xml, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domain", error);

    return doc ? xml_read_domain(xmlDocGetRootElement(doc), error) : NULL;
}

const BeXmlDisk *be_xml_domain_disk(const BeXmlDomain *domain, const char *target)
{
    for (guint i = 0; i < domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(domain->disks, i);

        if (strcmp(disk->target, target) == 0) {
            return disk;
        }
    }
    return NULL;
}

/* ---- Capabilities ------------------------------------------------------- */

/* A number with an optional '+'; moves @p behind it. */
static gboolean parse_id(const char **p, guint32 *ret)
{
    guint64 value = 0;

    if (**p == '+') {
        (*p)++;
    }
    if (!g_ascii_isdigit(**p)) {
        return FALSE;
    }
    for (; g_ascii_isdigit(**p); (*p)++) {
        value = value * 10 + (guint64)(**p - '0');
        /* (uid_t)-1 means "nobody given" to chown(2) and is no owner. */
        if (value >= G_MAXUINT32) {
            return FALSE;
        }
    }
    *ret = (guint32)value;
    return TRUE;
}

gboolean be_xml_dac_parse(const char *label, uid_t *ret_uid, gid_t *ret_gid, GError **error)
{
    const char *p = label;
    guint32 uid = 0;
    guint32 gid = 0;

    if (!p || !parse_id(&p, &uid) || *p++ != ':' || !parse_id(&p, &gid) || *p) {
        g_set_error(error, BE_ERROR, EINVAL, "the DAC label '%s' is not of the form +UID:+GID",
                    label ? label : "");
        return FALSE;
    }
    *ret_uid = uid;
    *ret_gid = gid;
    return TRUE;
}

static gboolean is_qemu_baselabel(const xmlNode *node)
{
    return xml_is_element(node, "baselabel")
           && (xml_attribute_is(node, "type", "kvm") || xml_attribute_is(node, "type", "qemu"));
}

/* <secmodel><model>dac</model><baselabel type='kvm'>+64055:+64055</baselabel>... */
static gboolean parse_baselabel(const xmlNode *secmodel, BeXmlCapabilities *caps)
{
    g_autofree char *model = xml_content(xml_child(secmodel, "model"));

    if (g_strcmp0(model, "dac") != 0) {
        return FALSE;
    }
    for (const xmlNode *node = secmodel->children; node; node = node->next) {
        g_autofree char *label = is_qemu_baselabel(node) ? xml_content(node) : NULL;

        if (label && be_xml_dac_parse(label, &caps->uid, &caps->gid, NULL)) {
            return TRUE;
        }
    }
    return FALSE;
}

/* Whether <externalSnapshot/> is a feature of any <guest>; libvirt 9.9 and later. */
static gboolean guest_has_feature(const xmlNode *guest, const char *feature)
{
    return xml_is_element(guest, "guest") && xml_child(xml_child(guest, "features"), feature);
}

gboolean be_xml_capabilities_parse(const char *xml, BeXmlCapabilities *ret, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "capabilities", error);
    BeXmlCapabilities caps = {.has_dac = FALSE};
    const xmlNode *root = NULL;
    const xmlNode *host = NULL;

    if (!doc) {
        return FALSE;
    }
    root = xmlDocGetRootElement(doc);
    host = xml_child(root, "host");
    for (const xmlNode *node = host ? host->children : NULL; node; node = node->next) {
        if (xml_is_element(node, "secmodel") && parse_baselabel(node, &caps)) {
            caps.has_dac = TRUE;
            break;
        }
    }
    for (const xmlNode *node = root->children; node; node = node->next) {
        if (guest_has_feature(node, "externalSnapshot")) {
            caps.external_snapshot = TRUE;
            break;
        }
    }
    *ret = caps;
    return TRUE;
}
