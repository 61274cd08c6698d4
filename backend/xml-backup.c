/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-backup.c - the XML of backups, read and built; see xml.h.
 *
 * Pure functions: any thread, no locks.
 */
#include <errno.h>

#include "xml-node.h"
#include "xml.h"

static void backup_disk_free(gpointer data)
{
    BeXmlBackupDisk *disk = data;

    g_free(disk->target);
    g_free(disk->export_name);
    g_free(disk->incremental);
    g_free(disk->export_bitmap);
    g_free(disk->scratch);
    g_free(disk);
}

void be_xml_backup_free(BeXmlBackup *backup)
{
    if (!backup) {
        return;
    }
    g_free(backup->socket);
    g_free(backup->incremental);
    g_ptr_array_unref(backup->disks);
    g_free(backup);
}

static gboolean parse_disk(const xmlNode *node, BeXmlBackup *backup, GError **error)
{
    const xmlNode *scratch = xml_child(node, "scratch");
    g_autofree char *name = xml_attribute(node, "name");
    BeXmlBackupDisk *disk = NULL;

    if (!xml_target_is_valid(name)) {
        g_set_error(error, BE_ERROR, EIO, "line %ld: a disk of the backup has no name or a bad one",
                    xmlGetLineNo(node));
        return FALSE;
    }
    disk = g_new0(BeXmlBackupDisk, 1);
    disk->target = g_steal_pointer(&name);
    /* 'yes' is libvirt's default for a disk that is listed. */
    disk->backup = !xml_attribute_is(node, "backup", "no");
    disk->export_name = xml_attribute(node, "exportname");
    disk->incremental = xml_attribute(node, "incremental");
    disk->export_bitmap = xml_attribute(node, "exportbitmap");
    disk->scratch = xml_attribute(scratch, "file");
    if (!disk->scratch) {
        disk->scratch = xml_attribute(scratch, "dev");
    }
    disk->scratch_index = xml_attribute_uint(scratch, "index");
    if (disk->scratch_index == 0) {
        disk->scratch_index = xml_attribute_uint(node, "index");
    }
    g_ptr_array_add(backup->disks, disk);
    return TRUE;
}

BeXmlBackup *be_xml_backup_parse(const char *xml, GError **error)
{
    g_autoptr(xmlDoc) doc = xml_read_document(xml, "domainbackup", error);
    g_autoptr(BeXmlBackup) backup = NULL;
    const xmlNode *root = NULL;
    const xmlNode *disks = NULL;

    if (!doc) {
        return NULL;
    }
    root = xmlDocGetRootElement(doc);
    backup = g_new0(BeXmlBackup, 1);
    backup->disks = g_ptr_array_new_with_free_func(backup_disk_free);
    backup->pull = xml_attribute_is(root, "mode", "pull");
    backup->socket = xml_attribute(xml_child(root, "server"), "socket");
    backup->incremental = xml_content(xml_child(root, "incremental"));
    disks = xml_child(root, "disks");
    for (const xmlNode *node = disks ? disks->children : NULL; node; node = node->next) {
        if (xml_is_element(node, "disk") && !parse_disk(node, backup, error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&backup);
}

static gboolean build_incremental(xmlNode *node, const BeXmlBackupDisk *disk, GError **error)
{
    if (!disk->incremental) {
        return TRUE;
    }
    if (!xml_check_text(disk->incremental, "name of a checkpoint", error)
        || (disk->export_bitmap
            && !xml_check_text(disk->export_bitmap, "name of a bitmap", error))) {
        return FALSE;
    }
    xml_set_attribute(node, "backupmode", "incremental");
    xml_set_attribute(node, "incremental", disk->incremental);
    if (disk->export_bitmap) {
        xml_set_attribute(node, "exportbitmap", disk->export_bitmap);
    }
    return TRUE;
}

static gboolean build_disk(xmlNode *disks, const BeXmlBackupDisk *disk, GError **error)
{
    const char *export_name = disk->export_name ? disk->export_name : disk->target;
    xmlNode *node = NULL;

    if (!xml_target_is_valid(disk->target)) {
        g_set_error(error, BE_ERROR, EINVAL, "a disk of the backup has no name or a bad one");
        return FALSE;
    }
    node = xml_add_child(disks, "disk");
    xml_set_attribute(node, "name", disk->target);
    xml_set_attribute(node, "backup", disk->backup ? "yes" : "no");
    if (!disk->backup) {
        return TRUE;
    }
    if (!xml_check_text(export_name, "export name of a disk", error)
        || !xml_check_path(disk->scratch, "scratch file", error)) {
        return FALSE;
    }
    xml_set_attribute(node, "type", "file");
    xml_set_attribute(node, "exportname", export_name);
    if (!build_incremental(node, disk, error)) {
        return FALSE;
    }
    xml_set_attribute(xml_add_child(node, "driver"), "type", "qcow2");
    xml_set_attribute(xml_add_child(node, "scratch"), "file", disk->scratch);
    return TRUE;
}

char *be_xml_backup_build(const char *socket, const GPtrArray *disks, GError **error)
{
    g_autoptr(xmlDoc) doc = NULL;
    xmlNode *root = NULL;
    xmlNode *server = NULL;
    xmlNode *list = NULL;

    if (!xml_check_path(socket, "socket", error)) {
        return NULL;
    }
    doc = xml_new_document("domainbackup", &root);
    xml_set_attribute(root, "mode", "pull");
    server = xml_add_child(root, "server");
    xml_set_attribute(server, "transport", "unix");
    xml_set_attribute(server, "socket", socket);
    list = xml_add_child(root, "disks");
    for (guint i = 0; i < disks->len; i++) {
        if (!build_disk(list, g_ptr_array_index(disks, i), error)) {
            return NULL;
        }
    }
    return xml_write_document(doc);
}
