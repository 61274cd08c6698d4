/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust-below.c - images below the top, which change when a checkpoint is deleted,
 * and only by that.
 *
 * libvirt makes a checkpoint's bitmap again in every overlay, and so deletes it from
 * each image of the chain.  Action workers, of one domain one at a time; no state.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "backend/image-meta.h"
#include "backend/trust-priv.h"

static gboolean look_at(const BeTrustImage *image, struct statx *attr)
{
    g_autofree char *identity = NULL;

    if (statx(AT_FDCWD, image->path, 0, STATX_BASIC_STATS | STATX_BTIME, attr) < 0) {
        return FALSE;
    }
    identity = be_trust_identity(attr);
    return g_str_equal(identity, image->identity);
}

/* Whether a deletion may change it, and nobody else has. */
static gboolean is_as_recorded(const BeTrustImage *image)
{
    struct statx attr;
    g_autofree char *content = NULL;

    if (!image->keeps_bitmaps || !image->content || !look_at(image, &attr)) {
        return FALSE;
    }
    content = be_trust_content(&attr);
    return g_str_equal(content, image->content);
}

static guint mark_images(BeTrustRecord *record)
{
    guint marked = 0;

    for (guint i = 0; i < record->disks->len; i++) {
        const BeTrustDisk *disk = g_ptr_array_index(record->disks, i);

        for (guint j = 1; j < disk->images->len; j++) {
            BeTrustImage *image = g_ptr_array_index(disk->images, j);

            image->as_recorded = is_as_recorded(image);
            marked += image->as_recorded;
        }
    }
    return marked;
}

GPtrArray *be_trust_before_removal(Be *be, const char *uuid)
{
    GPtrArray *records = be_trust_records(be, uuid);

    for (guint i = 0; i < records->len;) {
        if (mark_images(g_ptr_array_index(records, i)) > 0) {
            i++;
        } else {
            g_ptr_array_remove_index(records, i);
        }
    }
    return records;
}

/* Whether it changed; it is what counts from now on. */
static gboolean note_image(BeTrustImage *image)
{
    g_autoptr(GPtrArray) bitmaps = NULL;
    g_autofree char *content = NULL;
    struct statx attr;

    if (!look_at(image, &attr)) {
        return FALSE;
    }
    content = be_trust_content(&attr);
    if (g_str_equal(content, image->content)) {
        return FALSE;
    }
    bitmaps = be_image_bitmaps(image->path, NULL);
    image->keeps_bitmaps = bitmaps && bitmaps->len > 0;
    g_free(image->content);
    image->content = g_steal_pointer(&content);
    return TRUE;
}

/* @marked: which images; @record: the same one, read again. */
static gboolean note_images(const BeTrustRecord *marked, BeTrustRecord *record)
{
    gboolean changed = FALSE;

    for (guint i = 0; i < marked->disks->len; i++) {
        const BeTrustDisk *then = g_ptr_array_index(marked->disks, i);
        const BeTrustDisk *now = be_trust_record_disk(record, then->target);

        for (guint j = 1; now && j < MIN(then->images->len, now->images->len); j++) {
            const BeTrustImage *image = g_ptr_array_index(then->images, j);
            BeTrustImage *noted = g_ptr_array_index(now->images, j);

            changed = (image->as_recorded && g_strcmp0(image->content, noted->content) == 0
                       && note_image(noted))
                      || changed;
        }
    }
    return changed;
}

void be_trust_after_removal(Be *be, GPtrArray *records)
{
    for (guint i = 0; i < records->len; i++) {
        const BeTrustRecord *marked = g_ptr_array_index(records, i);
        g_autoptr(GMutexLocker) locker G_GNUC_UNUSED = g_mutex_locker_new(&be->trust_lock);
        g_autoptr(BeTrustRecord) newest =
            be_trust_find(be, marked->domain_uuid, marked->name);
        g_autoptr(GError) error = NULL;

        /* One that cannot be written is refused later: a full backup, and no harm. */
        if (newest && note_images(marked, newest) && !be_trust_write(be, newest, &error)) {
            g_warning("%s", error->message);
        }
    }
    g_ptr_array_unref(records);
}
