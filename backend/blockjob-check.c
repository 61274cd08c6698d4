/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * blockjob-check.c - whether a block job can be begun, before anything is touched.
 *
 * libvirt itself refuses little of this: it copies over the data of internal
 * snapshots, merges images that a snapshot or another machine needs, and takes any
 * path.  Action worker.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "backend/blockjob.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/image.h"
#include "backend/paused.h"

/* ---- The machine ------------------------------------------------------------------- */

static gboolean is_free(BlockJob *block, GError **error)
{
    g_autofree char *held = be_paused_held(block->be, block->uuid);

    if (held) {
        g_set_error_literal(error, BE_ERROR, EBUSY, held);
        return FALSE;
    }
    if (virDomainIsActive(block->domain) == 0) {
        g_set_error(error, BE_ERROR, EINVAL, "the domain is not running");
        return FALSE;
    }
    return be_domain_is_idle(block->domain, NULL, error);
}

static gboolean level_is_plain(const BeXmlLevel *level)
{
    return (level->source == BE_XML_SOURCE_FILE || level->source == BE_XML_SOURCE_BLOCK)
           && level->path && !level->encrypted && !level->sliced
           && (g_strcmp0(level->format, "qcow2") == 0 || g_strcmp0(level->format, "raw") == 0);
}

static gboolean disk_is_plain(const BeXmlDisk *disk, GError **error)
{
    gboolean plain = disk->device == BE_XML_DEVICE_DISK && !disk->readonly && !disk->transient
                     && level_is_plain(&disk->top);

    for (guint i = 0; i < disk->backing->len && plain; i++) {
        plain = level_is_plain(g_ptr_array_index(disk->backing, i));
    }
    if (!plain) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "disk '%s' is not made of plain local images of format qcow2 or raw that can "
                    "be written to",
                    disk->target);
    }
    return plain;
}

static gboolean disk_is_free(BlockJob *block, GError **error)
{
    virDomainBlockJobInfo info;
    int found;

    block->disk = be_xml_domain_disk(block->xml, block->target);
    if (!block->disk) {
        g_set_error(error, BE_ERROR, EINVAL, "the domain has no disk '%s'", block->target);
        return FALSE;
    }
    if (!disk_is_plain(block->disk, error)) {
        return FALSE;
    }
    found = virDomainGetBlockJobInfo(block->domain, block->target, &info, 0);
    if (found < 0) {
        be_error_from_libvirt(error, "cannot ask for the block job of the disk");
        return FALSE;
    }
    if (found > 0) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "a block job of another program runs on disk '%s' (virsh blockjob)",
                    block->target);
        return FALSE;
    }
    return TRUE;
}

/* ---- Snapshots and checkpoints ------------------------------------------------------- */

/* Whether a snapshot holds a state of the disk; TRUE also where that is not clear. */
static gboolean snapshot_holds(virDomainSnapshotPtr snapshot, const char *target)
{
    char *xml = virDomainSnapshotGetXMLDesc(snapshot, 0);
    g_autoptr(BeXmlSnapshot) parsed = xml ? be_xml_snapshot_parse(xml, NULL) : NULL;
    const BeXmlSnapshotDisk *disk = parsed ? be_xml_snapshot_disk(parsed, target) : NULL;

    free(xml);
    return !parsed || (disk && disk->part != BE_PART_NONE);
}

static gboolean no_snapshot_holds(BlockJob *block, GError **error)
{
    virDomainSnapshotPtr *snapshots = NULL;
    int count = virDomainListAllSnapshots(block->domain, &snapshots, 0);
    gboolean holds = FALSE;

    if (count < 0) {
        be_error_from_libvirt(error, "cannot list the snapshots");
        return FALSE;
    }
    for (int i = 0; i < count; i++) {
        if (!holds && snapshot_holds(snapshots[i], block->target)) {
            holds = TRUE;
            g_set_error(error, BE_ERROR, EBUSY,
                        "the snapshot '%s' needs the images of disk '%s' as they are; commit or "
                        "delete it first",
                        virDomainSnapshotGetName(snapshots[i]), block->target);
        }
        virDomainSnapshotFree(snapshots[i]);
    }
    free(snapshots);
    return !holds;
}

