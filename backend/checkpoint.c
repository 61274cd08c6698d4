/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint.c - libvirt's checkpoints of a domain; see checkpoint.h.  Workers.
 */
#include "backend/checkpoint.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <unistd.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/image.h"
#include "backend/qemu-img.h"
#include "backend/trust.h"

/* The header of an image; the rest of it is not looked at. */
#define HEADER_BYTES (64 * 1024)

/* ---- Names --------------------------------------------------------------------------- */

static gboolean is_name_byte(char byte)
{
    return g_ascii_isalnum(byte) || (byte && strchr("_-.", byte));
}

gboolean be_checkpoint_check_name(const char *name, GError **error)
{
    gboolean good = *name && *name != '.';

    for (const char *at = name; good && *at; at++) {
        good = is_name_byte(*at);
    }
    if (!good) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "libvirt makes no checkpoint '%s': letters, digits and \"_-.\" are allowed",
                    name);
        return FALSE;
    }
    if (strlen(name) > BE_CHECKPOINT_NAME_MAX) {
        g_set_error(error, BE_ERROR, ENAMETOOLONG,
                    "the name of a checkpoint has at most %d bytes", BE_CHECKPOINT_NAME_MAX);
        return FALSE;
    }
    return TRUE;
}

char *be_checkpoint_name_like(const char *name)
{
    char *like = g_strdup(name);

    for (char *at = like; *at; at++) {
        if (!is_name_byte(*at) || (at == like && *at == '.')) {
            *at = '_';
        }
    }
    return like;
}

/* ---- Reading ------------------------------------------------------------------------- */

static char *read_xml(virDomainCheckpointPtr checkpoint, GError **error)
{
    char *xml = virDomainCheckpointGetXMLDesc(checkpoint, 0);
    char *copy = g_strdup(xml);

    if (!xml) {
        be_error_from_libvirt(error, "cannot read the checkpoint");
    }
    free(xml);
    return copy;
}

static virDomainCheckpointPtr find(virDomainPtr domain, const char *name, GError **error)
{
    virDomainCheckpointPtr checkpoint = virDomainCheckpointLookupByName(domain, name, 0);

    if (!checkpoint) {
        g_autofree char *what = g_strdup_printf("checkpoint '%s'", name);

        be_error_from_libvirt(error, what);
    }
    return checkpoint;
}

BeXmlCheckpoint *be_checkpoint_read(virDomainPtr domain, const char *name, GError **error)
{
    g_autoptr(BeVirCheckpoint) checkpoint = find(domain, name, error);
    g_autofree char *xml = checkpoint ? read_xml(checkpoint, error) : NULL;

    return xml ? be_xml_checkpoint_parse(xml, error) : NULL;
}

/* ---- Which disks can hold one ---------------------------------------------------- */

/* The version is in the image alone; libvirt lets version 2 through, QEMU fails then. */
static char *why_not_by_header(const char *path)
{
    g_autofree guint8 *data = g_malloc(HEADER_BYTES);
    g_auto(BeImageHeader) header = {0};
    g_autoptr(GError) error = NULL;
    int fd = be_image_open(path, &error);
    ssize_t got = fd >= 0 ? pread(fd, data, HEADER_BYTES, 0) : -1;

    if (fd >= 0) {
        close(fd);
    }
    if (got < 0 || !be_image_header_parse(data, (gsize)got, &header, &error)) {
        return g_strdup_printf("has an image that cannot be looked at: %s",
                               error ? error->message : g_strerror(EIO));
    }
    if (header.version < 3) {
        return g_strdup("is qcow2 of version 2, which keeps no bitmaps "
                        "(qemu-img amend -o compat=1.1)");
    }
    /* What writes into that file directly is in no bitmap. */
    return header.external_data ? g_strdup("has its data in a file of its own") : NULL;
}

char *be_checkpoint_why_no_bitmap(const BeXmlDisk *disk)
{
    const BeXmlLevel *top = &disk->top;

    if (g_strcmp0(top->format, "qcow2") != 0) {
        return g_strdup_printf("is %s, and only qcow2 keeps bitmaps",
                               top->format ? top->format : "of an unknown format");
    }
    if (disk->transient) {
        return g_strdup("is transient");
    }
    return top->path ? why_not_by_header(top->path) : NULL;
}

/* ---- Removing ---------------------------------------------------------------------- */

gboolean be_checkpoint_forget(virDomainPtr domain, const char *name, GError **error)
{
    g_autoptr(BeVirCheckpoint) checkpoint = find(domain, name, error);

    if (checkpoint
        && virDomainCheckpointDelete(checkpoint, VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY) < 0) {
        be_error_from_libvirt(error, "cannot forget the checkpoint");
        return FALSE;
    }
    return checkpoint != NULL;
}

/* The disk that libvirt's message says has no bitmap; NULL: it says something else. */
static const BeXmlCheckpointDisk *missing_disk(const BeXmlCheckpoint *checkpoint,
                                               virErrorPtr err)
{
    for (guint i = 0; err && err->message && i < checkpoint->disks->len; i++) {
        const BeXmlCheckpointDisk *disk = g_ptr_array_index(checkpoint->disks, i);
        g_autofree char *quoted = g_strdup_printf("'%s'", disk->target);

        if (disk->bitmap && err->code == VIR_ERR_INTERNAL_ERROR
            && strstr(err->message, "not found") && g_str_has_suffix(err->message, quoted)) {
            return disk;
        }
    }
    return NULL;
}

