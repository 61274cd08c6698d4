/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-edit.h - libvirt's XML of domains and snapshots with other images put in.
 *
 * What we do not know of a text stays in it as it is.  Pure functions: any
 * thread, no locks.
 */
#pragma once

#include "backend/xml.h"

/**
 * BeXmlImage: the image that a disk shall have.  The strings are whoever's made it.
 */
typedef struct {
    char *target;              /* the disk; in a rename NULL: whichever has @from */
    char *from;                /* of a rename: the path to be replaced, else NULL */
    char *path;
    char *format;              /* "raw", "qcow2" */
    gboolean block;            /* a block device */
} BeXmlImage;

BeXmlImage *be_xml_image_new(const char *target, const char *path, const char *format,
                             gboolean block);
void be_xml_image_free(gpointer image);

/**
 * be_xml_edit_snapshot_domain: the <domain> of a snapshot as a text of its own, its
 * disks on @images.
 * @inactive: the <inactiveDomain> where there is one: what is to be defined
 * @images: (element BeXmlImage): by target; the other disks stay as they are
 *
 * <backingStore> goes: it would say what is below the old image.
 *
 * Returns: to be freed with g_free(); NULL: EFBIG, EIO, ENOENT (it has no <domain>).
 */
char *be_xml_edit_snapshot_domain(const char *xml, gboolean inactive, const GPtrArray *images,
                                  GError **error);

/**
 * be_xml_edit_overlays: a snapshot whose <disks> name @overlays (element BeXmlImage,
 * by target) as the images that the domain went on with.
 */
char *be_xml_edit_overlays(const char *xml, const GPtrArray *overlays, GError **error);

/**
 * be_xml_edit_rename: a <domain> or <domainsnapshot> in which every disk that has
 * the image @from has @path instead, and no disk says what is below its image.
 * @root: "domain" or "domainsnapshot"
 * @renames: (element BeXmlImage)
 */
char *be_xml_edit_rename(const char *xml, const char *root, const GPtrArray *renames,
                         GError **error);

/**
 * BeXmlNewSnapshot: what be_xml_edit_new_snapshot() makes a snapshot of.
 */
typedef struct {
    const char *name;
    const char *parent;        /* or NULL */
    const char *state;         /* "running", "paused", "shutoff" */
    const char *memory_file;   /* or NULL: without memory */
    const char *description;   /* or NULL */
    gint64 created_s;
    const GPtrArray *disks;    /* of BeXmlImage: the overlays; other disks are left out */
    const GPtrArray *others;   /* of char *: the targets that are left out */
    const char *domain;        /* <domain>: as it is, with secrets */
    const char *inactive;      /* <domain> as it is defined; NULL: the same */
} BeXmlNewSnapshot;

/**
 * be_xml_edit_new_snapshot: the XML for virDomainSnapshotCreateXML() with
 * VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE: an external snapshot of what is there now.
 *
 * Returns: to be freed with g_free(); NULL: EINVAL (a name that XML cannot hold),
 * EFBIG, EIO.
 */
char *be_xml_edit_new_snapshot(const BeXmlNewSnapshot *snapshot, GError **error);