/* libvirt would copy the disk and lose the bitmaps without a word. */
static gboolean bitmaps_have_a_place(BlockJob *block, GError **error)
{
    int count;

    if (block->kind != BE_BLOCK_COPY || g_strcmp0(block->format, "qcow2") == 0) {
        return TRUE;
    }
    count = virDomainListAllCheckpoints(block->domain, NULL, 0);
    if (count < 0) {
        be_error_from_libvirt(error, "cannot list the checkpoints");
    } else if (count > 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain has checkpoints, whose bitmaps an image of format %s cannot hold; "
                    "copy to qcow2, or delete them first",
                    block->format);
    }
    return count == 0;
}

/* ---- Other machines ------------------------------------------------------------------- */

typedef struct {
    const char *path;          /* that nobody else may use */
    struct stat attr;
    gboolean exists;
} Wanted;

static gboolean same_file(const Wanted *wanted, const char *path)
{
    struct stat attr;

    return g_strcmp0(wanted->path, path) == 0
           || (wanted->exists && path && stat(path, &attr) == 0
               && attr.st_dev == wanted->attr.st_dev && attr.st_ino == wanted->attr.st_ino);
}

static gboolean chain_has(const GPtrArray *chain, const Wanted *wanted)
{
    for (guint i = 0; i < chain->len; i++) {
        const BeImage *image = g_ptr_array_index(chain, i);

        if (same_file(wanted, image->path)) {
            return TRUE;
        }
    }
    return FALSE;
}

/* The XML of a machine that is off does not say what is below its images. */
static gboolean disk_uses(const BeXmlDisk *disk, const Wanted *wanted)
{
    g_autoptr(GPtrArray) chain = NULL;

    if (same_file(wanted, disk->top.path)) {
        return TRUE;
    }
    for (guint i = 0; i < disk->backing->len; i++) {
        const BeXmlLevel *level = g_ptr_array_index(disk->backing, i);

        if (same_file(wanted, level->path)) {
            return TRUE;
        }
    }
    if (!wanted->exists || disk->backing_complete || !disk->top.path || !disk->top.format) {
        return FALSE;
    }
    chain = be_image_chain_inspect(disk->top.path, disk->top.format, NULL);
    return chain && chain_has(chain, wanted);
}

static gboolean domain_uses(virDomainPtr domain, unsigned flags, const char *not_target,
                            const Wanted *wanted)
{
    g_autoptr(BeXmlDomain) parsed = be_domain_read(domain, flags, NULL);
    gboolean uses = FALSE;

    for (guint i = 0; parsed && i < parsed->disks->len && !uses; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(parsed->disks, i);

        uses = g_strcmp0(disk->target, not_target) != 0 && disk_uses(disk, wanted);
    }
    return uses;
}

/* The disk itself is left out: it may use what is its own. */
static gboolean nobody_else_uses(BlockJob *block, const char *path, GError **error)
{
    Wanted wanted = {.path = path};
    virDomainPtr *domains = NULL;
    gboolean used = FALSE;
    int count =
        virConnectListAllDomains(virDomainGetConnect(block->domain), &domains, 0);

    if (count < 0) {
        be_error_from_libvirt(error, "cannot list the domains");
        return FALSE;
    }
    wanted.exists = stat(path, &wanted.attr) == 0;
    for (int i = 0; i < count; i++) {
        char uuid[VIR_UUID_STRING_BUFLEN] = "";
        const char *own = NULL;

        (void)virDomainGetUUIDString(domains[i], uuid);
        own = g_str_equal(uuid, block->uuid) ? block->target : NULL;
        if (!used
            && (domain_uses(domains[i], 0, own, &wanted)
                || domain_uses(domains[i], VIR_DOMAIN_XML_INACTIVE, own, &wanted))) {
            used = TRUE;
            g_set_error(error, BE_ERROR, EBUSY, "'%s' is an image of the domain '%s'", path,
                        virDomainGetName(domains[i]));
        }
        virDomainFree(domains[i]);
    }
    free(domains);
    return !used;
}

/* ---- Copy ------------------------------------------------------------------------------ */

static gboolean path_is_new(const char *path, GError **error)
{
    g_autofree char *canonical = NULL;
    struct stat attr;

    if (!g_path_is_absolute(path)) {
        g_set_error(error, BE_ERROR, EINVAL, "to= is an absolute path");
        return FALSE;
    }
    canonical = g_canonicalize_filename(path, NULL);
    if (!g_str_equal(canonical, path)) {
        g_set_error(error, BE_ERROR, EINVAL, "write the path without detours: to=%s", canonical);
        return FALSE;
    }
    if (lstat(path, &attr) == 0) {
        g_set_error(error, BE_ERROR, EEXIST, "'%s' exists", path);
        return FALSE;
    }
    if (errno != ENOENT) {
        be_error_set_errno(error, errno, "'%s'", path);
        return FALSE;
    }
    return TRUE;
}

