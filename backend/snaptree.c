/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snaptree.c - reading the tree; see snaptree.h.  Workers.
 */
#include "backend/snaptree.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/error.h"
#include "backend/image.h"

static void image_free(gpointer data)
{
    BeTreeImage *image = data;

    g_free(image->path);
    g_ptr_array_unref(image->children);
    g_free(image);
}

static void disk_free(gpointer data)
{
    BeTreeDisk *disk = data;

    g_free(disk->target);
    g_free(disk->overlay);
    g_free(disk);
}

static void snapshot_free(gpointer data)
{
    BeTreeSnapshot *snapshot = data;

    be_xml_snapshot_free(snapshot->xml);
    g_free(snapshot->text);
    g_ptr_array_unref(snapshot->disks);
    g_free(snapshot);
}

void be_tree_free(BeTree *tree)
{
    if (!tree) {
        return;
    }
    g_free(tree->live);
    g_free(tree->inactive);
    be_xml_domain_free(tree->live_domain);
    be_xml_domain_free(tree->inactive_domain);
    g_ptr_array_unref(tree->snapshots);
    g_ptr_array_unref(tree->images);
    g_free(tree->unreadable);
    g_free(tree);
}

/* ---- Looking -------------------------------------------------------------------- */

BeTreeSnapshot *be_tree_snapshot(const BeTree *tree, const char *name)
{
    for (guint i = 0; i < tree->snapshots->len; i++) {
        BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);

        if (strcmp(snapshot->xml->name, name) == 0) {
            return snapshot;
        }
    }
    return NULL;
}

BeTreeSnapshot *be_tree_current(const BeTree *tree)
{
    for (guint i = 0; i < tree->snapshots->len; i++) {
        BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);

        if (snapshot->current) {
            return snapshot;
        }
    }
    return NULL;
}

const BeTreeDisk *be_tree_disk(const BeTreeSnapshot *snapshot, const char *target)
{
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (strcmp(disk->target, target) == 0) {
            return disk;
        }
    }
    return NULL;
}

static BeTreeImage *image_of_identity(const BeTree *tree, dev_t dev, ino_t ino)
{
    for (guint i = 0; i < tree->images->len; i++) {
        BeTreeImage *image = g_ptr_array_index(tree->images, i);

        if (image->dev == dev && image->ino == ino) {
            return image;
        }
    }
    return NULL;
}

BeTreeImage *be_tree_image(const BeTree *tree, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        return NULL;
    }
    return S_ISBLK(st.st_mode) ? image_of_identity(tree, st.st_rdev, 0)
                               : image_of_identity(tree, st.st_dev, st.st_ino);
}

BeTreeImage *be_tree_top(const BeTree *tree, const char *target)
{
    const BeXmlDomain *domain = tree->live_domain ? tree->live_domain : tree->inactive_domain;
    const BeXmlDisk *disk = be_xml_domain_disk(domain, target);

    return disk && disk->top.path ? be_tree_image(tree, disk->top.path) : NULL;
}

gboolean be_tree_is_below(const BeTreeImage *image, const BeTreeImage *below)
{
    while (image && image != below) {
        image = image->parent;
    }
    return image != NULL;
}

static gboolean pins(const BeTreeSnapshot *snapshot, const BeTreeImage *image)
{
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (disk->base == image) {
            return TRUE;
        }
    }
    return FALSE;
}

const char *be_tree_pinned_by(const BeTree *tree, const BeTreeImage *image)
{
    for (guint i = 0; i < tree->snapshots->len; i++) {
        const BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);

        if (pins(snapshot, image)) {
            return snapshot->xml->name;
        }
    }
    return NULL;
}

static gboolean has_inside(const BeTree *tree, const BeTreeSnapshot *snapshot,
                           const BeTreeImage *image)
{
    const BeXmlDomain *domain = snapshot->xml->domain;

    for (guint i = 0; domain && i < snapshot->xml->disks->len; i++) {
        const BeXmlSnapshotDisk *part = g_ptr_array_index(snapshot->xml->disks, i);
        const BeXmlDisk *disk = be_xml_domain_disk(domain, part->target);

        if (part->part == BE_PART_INTERNAL && disk && disk->top.path
            && be_tree_image(tree, disk->top.path) == image) {
            return TRUE;
        }
    }
    return FALSE;
}

