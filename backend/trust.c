/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust.c - whether a checkpoint can be believed, before a backup begins; and
 * giving back to libvirt what it has forgotten.
 *
 * Workers; no state.  libvirt 9.0's own check (qemuCheckpointRedefineValidate)
 * sees a bitmap that is missing, inconsistent or not recording in a running
 * machine, and a gap in the images that hold it.  It does not see that the images are
 * others, nor that the lower ones are missing: after a block pull to the end of the
 * chain the bitmap on top has all that was copied (tried), but what was discarded
 * below was not copied, and is in no bitmap any more.
 *
 * What can go behind our back, and what stops it (tests/test_trust.py has each):
 *
 *   another file                its time of birth and its number, or the device's name
 *   the same file or device, rolled back with its bitmaps to a time
 *     before the checkpoint     the bitmap is not there
 *     after it, machine off     nothing has to: the bitmap of then tells of the content
 *                               of then, which is right; what is newer is not there
 *     when the machine ran      QEMU writes bitmaps when it closes an image, and marks
 *                               them before it writes: missing, or inconsistent
 *     of an older checkpoint    a sound bitmap of another day, which libvirt takes for
 *     of the same name          this one (a bitmap must have its checkpoint's name, so
 *                               it cannot have a secret one): only content tells, and
 *                               the blocks kept are those that have changed lately
 *   deleted, and another made   libvirt knows names only: the backup's id, which is in the
 *   of its name                 description of each of ours
 *   a write by QEMU's tools     recorded in the top image; below it the file's time and
 *                               size (what our own deletions change is noted)
 *   a write by other programs   the bitmaps' bit in the header, which they clear; of raw
 *                               files the time and size
 *   a bitmap off for a while,   the content of blocks it should have, and of clusters in
 *   emptied, made again         images made since: likely, and not for sure
 *   shorter and longer again    the content of the last data: for sure, unless that was
 *                               zeroes or was written again
 *   writes that change no time  nothing: who can do that can change the record
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/error.h"
#include "backend/image-meta.h"
#include "backend/trust-priv.h"

/* Clusters that are looked at in each image made since. */
#define GROWN_SAMPLES 32

#define NOT_OURS "another program deleted it, and made one of its name"

typedef virDomainCheckpoint Checkpoint;

static void checkpoint_free(Checkpoint *checkpoint)
{
    if (checkpoint) {
        virDomainCheckpointFree(checkpoint);
    }
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Checkpoint, checkpoint_free)

static void refuse(GError **error, const char *name, const char *why)
{
    g_set_error(error, BE_ERROR, EUCLEAN,
                "checkpoint '%s' can serve no incremental backup any more: %s", name, why);
}

/* ---- The images ---------------------------------------------------------------------- */

/* Whether @path, in which no QEMU writes now, holds the bitmap as it should. */
static char *judge_bitmap(const BeTrustDisk *disk, const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) bitmaps = be_image_bitmaps(path, &error);
    const BeImageBitmap *bitmap = bitmaps ? be_image_bitmap(bitmaps, disk->bitmap) : NULL;
    const char *why = NULL;

    if (!bitmaps) {
        return g_strdup_printf("disk '%s': %s", disk->target, error->message);
    }
    if (!bitmap) {
        why = "is not in";
    } else if (bitmap->in_use) {
        why = "is inconsistent (QEMU was killed, or the host went down) in";
    } else if (!bitmap->enabled) {
        why = "does not record in";
    }
    return why ? g_strdup_printf("disk '%s': the bitmap '%s' %s the image '%s'", disk->target,
                                 disk->bitmap, why, path)
               : NULL;
}

/*
 * All images from the top down to @holder; of a running machine the top is libvirt's
 * to judge, for its bitmaps are in QEMU's memory.
 */
static char *judge_bitmaps(const BeTrustDisk *disk, const GPtrArray *now, guint holder,
                           gboolean running)
{
    for (guint i = running ? 1 : 0; i <= holder; i++) {
        const BeTrustImage *image = g_ptr_array_index(now, i);
        char *why = judge_bitmap(disk, image->path);

        if (why) {
            return why;
        }
    }
    return NULL;
}

