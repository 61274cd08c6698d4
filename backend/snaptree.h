/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snaptree.h - a domain's snapshots and the images they stand on, as one tree.
 *
 * libvirt keeps names; which image holds what is known from the XML of all
 * snapshots and from the images' own headers.  Nothing of it is kept by us, so it
 * is right after anybody's doing, and is read anew for each action.
 *
 * Where the state of an external snapshot is: in the image that its <domain> has
 * for the disk, its base; the domain went on with an overlay on it.  An image can
 * have several overlays: branches.
 *
 * Workers: reading blocks on libvirt and on local files.
 */
#pragma once

#include "backend/private.h"
#include "backend/xml.h"

typedef struct BeTreeImage BeTreeImage;

/**
 * BeTreeImage: one image file.
 */
struct BeTreeImage {
    char *path;
    const char *format;        /* "raw" or "qcow2" */
    gboolean block;            /* a block device */
    dev_t dev;                 /* identity, as in BeImage */
    ino_t ino;
    guint64 size;              /* virtual size in bytes */
    BeTreeImage *parent;       /* its backing image, or NULL */
    GPtrArray *children;       /* of BeTreeImage: overlays on it; borrowed */
    guint pins;                /* external snapshots whose state it holds */
    guint inner;               /* internal snapshots in it */
    gboolean top;              /* what the domain writes to, or will when it starts */
};

/**
 * BeTreeDisk: one external disk of a snapshot.
 */
typedef struct {
    char *target;
    BeTreeImage *base;         /* holds the state; NULL: it cannot be read */
    char *overlay;             /* the path in <disks>, or NULL */
} BeTreeDisk;

typedef struct {
    BeXmlSnapshot *xml;
    char *text;                /* with secrets, as libvirt takes it back */
    gboolean current;
    gboolean has_inner;        /* a disk or the memory is internal */
    GPtrArray *disks;          /* of BeTreeDisk: the external ones */
} BeTreeSnapshot;

/**
 * BeTree: immutable but for what its owner does to it.
 */
typedef struct {
    gboolean active;
    char *live;                /* XML with secrets; NULL: it is off */
    char *inactive;            /* as it is defined */
    BeXmlDomain *live_domain;
    BeXmlDomain *inactive_domain;
    GPtrArray *snapshots;      /* of BeTreeSnapshot */
    GPtrArray *images;         /* of BeTreeImage */
    char *unreadable;          /* why a part of the tree is not known, or NULL */
} BeTree;

/**
 * be_tree_read:
 * Returns: to be freed with be_tree_free(); NULL: EIO, EFBIG, or as libvirt says.
 * An image that cannot be read is no failure: see @unreadable.
 */
BeTree *be_tree_read(virDomainPtr domain, GError **error);
void be_tree_free(BeTree *tree);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeTree, be_tree_free)

BeTreeSnapshot *be_tree_snapshot(const BeTree *tree, const char *name);
BeTreeSnapshot *be_tree_current(const BeTree *tree);
const BeTreeDisk *be_tree_disk(const BeTreeSnapshot *snapshot, const char *target);

/**
 * be_tree_image: the image of that path, by its identity where the file is there.
 */
BeTreeImage *be_tree_image(const BeTree *tree, const char *path);

/**
 * be_tree_top: the image that a disk of the domain has now; NULL: none that is known.
 */
BeTreeImage *be_tree_top(const BeTree *tree, const char *target);

/**
 * be_tree_is_below: whether @below is @image or in its chain.
 */
gboolean be_tree_is_below(const BeTreeImage *image, const BeTreeImage *below);

/**
 * be_tree_pinned_by: the name of an external snapshot whose state is in an image;
 * be_tree_inside: of an internal one in it.  NULL: there is none.
 */
const char *be_tree_pinned_by(const BeTree *tree, const BeTreeImage *image);
const char *be_tree_inside(const BeTree *tree, const BeTreeImage *image);