const char *be_tree_inside(const BeTree *tree, const BeTreeImage *image)
{
    for (guint i = 0; i < tree->snapshots->len; i++) {
        const BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);

        if (has_inside(tree, snapshot, image)) {
            return snapshot->xml->name;
        }
    }
    return NULL;
}

/* ---- Images ---------------------------------------------------------------------- */

static BeTreeImage *take_image(BeTree *tree, const BeImage *seen)
{
    BeTreeImage *image = image_of_identity(tree, seen->dev, seen->ino);

    if (image) {
        return image;
    }
    image = g_new0(BeTreeImage, 1);
    image->path = g_strdup(seen->path);
    image->format = g_intern_string(seen->format);
    image->block = seen->block_device;
    image->dev = seen->dev;
    image->ino = seen->ino;
    image->size = seen->size;
    image->children = g_ptr_array_new();
    g_ptr_array_add(tree->images, image);
    return image;
}

static void link_images(BeTreeImage *above, BeTreeImage *below)
{
    if (!above->parent && above != below && !be_tree_is_below(below, above)) {
        above->parent = below;
        g_ptr_array_add(below->children, above);
    }
}

/* The image of a disk with all that is below it. */
static BeTreeImage *take_chain(BeTree *tree, const BeXmlLevel *top, const char *whose)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) chain = NULL;
    BeTreeImage *first = NULL, *above = NULL;

    if ((top->source != BE_XML_SOURCE_FILE && top->source != BE_XML_SOURCE_BLOCK) || !top->path
        || top->sliced || top->encrypted) {
        g_set_error(&error, BE_ERROR, EOPNOTSUPP, "it is no plain local image (%s)",
                    be_xml_source_name(top->source));
    } else {
        chain = be_image_chain_inspect(top->path, top->format, &error);
    }
    for (guint i = 0; chain && i < chain->len; i++) {
        BeTreeImage *image = take_image(tree, g_ptr_array_index(chain, i));

        if (above) {
            link_images(above, image);
        }
        first = first ? first : image;
        above = image;
    }
    if (!first && !tree->unreadable) {
        tree->unreadable = g_strdup_printf("%s: %s", whose, error->message);
    }
    return first;
}

static void take_domain(BeTree *tree, const BeXmlDomain *domain)
{
    for (guint i = 0; domain && i < domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(domain->disks, i);
        g_autofree char *whose = g_strdup_printf("disk '%s'", disk->target);
        BeTreeImage *image;

        if (disk->device != BE_XML_DEVICE_DISK || disk->readonly
            || disk->top.source == BE_XML_SOURCE_NONE) {
            continue;
        }
        image = take_chain(tree, &disk->top, whose);
        if (image) {
            image->top = TRUE;
        }
    }
}

/* ---- Snapshots -------------------------------------------------------------------- */

static void take_disk(BeTree *tree, BeTreeSnapshot *snapshot, const BeXmlSnapshotDisk *part)
{
    const BeXmlDisk *disk =
        snapshot->xml->domain ? be_xml_domain_disk(snapshot->xml->domain, part->target) : NULL;
    g_autofree char *whose =
        g_strdup_printf("disk '%s' of snapshot '%s'", part->target, snapshot->xml->name);
    BeTreeImage *image = disk ? take_chain(tree, &disk->top, whose) : NULL;
    BeTreeDisk *row;

    if (part->part == BE_PART_INTERNAL) {
        snapshot->has_inner = TRUE;
        if (image) {
            image->inner++;
        }
        return;
    }
    row = g_new0(BeTreeDisk, 1);
    row->target = g_strdup(part->target);
    row->base = image;
    row->overlay = g_strdup(part->overlay.path);
    g_ptr_array_add(snapshot->disks, row);
    if (image) {
        image->pins++;
    }
}