/*
 * Images made since hold only what was written since, or was copied up by a block
 * pull, which QEMU 7.2 records, too: all of it must turn up as dirty.  What was written
 * while the bitmap of such an image did not record does not.
 */
static char *note_grown(BeTrustDisk *disk, const GPtrArray *now, guint grown)
{
    g_array_set_size(disk->grown, 0);
    for (guint i = 0; i < grown; i++) {
        const BeTrustImage *image = g_ptr_array_index(now, i);
        g_autoptr(GError) error = NULL;
        g_autoptr(GArray) ranges = be_image_allocated(image->path, GROWN_SAMPLES, &error);

        if (!ranges) {
            return g_strdup_printf("disk '%s': %s", disk->target, error->message);
        }
        for (guint j = 0; j < ranges->len; j++) {
            const BeImageRange *range = &g_array_index(ranges, BeImageRange, j);
            BeTrustRange added = {range->offset, range->length};

            g_array_append_val(disk->grown, added);
        }
    }
    return NULL;
}

static char *judge_size(const BeTrustDisk *disk, virDomainPtr domain)
{
    virDomainBlockInfo info;

    if (virDomainGetBlockInfo(domain, disk->target, &info, 0) < 0) {
        return g_strdup_printf("disk '%s' cannot be looked at: %s", disk->target,
                               virGetLastErrorMessage());
    }
    if (info.capacity != disk->size) {
        return g_strdup_printf("disk '%s' was resized from %" G_GUINT64_FORMAT " to %llu bytes",
                               disk->target, disk->size, info.capacity);
    }
    return NULL;
}

static char *judge_disk(BeTrustDisk *disk, virDomainPtr domain, const BeXmlDisk *xml,
                        gboolean running)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) now = be_trust_images(xml, &error);
    guint holder = 0, grown = 0;
    char *why;

    if (!now) {
        return g_strdup_printf("disk '%s': %s", disk->target, error->message);
    }
    why = be_trust_compare(disk, now, &holder, &grown);
    if (!why) {
        why = judge_size(disk, domain);
    }
    if (!why) {
        why = judge_bitmaps(disk, now, holder, running);
    }
    return why ? why : note_grown(disk, now, grown);
}

/* Disks that the machine has no more are nobody's concern; one that is left is enough. */
static char *judge_disks(const BeTrustRecord *record, virDomainPtr domain, const BeXmlDomain *xml,
                         gboolean running)
{
    guint left = 0;

    for (guint i = 0; i < record->disks->len; i++) {
        BeTrustDisk *disk = g_ptr_array_index(record->disks, i);
        const BeXmlDisk *now = be_xml_domain_disk(xml, disk->target);
        char *why = now ? judge_disk(disk, domain, now, running) : NULL;

        if (why) {
            return why;
        }
        left += now != NULL;
    }
    return left > 0 ? NULL : g_strdup("the machine has none of its disks any more");
}

/* ---- libvirt -------------------------------------------------------------------------- */

gboolean be_trust_owns(virDomainPtr domain, const BeTrustRecord *record)
{
    g_autoptr(Checkpoint) known = virDomainCheckpointLookupByName(domain, record->name, 0);
    char *xml = known ? virDomainCheckpointGetXMLDesc(known, 0) : NULL;
    g_autoptr(BeXmlCheckpoint) parsed = xml ? be_xml_checkpoint_parse(xml, NULL) : NULL;

    free(xml);
    return !parsed || be_trust_made(record, parsed->description);
}

/*
 * libvirt would wait 30 s for the lock of a job that changes the machine.  A backup
 * lets others in (tried).
 */
static gboolean can_ask(virDomainPtr domain, GError **error)
{
    virDomainJobInfo info;
    char *backup;
    gboolean is_backup;

    if (virDomainGetJobInfo(domain, &info) < 0) {
        be_error_from_libvirt(error, "cannot ask for the domain's job");
        return FALSE;
    }
    if (info.type == VIR_DOMAIN_JOB_NONE) {
        return TRUE;
    }
    backup = virDomainBackupGetXMLDesc(domain, 0);
    is_backup = backup != NULL;
    if (!is_backup) {
        g_set_error(error, BE_ERROR, EBUSY, "a job runs in the domain (virsh domjobinfo)");
    }
    free(backup);
    return is_backup;
}