/* The same checkpoint without the disk whose bitmap is gone already. */
static gboolean redefine_without(virDomainPtr domain, const char *xml, const char *target,
                                 GError **error)
{
    g_autofree char *less = be_xml_checkpoint_without(xml, target, error);
    g_autoptr(BeVirCheckpoint) again = NULL;

    if (!less) {
        return FALSE;
    }
    again = virDomainCheckpointCreateXML(domain, less, VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE);
    if (!again) {
        be_error_from_libvirt(error, "cannot redefine the broken checkpoint");
    }
    return again != NULL;
}

/*
 * libvirt deletes nothing of a checkpoint of which one bitmap is missing (code 1):
 * that disk is taken out of it, and then it goes with the bitmaps that are there.
 */
static gboolean remove_live(virDomainPtr domain, virDomainCheckpointPtr checkpoint, GError **error)
{
    gboolean going = TRUE;

    while (going && virDomainCheckpointDelete(checkpoint, 0) < 0) {
        virErrorPtr err = virSaveLastError();
        g_autoptr(GError) failure = NULL;
        g_autofree char *xml = NULL;
        g_autoptr(BeXmlCheckpoint) parsed = NULL;
        const BeXmlCheckpointDisk *missing;

        be_error_from_libvirt(&failure, "cannot delete the checkpoint");
        xml = read_xml(checkpoint, NULL);
        parsed = xml ? be_xml_checkpoint_parse(xml, NULL) : NULL;
        missing = parsed ? missing_disk(parsed, err) : NULL;
        virFreeError(err);
        if (!missing) {
            g_propagate_error(error, g_steal_pointer(&failure));
        }
        going = missing && redefine_without(domain, xml, missing->target, error);
    }
    return going;
}

/* Also an inconsistent one; not for an image that a QEMU has open (EBUSY). */
static gboolean remove_bitmap(const char *path, const char *bitmap, GError **error)
{
    const char *const argv[] = {"bitmap", "--remove", "-f", "qcow2", "--", path, bitmap, NULL};
    g_autoptr(GError) failure = NULL;

    if (be_qemu_img(NULL, argv, &failure)
        || (strstr(failure->message, "Dirty bitmap") && strstr(failure->message, "not found"))) {
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&failure));
    return FALSE;
}

/* Each level may have it: libvirt makes the bitmaps again in every overlay. */
static gboolean remove_from_image(const BeXmlDomain *xml, const BeXmlCheckpointDisk *disk,
                                  GError **error)
{
    const BeXmlDisk *now = be_xml_domain_disk(xml, disk->target);
    g_autoptr(GPtrArray) chain = NULL;

    if (!now || g_strcmp0(now->top.format, "qcow2") != 0) {
        return TRUE;           /* the disk is gone, and with it the bitmap */
    }
    if (!now->top.path) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image of disk '%s' is no local file; start the domain first",
                    disk->target);
        return FALSE;
    }
    chain = be_image_chain_inspect(now->top.path, now->top.format, error);
    for (guint i = 0; chain && i < chain->len; i++) {
        const BeImage *image = g_ptr_array_index(chain, i);

        if (g_str_equal(image->format, "qcow2")
            && !remove_bitmap(image->path, disk->bitmap, error)) {
            return FALSE;
        }
    }
    return chain != NULL;
}

/* libvirt deletes none of a domain that is off (84). */
static gboolean remove_off(virDomainPtr domain, const char *name, GError **error)
{
    g_autoptr(BeXmlCheckpoint) checkpoint = be_checkpoint_read(domain, name, error);
    g_autoptr(BeXmlDomain) xml =
        checkpoint ? be_domain_read(domain, VIR_DOMAIN_XML_INACTIVE, error) : NULL;

    for (guint i = 0; xml && i < checkpoint->disks->len; i++) {
        const BeXmlCheckpointDisk *disk = g_ptr_array_index(checkpoint->disks, i);

        if (disk->bitmap && !remove_from_image(xml, disk, error)) {
            return FALSE;
        }
    }
    return xml && be_checkpoint_forget(domain, name, error);
}

gboolean be_checkpoint_remove(Be *be, virDomainPtr domain, const char *name, GError **error)
{
    char uuid[VIR_UUID_STRING_BUFLEN];
    GPtrArray *below;
    g_autoptr(GError) failure = NULL;
    g_autoptr(BeVirCheckpoint) checkpoint = find(domain, name, &failure);
    gboolean done;
    int active;

    if (!checkpoint) {
        if (failure->code == ENOENT) {
            return TRUE;
        }
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    active = virDomainIsActive(domain);
    if (active < 0 || virDomainGetUUIDString(domain, uuid) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    below = be_trust_before_removal(be, uuid);
    done = active ? remove_live(domain, checkpoint, error) : remove_off(domain, name, error);
    be_trust_after_removal(be, below);
    return done;
}