static gboolean take_snapshot(BeTree *tree, virDomainSnapshotPtr handle, const char *current,
                              GError **error)
{
    char *text = virDomainSnapshotGetXMLDesc(handle, VIR_DOMAIN_SNAPSHOT_XML_SECURE);
    BeTreeSnapshot *snapshot;

    if (!text) {
        /* Deleted between the list and this: then it is no part of the tree. */
        if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_SNAPSHOT) {
            return TRUE;
        }
        be_error_from_libvirt(error, "cannot read a snapshot's XML");
        return FALSE;
    }
    snapshot = g_new0(BeTreeSnapshot, 1);
    snapshot->disks = g_ptr_array_new_with_free_func(disk_free);
    snapshot->text = g_strdup(text);
    free(text);
    snapshot->xml = be_xml_snapshot_parse(snapshot->text, error);
    if (!snapshot->xml) {
        snapshot_free(snapshot);
        return FALSE;
    }
    snapshot->current = g_strcmp0(current, snapshot->xml->name) == 0;
    snapshot->has_inner = snapshot->xml->memory == BE_PART_INTERNAL;
    g_ptr_array_add(tree->snapshots, snapshot);
    for (guint i = 0; i < snapshot->xml->disks->len; i++) {
        const BeXmlSnapshotDisk *part = g_ptr_array_index(snapshot->xml->disks, i);

        if (part->part == BE_PART_INTERNAL || part->part == BE_PART_EXTERNAL) {
            take_disk(tree, snapshot, part);
        }
    }
    return TRUE;
}

static char *current_name(virDomainPtr domain)
{
    virDomainSnapshotPtr current = virDomainSnapshotCurrent(domain, 0);
    char *name = current ? g_strdup(virDomainSnapshotGetName(current)) : NULL;

    if (current) {
        virDomainSnapshotFree(current);
    }
    return name;
}

static gboolean take_snapshots(BeTree *tree, virDomainPtr domain, GError **error)
{
    g_autofree char *current = current_name(domain);
    virDomainSnapshotPtr *handles = NULL;
    int count = virDomainListAllSnapshots(domain, &handles, VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL);
    gboolean good = count >= 0;

    if (!good) {
        be_error_from_libvirt(error, "cannot list the snapshots");
    }
    for (int i = 0; i < count; i++) {
        good = good && take_snapshot(tree, handles[i], current, error);
        virDomainSnapshotFree(handles[i]);
    }
    free(handles);
    return good;
}

/* ---- The whole --------------------------------------------------------------------- */

static gboolean read_text(virDomainPtr domain, guint flags, char **ret_text,
                          BeXmlDomain **ret_domain, GError **error)
{
    char *text = virDomainGetXMLDesc(domain, VIR_DOMAIN_XML_SECURE | flags);

    if (!text) {
        be_error_from_libvirt(error, "cannot read the domain's XML");
        return FALSE;
    }
    *ret_text = g_strdup(text);
    free(text);
    *ret_domain = be_xml_domain_parse(*ret_text, error);
    return *ret_domain != NULL;
}

BeTree *be_tree_read(virDomainPtr domain, GError **error)
{
    g_autoptr(BeTree) tree = g_new0(BeTree, 1);
    int active = virDomainIsActive(domain);

    tree->snapshots = g_ptr_array_new_with_free_func(snapshot_free);
    tree->images = g_ptr_array_new_with_free_func(image_free);
    if (active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return NULL;
    }
    tree->active = active;
    if (!read_text(domain, VIR_DOMAIN_XML_INACTIVE, &tree->inactive, &tree->inactive_domain, error)
        || (active && !read_text(domain, 0, &tree->live, &tree->live_domain, error))
        || !take_snapshots(tree, domain, error)) {
        return NULL;
    }
    take_domain(tree, tree->inactive_domain);
    take_domain(tree, tree->live_domain);
    return g_steal_pointer(&tree);
}
