/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * change.c - what revert, delete and commit share; see change.h.
 *
 * Action workers, one per domain.
 */
#include "backend/change.h"

#include <errno.h>
#include <fcntl.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/freeze.h"
#include "backend/image.h"
#include "backend/lease.h"
#include "backend/readings.h"
#include "backend/paused.h"

/* ---- Is anything in the way? ------------------------------------------------------- */

static gboolean no_job(virDomainPtr domain, GError **error)
{
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, 0, error);
    g_autoptr(GError) failure = NULL;

    if (!xml) {
        return FALSE;
    }
    if (be_domain_is_idle(domain, xml, &failure) || virDomainIsActive(domain) == 0) {
        return TRUE;           /* or off by now */
    }
    g_propagate_error(error, g_steal_pointer(&failure));
    return FALSE;
}

gboolean be_change_nothing_runs(Be *be, virDomainPtr domain, const char *uuid, GError **error)
{
    Backup *backup = be_backups_in_the_way(be, uuid);

    if (backup) {
        g_set_error(error, BE_ERROR, EBUSY, "backup '%s' is running; end it with rmdir backups/%s",
                    backup->pub.name, backup->pub.name);
        be_backup_unref(&backup->pub);
        return FALSE;
    }
    if (be_freeze_is_held(be, uuid)) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the guest's file systems are frozen; write 'thaw' to the domain's control");
        return FALSE;
    }
    return virDomainIsActive(domain) != 1 || no_job(domain, error);
}

/* ---- Does anybody read? ------------------------------------------------------------ */

#define READER_WAIT_US G_USEC_PER_SEC
#define READER_POLL_US (50 * 1000)