/*
 * Defines the checkpoint again with its own XML, which changes nothing, for the sake
 * of the check that goes with it.
 */
static gboolean validate(virDomainPtr domain, const char *name, GError **error)
{
    g_autoptr(Checkpoint) checkpoint = virDomainCheckpointLookupByName(domain, name, 0);
    g_autoptr(Checkpoint) again = NULL;
    char *xml = checkpoint ? virDomainCheckpointGetXMLDesc(checkpoint, 0) : NULL;

    if (xml) {
        again = virDomainCheckpointCreateXML(domain, xml,
                                             VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
                                                 | VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE);
    }
    if (!again) {
        be_error_from_libvirt(error, "libvirt");
    }
    free(xml);
    return again != NULL;
}

static gboolean check_libvirt(virDomainPtr domain, const char *name, gboolean running,
                              GError **error)
{
    g_autoptr(Checkpoint) checkpoint = virDomainCheckpointLookupByName(domain, name, 0);
    g_autoptr(GError) failure = NULL;

    if (!checkpoint) {
        be_error_from_libvirt(&failure, "libvirt");
    } else if (!running) {
        return TRUE;
    } else if (!can_ask(domain, error)) {
        return FALSE;
    } else if (validate(domain, name, &failure)) {
        return TRUE;
    }
    if (failure->code == EHOSTUNREACH || failure->code == ETIMEDOUT || failure->code == EBUSY) {
        g_propagate_error(error, g_steal_pointer(&failure));
    } else if (failure->code == ENOENT) {
        refuse(error, name, "libvirt knows no checkpoint of that name any more");
    } else {
        refuse(error, name, failure->message);
    }
    return FALSE;
}

/* ---- The first half --------------------------------------------------------------------- */

