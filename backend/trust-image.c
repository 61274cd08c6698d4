/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust-image.c - which images a disk consists of, and whether they are those of a
 * checkpoint still.
 *
 * Workers; blocks on local files; no state.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/image-meta.h"
#include "backend/image.h"
#include "backend/trust-priv.h"

/* ---- Identity ----------------------------------------------------------------------- */

/* What names a block device after a reboot, too, as the kernel knows it; or NULL. */
static char *device_name(unsigned major_number, unsigned minor_number)
{
    static const char *const files[] = {"dm/uuid", "wwid", "device/wwid"};

    for (gsize i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path =
            g_strdup_printf("/sys/dev/block/%u:%u/%s", major_number, minor_number, files[i]);
        g_autofree char *text = NULL;

        if (g_file_get_contents(path, &text, NULL, NULL) && *g_strstrip(text)
            && g_utf8_validate(text, -1, NULL)) {
            return g_steal_pointer(&text);
        }
    }
    return NULL;
}

static char *identity_of_device(const struct statx *attr)
{
    g_autofree char *name = device_name(attr->stx_rdev_major, attr->stx_rdev_minor);

    return name ? g_strdup_printf("device %s", name)
                : g_strdup_printf("device %u:%u", attr->stx_rdev_major, attr->stx_rdev_minor);
}

/*
 * An inode number is used again soon after a file is deleted; with the time of
 * birth it is nobody else's.  Device numbers change at a reboot, so they count only
 * where the file system keeps no time of birth.
 */
char *be_trust_identity(const struct statx *attr)
{
    if (S_ISBLK(attr->stx_mode)) {
        return identity_of_device(attr);
    }
    if (attr->stx_mask & STATX_BTIME) {
        return g_strdup_printf("file %" G_GUINT64_FORMAT " born %" G_GINT64_FORMAT ".%09u",
                               (guint64)attr->stx_ino, (gint64)attr->stx_btime.tv_sec,
                               attr->stx_btime.tv_nsec);
    }
    return g_strdup_printf("file %" G_GUINT64_FORMAT " on %u:%u", (guint64)attr->stx_ino,
                           attr->stx_dev_major, attr->stx_dev_minor);
}

char *be_trust_content(const struct statx *attr)
{
    return g_strdup_printf("%" G_GUINT64_FORMAT " bytes of %" G_GINT64_FORMAT ".%09u",
                           (guint64)attr->stx_size, (gint64)attr->stx_mtime.tv_sec,
                           attr->stx_mtime.tv_nsec);
}

static gboolean keeps_bitmaps(const BeImage *image)
{
    g_autoptr(GPtrArray) bitmaps =
        g_str_equal(image->format, "qcow2") ? be_image_bitmaps(image->path, NULL) : NULL;

    return bitmaps && bitmaps->len > 0;
}

static gboolean add_image(GPtrArray *images, const BeImage *image, GError **error)
{
    struct statx attr;
    BeTrustImage *added;

    if (!g_utf8_validate(image->path, -1, NULL)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "the name of the image '%s' is not UTF-8",
                    image->path);
        return FALSE;
    }
    if (statx(AT_FDCWD, image->path, 0, STATX_BASIC_STATS | STATX_BTIME, &attr) < 0) {
        be_error_set_errno(error, errno, "cannot look at the image '%s'", image->path);
        return FALSE;
    }
    added = g_new0(BeTrustImage, 1);
    added->path = g_strdup(image->path);
    added->identity = be_trust_identity(&attr);
    if (images->len > 0) {
        added->content = S_ISBLK(attr.stx_mode) ? NULL : be_trust_content(&attr);
        added->keeps_bitmaps = keeps_bitmaps(image);
    }
    g_ptr_array_add(images, added);
    return TRUE;
}

/* ---- The chain of a disk -------------------------------------------------------------- */

static gboolean same_file(const BeXmlLevel *level, const BeImage *image)
{
    struct stat attr;

    if (!level->path || stat(level->path, &attr) < 0) {
        return FALSE;
    }
    return S_ISBLK(attr.st_mode)
               ? image->block_device && attr.st_rdev == image->dev
               : !image->block_device && attr.st_dev == image->dev && attr.st_ino == image->ino;
}

/*
 * What a running QEMU has open must be what the headers say: else the headers were
 * rewritten behind its back, and the next start is another disk.  The XML of a
 * machine that is off says nothing, or what was once.
 */