static gboolean room_for_copy(BlockJob *block, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(block->to);
    virDomainBlockInfo info;
    struct statvfs space;

    if (statvfs(dir, &space) < 0) {
        be_error_set_errno(error, errno, "'%s'", dir);
        return FALSE;
    }
    if (virDomainGetBlockInfo(block->domain, block->target, &info, 0) < 0) {
        be_error_from_libvirt(error, "cannot ask for the size of the disk");
        return FALSE;
    }
    if ((guint64)space.f_bavail * space.f_frsize < info.allocation) {
        g_set_error(error, BE_ERROR, ENOSPC,
                    "'%s' has %" G_GUINT64_FORMAT " bytes free, and the active image alone holds "
                    "%llu",
                    dir, (guint64)space.f_bavail * space.f_frsize, info.allocation);
        return FALSE;
    }
    return TRUE;
}

static gboolean check_copy(BlockJob *block, GError **error)
{
    g_autofree char *xml = NULL;

    if (!block->format) {
        block->format = g_strdup(block->disk->top.format);
    }
    if (!g_str_equal(block->format, "qcow2") && !g_str_equal(block->format, "raw")) {
        g_set_error(error, BE_ERROR, EINVAL, "format is qcow2 or raw");
        return FALSE;
    }
    return path_is_new(block->to, error)
           && (xml = be_xml_copy_build(block->to, block->format, error))
           && nobody_else_uses(block, block->to, error)
           && room_for_copy(block, error) && bitmaps_have_a_place(block, error);
}

/* ---- Pull and commit --------------------------------------------------------------------- */

static gboolean has_backing(BlockJob *block, GError **error)
{
    if (block->disk->backing->len == 0) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "disk '%s' has one image, and nothing below it", block->target);
    }
    return block->disk->backing->len > 0;
}

static const BeXmlLevel *level_at(const BeXmlDisk *disk, guint depth)
{
    return depth == 0 ? &disk->top : g_ptr_array_index(disk->backing, depth - 1);
}

/* 0 is the active image; -1 with @error: not of this chain. */
static int depth_of(const BeXmlDisk *disk, const char *path, GError **error)
{
    for (guint i = 0; i <= disk->backing->len; i++) {
        if (g_strcmp0(level_at(disk, i)->path, path) == 0) {
            return (int)i;
        }
    }
    g_set_error(error, BE_ERROR, EINVAL, "'%s' is no image of disk '%s'", path, disk->target);
    return -1;
}

/* What changes under the eyes of others: the base, and all up to the top. */
static gboolean check_commit(BlockJob *block, GError **error)
{
    const BeXmlDisk *disk = block->disk;
    int top = block->top ? depth_of(disk, block->top, error) : 0;
    int base = top < 0       ? -1
               : block->base ? depth_of(disk, block->base, error)
                             : (int)disk->backing->len;

    if (base < 0 || !has_backing(block, error)) {
        return FALSE;
    }
    if (base <= top) {
        g_set_error(error, BE_ERROR, EINVAL, "the base has to be below the top");
        return FALSE;
    }
    block->active = top == 0;
    g_free(block->top);
    block->top = g_strdup(level_at(disk, (guint)top)->path);
    g_free(block->base);
    block->base = g_strdup(level_at(disk, (guint)base)->path);
    for (int i = top + 1; i <= base; i++) {
        if (!nobody_else_uses(block, level_at(disk, (guint)i)->path, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean block_job_check(BlockJob *block, GError **error)
{
    if (!be_host_is_local(block->be)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the images of a remote host cannot be looked at; mount on the host itself");
        return FALSE;
    }
    if (!block_job_read_domain(block, error) || !is_free(block, error)
        || !disk_is_free(block, error) || !no_snapshot_holds(block, error)) {
        return FALSE;
    }
    switch (block->kind) {
    case BE_BLOCK_COPY:
        return check_copy(block, error);
    case BE_BLOCK_PULL:
        return has_backing(block, error);
    case BE_BLOCK_COMMIT:
        return check_commit(block, error);
    }
    return FALSE;
}
