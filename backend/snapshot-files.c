/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-files.c - the files that a snapshot makes: their names, and their end
 * when nothing came of it.
 *
 * Overlay and memory are beside the disk's image, where a libvirt user looks for
 * them, and their names say which snapshot they belong to: web1.qcow2 and the
 * snapshot "tue" give web1.tue.qcow2.  Workers; blocks on local files.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/snapshot-plan.h"

/* An overlay without data has about 200 KiB. */
#define OVERLAY_BYTES (1024 * 1024)
#define NAME_BYTES_MAX 200     /* of a file name, so that a number still fits */
#define NUMBERS 100
#define HASH_DIGITS 16

/* ---- Names -------------------------------------------------------------------------- */

/* In a file name: letters, digits, "-._~" and what is not ASCII; all else is %XX. */
static char *encode(const char *snapshot)
{
    return g_uri_escape_string(snapshot, NULL, TRUE);
}

static char *name_suffix(const char *snapshot, const char *extension)
{
    g_autofree char *encoded = encode(snapshot);

    return g_strdup_printf(".%s.%s", encoded, extension);
}

/*
 * What the name of an image begins with: without its extension, and without what
 * an earlier snapshot has added to it, so that names do not grow.
 */
static char *stem_of(const BeObjectList *known, const char *path)
{
    g_autofree char *base = g_path_get_basename(path);
    const char *dot;

    for (guint i = 0; i < known->objects->len; i++) {
        const BeObject *object = g_ptr_array_index(known->objects, i);
        g_autofree char *suffix = name_suffix(object->name, "qcow2");

        if (g_str_has_suffix(base, suffix) && strlen(base) > strlen(suffix)) {
            return g_strndup(base, strlen(base) - strlen(suffix));
        }
    }
    dot = strrchr(base, '.');
    return dot && dot != base ? g_strndup(base, (gsize)(dot - base)) : g_strdup(base);
}

/* Neither there nor chosen for another disk: x.raw and x.qcow2 begin alike. */
static gboolean is_free(const BeXmlSnapshot *wanted, const char *path)
{
    struct stat attr;

    for (guint i = 0; i < wanted->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(wanted->disks, i);

        if (g_strcmp0(disk->overlay.path, path) == 0) {
            return FALSE;
        }
    }
    return lstat(path, &attr) < 0 && errno == ENOENT;
}

/* Names too long for a file, and all that would come out alike, end in a number. */
static char *choose_path(const BeObjectList *known, const BeXmlSnapshot *wanted,
                         const char *image, const char *extension, GError **error)
{
    const char *snapshot = wanted->name;
    g_autofree char *dir = g_path_get_dirname(image);
    g_autofree char *stem = stem_of(known, image);
    g_autofree char *suffix = name_suffix(snapshot, extension);
    g_autofree char *hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, snapshot, -1);

    if (strlen(stem) + strlen(suffix) > NAME_BYTES_MAX) {
        g_free(suffix);
        suffix = g_strdup_printf(".%.*s.%s", HASH_DIGITS, hash, extension);
    }
    for (guint number = 0; number < NUMBERS; number++) {
        g_autofree char *count = number ? g_strdup_printf("-%u", number) : g_strdup("");
        g_autofree char *path = g_strdup_printf("%s/%s%s%s", dir, stem, count, suffix);

        if (is_free(wanted, path)) {
            return g_steal_pointer(&path);
        }
    }
    g_set_error(error, BE_ERROR, EEXIST,
                "there are files for a snapshot '%s' beside '%s' already, and none is overwritten",
                snapshot, image);
    return NULL;
}

/* ---- Room ------------------------------------------------------------------------------ */

static gboolean has_room(const char *path, guint64 bytes, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    struct statvfs space;
    guint64 available;

    if (statvfs(dir, &space) < 0) {
        be_error_set_errno(error, errno, "cannot look at '%s'", dir);
        return FALSE;
    }
    available = (guint64)space.f_bavail * space.f_frsize;
    if (available < bytes) {
        g_set_error(error, BE_ERROR, ENOSPC,
                    "'%s' has %" G_GUINT64_FORMAT " KiB left; the snapshot needs %" G_GUINT64_FORMAT
                    " KiB there",
                    dir, available / 1024, bytes / 1024);
        return FALSE;
    }
    return TRUE;
}

/* QEMU writes no more than what it has in memory for the guest. */
static guint64 memory_bytes(virDomainPtr domain)
{
    virDomainMemoryStatStruct stats[VIR_DOMAIN_MEMORY_STAT_NR];
    int count = virDomainMemoryStats(domain, stats, G_N_ELEMENTS(stats), 0);

    for (int i = 0; i < count; i++) {
        if (stats[i].tag == VIR_DOMAIN_MEMORY_STAT_RSS) {
            return (guint64)stats[i].val * 1024;
        }
    }
    return 0;
}