static gboolean is_unread(const GPtrArray *paths, GError **error)
{
    for (guint i = 0; i < paths->len; i++) {
        if (be_lease_blocks(g_ptr_array_index(paths, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean be_change_nobody_reads(Be *be, const char *uuid, const GPtrArray *paths,
                                GError **error)
{
    gint64 until_us = g_get_monotonic_time() + READER_WAIT_US;

    while (!is_unread(paths, NULL)) {
        if (g_get_monotonic_time() > until_us) {
            return is_unread(paths, error);
        }
        g_usleep(READER_POLL_US);
        be_readings_stop(be, uuid);
        be_readings_go_on(be, uuid);
    }
    return TRUE;
}

/* ---- Names --------------------------------------------------------------------------- */

#define NAME_BYTES_MAX 64
#define PATHS_MAX 10000

/* A dot would be taken for the begin of a suffix when libvirt makes the next name. */
static char *plain_name(const char *name)
{
    char *plain = g_strndup(name, NAME_BYTES_MAX);

    for (char *p = plain; *p; p++) {
        if (!g_ascii_isalnum(*p) && *p != '-' && *p != '_' && *p != '+') {
            *p = '_';
        }
    }
    return plain;
}

static char *stem_of(const char *path)
{
    char *stem = g_path_get_basename(path);
    char *dot = strrchr(stem, '.');

    if (dot && dot != stem) {
        *dot = '\0';
    }
    if (strlen(stem) > NAME_BYTES_MAX * 2) {
        stem[NAME_BYTES_MAX * 2] = '\0';
    }
    return stem;
}

char *be_change_new_path(const char *base, const char *name, const char *suffix)
{
    g_autofree char *dir = g_path_get_dirname(base);
    g_autofree char *stem = stem_of(base);
    g_autofree char *plain = plain_name(name);
    struct stat st;

    for (guint i = 1; i < PATHS_MAX; i++) {
        g_autofree char *path = g_strdup_printf("%s/%s.%s-%s%u", dir, stem, plain, suffix, i);

        if (lstat(path, &st) < 0 && errno == ENOENT) {
            return g_steal_pointer(&path);
        }
    }
    /* It will be found to exist. */
    return g_strdup_printf("%s/%s.%s-%s0", dir, stem, plain, suffix);
}

static gboolean redefine(virDomainPtr domain, const char *xml, gboolean current, GError **error)
{
    unsigned int flags = VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
                         | (current ? VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT : 0);
    virDomainSnapshotPtr snapshot = virDomainSnapshotCreateXML(domain, xml, flags);

    if (!snapshot) {
        be_error_from_libvirt(error, "libvirt does not take the snapshot's XML");
        return FALSE;
    }
    virDomainSnapshotFree(snapshot);
    return TRUE;
}

/* libvirt 9.0 takes none for a machine that is off and has checkpoints: it asks the
 * QEMU that is not there whether it knows of bitmaps. */
static gboolean wants_qemu(virDomainPtr domain, const GError *error)
{
    return g_error_matches(error, BE_ERROR, EOPNOTSUPP) && virDomainIsActive(domain) == 0
           && virDomainListAllCheckpoints(domain, NULL, 0) > 0;
}

gboolean be_change_redefine(Be *be, virDomainPtr domain, const char *xml, gboolean current,
                            GError **error)
{
    g_autoptr(GError) refused = NULL;
    g_autoptr(GError) end_error = NULL;
    BePaused *held;
    gboolean good;

    if (redefine(domain, xml, current, &refused)) {
        return TRUE;
    }
    if (!wants_qemu(domain, refused)) {
        g_propagate_error(error, g_steal_pointer(&refused));
        return FALSE;
    }
    held = be_paused_start(be, domain, "a change of its snapshots", error);
    if (!held) {
        return FALSE;
    }
    good = redefine(domain, xml, current, error);
    if (!be_paused_end(held, &end_error)) {
        g_warning("%s", end_error->message);
    }
    return good;
}

/* ---- Is an image anybody else's? --------------------------------------------------------- */

static gboolean chain_has(const BeXmlLevel *top, const BeTreeImage *image)
{
    g_autoptr(GPtrArray) chain = be_image_chain_inspect(top->path, top->format, NULL);
    struct stat st;

    for (guint i = 0; chain && i < chain->len; i++) {
        const BeImage *level = g_ptr_array_index(chain, i);

        if (level->dev == image->dev && level->ino == image->ino) {
            return TRUE;
        }
    }
    return !chain && stat(top->path, &st) == 0 && st.st_dev == image->dev
           && st.st_ino == image->ino;
}

static gboolean definition_uses(virDomainPtr domain, guint flags, const BeTreeImage *image)
{
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, flags, NULL);

    for (guint i = 0; xml && i < xml->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(xml->disks, i);

        if (disk->top.path && chain_has(&disk->top, image)) {
            return TRUE;
        }
    }
    return FALSE;
}

static gboolean domain_uses(virDomainPtr domain, const BeTreeImage *image)
{
    return definition_uses(domain, 0, image)
           || definition_uses(domain, VIR_DOMAIN_XML_INACTIVE, image);
}

char *be_change_used_elsewhere(virConnectPtr conn, const char *uuid, const BeTreeImage *image,
                               GError **error)
{
    virDomainPtr *domains = NULL;
    int count = virConnectListAllDomains(conn, &domains, 0);
    char *name = NULL;

    if (count < 0) {
        be_error_from_libvirt(error, "cannot list the domains");
    }
    for (int i = 0; i < count; i++) {
        char other[VIR_UUID_STRING_BUFLEN] = "";

        if (!name && virDomainGetUUIDString(domains[i], other) == 0 && strcmp(other, uuid) != 0
            && domain_uses(domains[i], image)) {
            name = g_strdup(virDomainGetName(domains[i]));
        }
        virDomainFree(domains[i]);
    }
    free(domains);
    return name;
}

/* ---- Images that nothing needs ----------------------------------------------------------- */

static gboolean is_named_overlay(const BeTree *tree, const BeTreeImage *image)
{
    for (guint i = 0; i < tree->snapshots->len; i++) {
        const BeTreeSnapshot *snapshot = g_ptr_array_index(tree->snapshots, i);

        for (guint j = 0; j < snapshot->disks->len; j++) {
            const BeTreeDisk *disk = g_ptr_array_index(snapshot->disks, j);

            if (disk->overlay && be_tree_image(tree, disk->overlay) == image) {
                return TRUE;
            }
        }
    }
    return FALSE;
}

/* An image that was there before any snapshot is its owner's, and never goes. */
static gboolean may_go(Be *be, const char *uuid, const BeTree *tree, const BeTreeImage *image)
{
    return !image->top && image->pins == 0 && image->inner == 0 && image->children->len == 0
           && image->parent && !image->block
           && (image->parent->pins > 0 || is_named_overlay(tree, image)
               || be_change_remembers(be, uuid, image->path));
}

static BeTreeImage *add_image(BeTree *tree, const BeImage *seen, BeTreeImage *parent)
{
    BeTreeImage *image = g_new0(BeTreeImage, 1);

    image->path = g_strdup(seen->path);
    image->format = "qcow2";
    image->dev = seen->dev;
    image->ino = seen->ino;
    image->size = seen->size;
    image->parent = parent;
    image->children = g_ptr_array_new();
    g_ptr_array_add(parent->children, image);
    g_ptr_array_add(tree->images, image);
    return image;
}

/*
 * An image that was dropped is still a file on the disk, but no part of the tree that
 * the XML shows; nor is what it stands on, where that was the base of nothing else.  So
 * the candidates are put into it, with all that is between them and the tree.
 */
static void add_candidate(BeTree *tree, const char *path)
{
    g_autoptr(GPtrArray) chain = be_image_chain_inspect(path, "qcow2", NULL);
    BeTreeImage *parent = NULL;
    guint level = 0;

    while (chain && level < chain->len && !parent) {
        const BeImage *seen = g_ptr_array_index(chain, level++);

        parent = be_tree_image(tree, seen->path);
    }
    for (level = parent ? level - 1 : 0; level > 0; level--) {
        parent = add_image(tree, g_ptr_array_index(chain, level - 1), parent);
    }
}

/* Returns: whether it is gone, or need not go. */
static gboolean drop_image(Be *be, virConnectPtr conn, const char *uuid, const BeTreeImage *image,
                           GError **error)
{
    g_autoptr(GError) list_error = NULL;
    g_autofree char *user = be_change_used_elsewhere(conn, uuid, image, &list_error);

    if (list_error) {
        g_propagate_error(error, g_steal_pointer(&list_error));
        return FALSE;
    }
    if (user) {
        g_set_error(error, BE_ERROR, EBUSY, "the image '%s' stays: the domain '%s' uses it",
                    image->path, user);
        return FALSE;
    }
    if (unlink(image->path) < 0 && errno != ENOENT) {
        be_error_set_errno(error, errno, "cannot remove the image '%s'", image->path);
        return FALSE;
    }
    g_info("%s: removed the image '%s', which nothing needs", be_uri(be), image->path);
    return TRUE;
}

static gboolean drop_upwards(Be *be, virConnectPtr conn, const char *uuid, const BeTree *tree,
                             BeTreeImage *image, GError **error)
{
    while (image && may_go(be, uuid, tree, image)) {
        BeTreeImage *parent = image->parent;

        if (!drop_image(be, conn, uuid, image, error)) {
            return FALSE;
        }
        g_ptr_array_remove(parent->children, image);
        image->parent = NULL;
        image = parent;
    }
    return TRUE;
}

/* ---- <disks> that say what stands on a snapshot --------------------------------------------- */

/*
 * libvirt 9.0 deletes an external snapshot by writing the overlay that <disks> names
 * into the image below it, and does not look whether that image has other overlays: so
 * where it has, <disks> names an image that there never is, and libvirt refuses.
 */
static char *overlay_now(const BeTreeSnapshot *snapshot, const BeTreeDisk *disk)
{
    g_autofree char *branches = NULL;

    if (disk->base->children->len == 1) {
        const BeTreeImage *only = g_ptr_array_index(disk->base->children, 0);

        return g_strdup(only->path);
    }
    if (disk->base->children->len == 0) {
        return g_strdup(disk->overlay);
    }
    branches = be_change_new_path(disk->base->path, snapshot->xml->name, "branches");
    return disk->overlay && strstr(disk->overlay, "-branches") ? g_strdup(disk->overlay)
                                                               : g_steal_pointer(&branches);
}

static gboolean rename_overlays(Be *be, virDomainPtr domain, const BeTreeSnapshot *snapshot,
                                GError **error)
{
    g_autoptr(GPtrArray) overlays = g_ptr_array_new_with_free_func(be_xml_image_free);
    g_autofree char *xml = NULL;

    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(snapshot->disks, i);
        g_autofree char *overlay = disk->base ? overlay_now(snapshot, disk) : NULL;

        if (overlay && g_strcmp0(overlay, disk->overlay) != 0) {
            g_ptr_array_add(overlays, be_xml_image_new(disk->target, overlay, "qcow2", FALSE));
        }
    }
    if (overlays->len == 0) {
        return TRUE;
    }
    xml = be_xml_edit_overlays(snapshot->text, overlays, error);
    return xml && be_change_redefine(be, domain, xml, snapshot->current, error);
}

gboolean be_change_prune(Be *be, virDomainPtr domain, const char *uuid, const GPtrArray *paths,
                         GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(be->action_conn, error);
    g_autoptr(BeTree) tree = conn ? be_tree_read(domain, error) : NULL;
    gboolean good = TRUE;

    if (!tree) {
        return FALSE;
    }
    if (tree->unreadable) {
        g_set_error(error, BE_ERROR, EIO, "images that may be needed are not removed: %s",
                    tree->unreadable);
        return FALSE;
    }
    /* All of them first: one may stand on another. */
    for (guint i = 0; i < paths->len; i++) {
        const char *path = g_ptr_array_index(paths, i);

        if (!be_tree_image(tree, path)) {
            add_candidate(tree, path);
        }
    }
    for (guint i = 0; good && i < paths->len; i++) {
        BeTreeImage *image = be_tree_image(tree, g_ptr_array_index(paths, i));

        good = drop_upwards(be, conn, uuid, tree, image, error);
    }
    for (guint i = 0; good && i < tree->snapshots->len; i++) {
        good = rename_overlays(be, domain, g_ptr_array_index(tree->snapshots, i), error);
    }
    be_change_tidy(be, uuid);
    return good;
}