static gboolean is_as_running(const BeXmlDisk *disk, const GPtrArray *chain)
{
    if (disk->top.index == 0) {
        return TRUE;
    }
    if (disk->backing->len + 1 != chain->len
        || !same_file(&disk->top, g_ptr_array_index(chain, 0))) {
        return FALSE;
    }
    for (guint i = 0; i < disk->backing->len; i++) {
        if (!same_file(g_ptr_array_index(disk->backing, i), g_ptr_array_index(chain, i + 1))) {
            return FALSE;
        }
    }
    return TRUE;
}

GPtrArray *be_trust_images(const BeXmlDisk *disk, GError **error)
{
    g_autoptr(GPtrArray) images = be_trust_images_new();
    g_autoptr(GPtrArray) chain = NULL;

    if ((disk->top.source != BE_XML_SOURCE_FILE && disk->top.source != BE_XML_SOURCE_BLOCK)
        || disk->top.encrypted || disk->top.sliced
        || g_strcmp0(disk->top.format, "qcow2") != 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "disk '%s' is no plain qcow2 image on this host: it keeps no bitmap that can "
                    "be checked",
                    disk->target);
        return NULL;
    }
    chain = be_image_chain_inspect(disk->top.path, disk->top.format, error);
    if (!chain) {
        return NULL;
    }
    if (!is_as_running(disk, chain)) {
        g_set_error(error, BE_ERROR, EUCLEAN,
                    "disk '%s': the images name other backing files than the running machine uses",
                    disk->target);
        return NULL;
    }
    for (guint i = 0; i < chain->len; i++) {
        if (!add_image(images, g_ptr_array_index(chain, i), error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&images);
}

/* ---- Then and now ----------------------------------------------------------------------- */

static gboolean find_image(const GPtrArray *images, const char *identity, guint from,
                           guint *ret_index)
{
    for (guint i = from; i < images->len; i++) {
        const BeTrustImage *image = g_ptr_array_index(images, i);

        if (g_str_equal(image->identity, identity)) {
            *ret_index = i;
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * The images below the one with the bitmap.  Nobody writes to them, not even QEMU what
 * it keeps of bitmaps: it does that when an image stops being the top.  Except that one
 * which is deleted is merged into the one below it: then that changed, and only then
 * may it have; and that a checkpoint is deleted (trust-below.c).
 */
static char *compare_below(const BeTrustDisk *disk, const GPtrArray *now, guint was, guint is)
{
    const BeTrustImage *gone = NULL;

    for (was++, is++; was < disk->images->len; was++) {
        const BeTrustImage *then = g_ptr_array_index(disk->images, was);
        const BeTrustImage *here = is < now->len ? g_ptr_array_index(now, is) : NULL;
        gboolean changed;

        if (!here || !g_str_equal(then->identity, here->identity)) {
            gone = then;
            continue;
        }
        changed = g_strcmp0(then->content, here->content) != 0;
        if (changed && !gone) {
            return g_strdup_printf("disk '%s': the backing file '%s' was written to since",
                                   disk->target, here->path);
        }
        if (gone && !changed) {
            break;
        }
        gone = NULL;
        is++;
    }
    if (gone) {
        return g_strdup_printf("disk '%s': the backing file '%s' is gone or was replaced",
                               disk->target, gone->path);
    }
    if (is < now->len) {
        const BeTrustImage *extra = g_ptr_array_index(now, is);

        return g_strdup_printf("disk '%s': the backing file '%s' was not there then",
                               disk->target, extra->path);
    }
    return NULL;
}

char *be_trust_compare(const BeTrustDisk *disk, const GPtrArray *now, guint *ret_holder,
                       guint *ret_grown)
{
    const BeTrustImage *top = g_ptr_array_index(disk->images, 0);

    for (guint was = 0; was < disk->images->len; was++) {
        const BeTrustImage *then = g_ptr_array_index(disk->images, was);
        guint is;

        /* One that is gone was merged into the next one, together with the bitmap. */
        if (find_image(now, then->identity, 0, &is)) {
            *ret_holder = is;
            *ret_grown = is;
            return compare_below(disk, now, was, is);
        }
    }
    return g_strdup_printf("disk '%s' has none of its images of then: '%s' was replaced, copied "
                           "or pulled into another one",
                           disk->target, top->path);
}