gboolean snapshot_name_files(SnapshotPlan *plan, GError **error)
{
    g_autoptr(BeObjectList) known = be_objects(plan->be, BE_SNAPSHOTS, plan->uuid);
    BeXmlSnapshot *wanted = plan->wanted;
    guint64 bytes = 0;

    for (guint i = 0; i < wanted->disks->len; i++) {
        BeXmlSnapshotDisk *row = g_ptr_array_index(wanted->disks, i);
        const BeXmlDisk *disk = be_xml_domain_disk(plan->xml, row->target);

        if (row->part != BE_PART_EXTERNAL) {
            continue;
        }
        if (wanted->memory == BE_PART_EXTERNAL && !wanted->memory_file) {
            wanted->memory_file = choose_path(known, wanted, disk->top.path, "memory", error);
            bytes += memory_bytes(plan->domain);
        }
        row->overlay.source = BE_XML_SOURCE_FILE;
        row->overlay.format = g_strdup("qcow2");
        row->overlay.path = choose_path(known, wanted, disk->top.path, "qcow2", error);
        bytes += OVERLAY_BYTES;
        if (!row->overlay.path || (wanted->memory == BE_PART_EXTERNAL && !wanted->memory_file)
            || !has_room(row->overlay.path, bytes, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- What was left -------------------------------------------------------------------------- */

static gboolean level_is(const BeXmlLevel *level, const char *path)
{
    return g_strcmp0(level->path, path) == 0;
}

static gboolean domain_has(const BeXmlDomain *domain, const char *path)
{
    for (guint i = 0; domain && i < domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(domain->disks, i);

        if (level_is(&disk->top, path)) {
            return TRUE;
        }
        for (guint j = 0; j < disk->backing->len; j++) {
            if (level_is(g_ptr_array_index(disk->backing, j), path)) {
                return TRUE;
            }
        }
    }
    return FALSE;
}

static gboolean snapshot_has(const BeXmlSnapshot *snapshot, const char *path)
{
    if (g_strcmp0(snapshot->memory_file, path) == 0 || domain_has(snapshot->domain, path)) {
        return TRUE;
    }
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (level_is(&disk->overlay, path)) {
            return TRUE;
        }
    }
    return FALSE;
}

/* What cannot be read is taken for one that needs the file. */
static gboolean xml_needs(virDomainPtr domain, guint flags, const char *path)
{
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, flags, NULL);

    return !xml || domain_has(xml, path);
}

static gboolean snapshots_need(virDomainPtr domain, const char *path)
{
    virDomainSnapshotPtr *all = NULL;
    int count = virDomainListAllSnapshots(domain, &all, 0);
    gboolean needed = count < 0;

    for (int i = 0; i < count; i++) {
        char *xml = virDomainSnapshotGetXMLDesc(all[i], 0);
        g_autoptr(BeXmlSnapshot) snapshot = xml ? be_xml_snapshot_parse(xml, NULL) : NULL;

        needed = needed || !snapshot || snapshot_has(snapshot, path);
        free(xml);
        virDomainSnapshotFree(all[i]);
    }
    free(all);
    return needed;
}

static void remove_file(virDomainPtr domain, const char *path)
{
    struct stat attr;

    if (!path || lstat(path, &attr) < 0 || !S_ISREG(attr.st_mode)) {
        return;
    }
    if (xml_needs(domain, 0, path) || xml_needs(domain, VIR_DOMAIN_XML_INACTIVE, path)
        || snapshots_need(domain, path)) {
        g_warning("'%s' is left: the machine refers to it", path);
    } else if (unlink(path) < 0) {
        g_warning("cannot remove '%s': %s", path, g_strerror(errno));
    }
}

void snapshot_remove_files(virDomainPtr domain, const BeXmlSnapshot *wanted)
{
    for (guint i = 0; i < wanted->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(wanted->disks, i);

        remove_file(domain, disk->overlay.path);
    }
    remove_file(domain, wanted->memory_file);
}

/* CVE-2025-13193: libvirt 9.0 makes those of a machine that is off for all to read. */
void snapshot_protect_files(const BeXmlSnapshot *wanted)
{
    for (guint i = 0; i < wanted->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(wanted->disks, i);
        const char *path = disk->overlay.path;
        struct stat attr;

        if (path && lstat(path, &attr) == 0 && S_ISREG(attr.st_mode)
            && (attr.st_mode & 0077) != 0 && chmod(path, attr.st_mode & 0700) < 0) {
            g_warning("cannot take the rights of others from '%s': %s", path, g_strerror(errno));
        }
    }
}