gboolean be_trust_check(Be *be G_GNUC_UNUSED, virDomainPtr domain, const BeXmlDomain *xml,
                        const BeTrustRecord *record, GError **error)
{
    g_autofree char *why = g_strdup(record->broken);
    int active = virDomainIsActive(domain);

    if (active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    if (!why && g_ascii_strcasecmp(record->domain_uuid, xml->uuid) != 0) {
        why = g_strdup("it belongs to another machine");
    }
    if (!why && !be_trust_owns(domain, record)) {
        why = g_strdup(NOT_OURS);
    }
    if (!why) {
        why = judge_disks(record, domain, xml, active == 1);
    }
    if (why) {
        refuse(error, record->name, why);
        return FALSE;
    }
    return check_libvirt(domain, record->name, active == 1, error);
}

gboolean be_trust_check_foreign(Be *be G_GNUC_UNUSED, virDomainPtr domain, const char *name,
                                GError **error)
{
    int active = virDomainIsActive(domain);

    if (active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    return check_libvirt(domain, name, active == 1, error);
}

BeTrustRecord *be_trust_base(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                             const char *chain, GString *why)
{
    g_autoptr(GPtrArray) records = be_trust_records(be, xml->uuid);

    for (guint i = records->len; i-- > 0;) {
        BeTrustRecord *record = g_ptr_array_index(records, i);
        g_autoptr(GError) error = NULL;

        if (!record->taken || !g_str_equal(record->chain, chain)) {
            continue;
        }
        if (be_trust_check(be, domain, xml, record, &error)) {
            return g_ptr_array_steal_index(records, i);
        }
        if (why) {
            g_string_append_printf(why, "%s%s", why->len ? "; " : "", error->message);
        }
    }
    return NULL;
}

/* ---- Giving back ------------------------------------------------------------------------- */

static gboolean is_known(virDomainPtr domain, const char *name)
{
    g_autoptr(Checkpoint) checkpoint = virDomainCheckpointLookupByName(domain, name, 0);

    return checkpoint != NULL;
}

/*
 * Its parent may have been deleted since: then it hangs on @before, the newest older
 * one that there is.
 */
static char *xml_to_define(virDomainPtr domain, const BeTrustRecord *record, const char *before)
{
    g_autoptr(BeXmlCheckpoint) checkpoint = be_xml_checkpoint_parse(record->xml, NULL);

    if (!checkpoint || !checkpoint->parent || is_known(domain, checkpoint->parent)) {
        return g_strdup(record->xml);
    }
    return be_xml_checkpoint_with_parent(record->xml, before, NULL);
}

typedef enum {
    GIVEN_BACK,
    NOT_NOW,                   /* an image is not there, libvirt does not want: perhaps later */
    GONE,                      /* its bitmaps are not in the images any more */
} Return;

static Return redefine(virDomainPtr domain, const BeTrustRecord *record, const char *before,
                       gboolean running)
{
    unsigned flags = VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
                     | (running ? VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE : 0);
    g_autofree char *xml = xml_to_define(domain, record, before);
    g_autoptr(Checkpoint) checkpoint =
        xml ? virDomainCheckpointCreateXML(domain, xml, flags) : NULL;

    if (checkpoint) {
        return GIVEN_BACK;
    }
    g_debug("checkpoint '%s' cannot be given back: %s", record->name, virGetLastErrorMessage());
    return xml && virGetLastErrorCode() == VIR_ERR_CHECKPOINT_INCONSISTENT ? GONE : NOT_NOW;
}

/* Of a disk whose images are all there and those of then: whether the bitmap is not. */
static gboolean has_lost_bitmap(const BeTrustDisk *disk, const BeXmlDisk *xml, gboolean running)
{
    g_autoptr(GPtrArray) now = be_trust_images(xml, NULL);
    guint holder = 0, grown = 0;
    g_autofree char *other = now ? be_trust_compare(disk, now, &holder, &grown) : NULL;
    g_autofree char *lost =
        now && !other ? judge_bitmaps(disk, now, holder, running) : NULL;

    return lost != NULL;
}

static Return give_back(virDomainPtr domain, const BeXmlDomain *xml, const BeTrustRecord *record,
                        const char *before, gboolean running)
{
    g_autofree char *why = judge_disks(record, domain, xml, running);

    if (!why) {
        return redefine(domain, record, before, running);
    }
    for (guint i = 0; i < record->disks->len; i++) {
        const BeTrustDisk *disk = g_ptr_array_index(record->disks, i);
        const BeXmlDisk *now = be_xml_domain_disk(xml, disk->target);

        if (now && has_lost_bitmap(disk, now, running)) {
            return GONE;
        }
    }
    return NOT_NOW;
}

static void break_one(Be *be, BeTrustRecord *record, const char *reason)
{
    g_autoptr(GError) error = NULL;

    if (!be_trust_break_one(be, record, reason, &error)) {
        g_warning("%s", error->message);
    }
}

/* Whether libvirt has it now. */
static gboolean restore_one(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                            BeTrustRecord *record, const char *before, gboolean running)
{
    Return how;

    if (!record->xml || !record->taken || record->broken) {
        return FALSE;
    }
    how = give_back(domain, xml, record, before, running);
    if (how == GONE) {
        break_one(be, record, "another program deleted it");
    }
    return how == GIVEN_BACK;
}

guint be_trust_restore(Be *be, virDomainPtr domain, const BeXmlDomain *xml)
{
    g_autoptr(GPtrArray) records = be_trust_records(be, xml->uuid);
    int active = virDomainIsActive(domain);
    const char *before = NULL;
    guint restored = 0;

    for (guint i = 0; active >= 0 && i < records->len; i++) {
        BeTrustRecord *record = g_ptr_array_index(records, i);
        gboolean known = is_known(domain, record->name);

        if (!known && restore_one(be, domain, xml, record, before, active == 1)) {
            restored++;
            known = TRUE;
        } else if (known && !record->broken && !be_trust_owns(domain, record)) {
            break_one(be, record, NOT_OURS);
        }
        before = known ? record->name : before;
    }
    return restored;
}
