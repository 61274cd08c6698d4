/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-read.c - the disks of a snapshot as they were, and its memory.
 *
 * An external snapshot is the image below its overlay, the one that the <domain> in
 * its XML names; an internal one is inside of it.  libvirt believes whoever merges
 * images behind its back, so it is looked whether the image still can be what it was:
 * when the stream is made, and before each start of a server.  A server ends some
 * seconds after the last reader.
 *
 * Query workers prepare; a stream's workers check; the timer thread watches.  A slot's
 * lock guards its disk.
 */
#include "backend/snapshot-read.h"

#include <errno.h>
#include <fcntl.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/change.h"
#include "backend/disk.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/file-stream.h"
#include "backend/image-stream.h"
#include "backend/job.h"
#include "backend/readings.h"

#define WATCH_MS 1000
#define REST_US (5 * G_USEC_PER_SEC)

/* libvirt's time is that of the request, in whole seconds; images are flushed later. */
#define SLACK_S 15

/* What was made for a file; shared with the watch over its server. */
typedef struct {
    gatomicrefcount refs;
    Be *be;
    GMutex lock;
    BeDisk *disk;              /* guarded by lock until it is set, then constant */
    BeImageServer *server;     /* as disk; NULL: a plain file */
    gboolean closed;           /* guarded by lock; nobody has the snapshot any more */
    gint64 idle_us;            /* the timer thread's: since when nobody reads; 0: somebody does */
    guint64 fetched;           /* the timer thread's: bytes up to then */
    gboolean was_used;         /* the timer thread's: since it was let go of */
} Slot;

/* What BeSnapshotFile is to us. */
typedef struct {
    BeSnapshotFile pub;        /* first */
    BeXmlLevel base;           /* the image, without its index */
    char *overlay;             /* of an external disk */
    char *memory;              /* the path of the memory file; NULL: this is a disk */
    char *beside;              /* the memory file of the snapshot, or NULL */
    Slot *slot;
} ReadFile;

/* ---- Slots ------------------------------------------------------------------------- */

static Slot *slot_ref(Slot *slot)
{
    g_atomic_ref_count_inc(&slot->refs);
    return slot;
}

static void slot_unref(gpointer data)
{
    Slot *slot = data;

    if (g_atomic_ref_count_dec(&slot->refs)) {
        be_disk_free(slot->disk);
        be_image_server_unref(slot->server);
        g_mutex_clear(&slot->lock);
        g_free(slot);
    }
}

static BeDisk *slot_disk(Slot *slot)
{
    BeDisk *disk;

    g_mutex_lock(&slot->lock);
    disk = slot->disk;
    g_mutex_unlock(&slot->lock);
    return disk;
}

static void rest(Be *be G_GNUC_UNUSED, gpointer data)
{
    const Slot *slot = data;

    be_image_server_rest(slot->server);
}

/* An appliance has the disk open as long as it runs, and that keeps no server. */
static gboolean is_in_use(Slot *slot)
{
    guint64 fetched = be_stream_bytes_fetched(slot->disk->stream);
    gboolean moved = fetched != slot->fetched;

    slot->fetched = fetched;
    return moved || be_disk_takers(slot->disk) > 0;
}

/* Of a machine whose images are about to be changed. */
static void give_way(gpointer data)
{
    Slot *slot = data;

    if (be_disk_takers(slot->disk) == 0) {
        be_stream_rest(slot->disk->stream);
        be_image_server_rest(slot->server);
    }
}

/* What an appliance that sleeps has open: the images themselves, or a server of them. */
static void let_go(Slot *slot)
{
    if (slot->was_used) {
        slot->was_used = FALSE;
        be_stream_rest(slot->disk->stream);
    }
    if (be_image_server_is_up(slot->server)) {
        be_query(slot->be, rest, slot_ref(slot), slot_unref);
    }
}

/* Walkers make slots whose server never starts: watching one costs nothing. */
static gboolean watch(gpointer data)
{
    Slot *slot = data;
    gint64 now_us = g_get_monotonic_time();
    gboolean closed;

    g_mutex_lock(&slot->lock);
    closed = slot->closed;
    g_mutex_unlock(&slot->lock);
    if (closed || g_atomic_int_get(&slot->be->stopping)) {
        be_readings_remove(slot->be, slot);
        return G_SOURCE_REMOVE;
    }
    if (is_in_use(slot)) {
        slot->idle_us = 0;
        slot->was_used = TRUE;
    } else if (slot->idle_us == 0) {
        slot->idle_us = now_us;
    } else if (now_us - slot->idle_us > REST_US) {
        slot->idle_us = now_us;
        let_go(slot);
    }
    return G_SOURCE_CONTINUE;
}

/* ---- Which images ---------------------------------------------------------------------- */

/* What is to be held true as long as a stream is there. */
typedef struct {
    Be *be;
    char *uuid;
    char *snapshot;
    char *target;
    BePart part;
    char *path;
    char *format;
    char *overlay;
    gint64 until_s;            /* real time: an image that nobody writes to is older */
    GPtrArray *chain;          /* as it was when the stream was made */
} Images;

static void images_free(gpointer data)
{
    Images *images = data;

    g_clear_pointer(&images->chain, g_ptr_array_unref);
    g_free(images->uuid);
    g_free(images->snapshot);
    g_free(images->target);
    g_free(images->path);
    g_free(images->format);
    g_free(images->overlay);
    g_free(images);
}

static gboolean is_image(const char *path, const BeImage *image)
{
    struct stat attr;

    return path && stat(path, &attr) == 0 && attr.st_dev == image->dev
           && attr.st_ino == image->ino;
}

static gboolean unclean(const Images *images, const char *why, GError **error)
{
    g_set_error(error, BE_ERROR, EUCLEAN,
                "disk '%s' of snapshot '%s' is not what it was any more: %s", images->target,
                images->snapshot, why);
    return FALSE;
}

/* Whether the machine still goes on above the image by way of the snapshot's overlay. */
static gboolean overlay_is_above(const Images *images, const BeXmlDisk *disk)
{
    g_autoptr(GPtrArray) chain =
        disk && disk->top.path && disk->top.format
            ? be_image_chain_inspect(disk->top.path, disk->top.format, NULL)
            : NULL;

    for (guint i = 0; chain && i + 1 < chain->len; i++) {
        if (is_image(images->overlay, g_ptr_array_index(chain, i))) {
            return is_image(images->path, g_ptr_array_index(chain, i + 1));
        }
    }
    return FALSE;
}

static BeXmlDomain *read_domain(const Images *images, GError **error)
{
    g_autoptr(BeVirDomain) domain = be_conn_domain(images->be->query_conn, images->uuid, error);

    return domain ? be_domain_read(domain, 0, error) : NULL;
}

/* Whoever commits an overlay by himself leaves a snapshot that points to what is written. */
static gboolean is_untouched(const Images *images, const BeImage *base, GError **error)
{
    g_autoptr(BeXmlDomain) domain = read_domain(images, error);
    struct stat attr;

    if (!domain) {
        return FALSE;
    }
    for (guint i = 0; i < domain->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(domain->disks, i);

        if (is_image(disk->top.path, base)) {
            return unclean(images, "the machine writes to its image", error);
        }
    }
    if (overlay_is_above(images, be_xml_domain_disk(domain, images->target))) {
        return TRUE;
    }
    if (stat(images->path, &attr) < 0) {
        be_error_set_errno(error, errno, "cannot look at '%s'", images->path);
        return FALSE;
    }
    return attr.st_mtime <= images->until_s
           || unclean(images, "its image was written to after the snapshot was made", error);
}

static gboolean find_images(Images *images, GPtrArray **ret_chain, GError **error)
{
    g_autoptr(GPtrArray) chain =
        be_change_is_whole(images->be, images->uuid, images->snapshot, error)
            ? be_image_chain_inspect(images->path, images->format, error)
            : NULL;

    if (!chain) {
        return FALSE;
    }
    if (images->part == BE_PART_EXTERNAL
        && !is_untouched(images, g_ptr_array_index(chain, 0), error)) {
        return FALSE;
    }
    *ret_chain = g_steal_pointer(&chain);
    return TRUE;
}

static gboolean check_images(gpointer user, GError **error)
{
    Images *images = user;
    g_autoptr(GPtrArray) chain = NULL;

    if (!be_readings_are_allowed(images->be, images->uuid, error)) {
        return FALSE;
    }
    if (!find_images(images, &chain, error)) {
        return FALSE;
    }
    return be_image_chain_equal(chain, images->chain)
           || unclean(images, "its images were changed", error);
}

/* ---- Making a stream ---------------------------------------------------------------------- */

static gboolean base_is_readable(Be *be, const ReadFile *file, GError **error)
{
    const BeXmlLevel *base = &file->base;

    if ((base->source != BE_XML_SOURCE_FILE && base->source != BE_XML_SOURCE_BLOCK) || !base->path
        || base->sliced || base->encrypted || !base->format) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "disk '%s' is no plain local image of a known format (%s)", file->pub.target,
                    be_xml_source_name(base->source));
        return FALSE;
    }
    if (!be_host_is_local(be)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "images of a remote host cannot be read");
        return FALSE;
    }
    return TRUE;
}

static gint64 written_until(const ReadFile *file, const BeSnapshot *snapshot)
{
    gint64 until_s = snapshot->object.created_us / G_USEC_PER_SEC;
    struct stat attr;

    if (file->beside && stat(file->beside, &attr) == 0) {
        until_s = MAX(until_s, attr.st_mtime);
    }
    return until_s + SLACK_S;
}

static BeDisk *open_disk(const ReadFile *file, const BeSnapshot *snapshot,
                         BeImageServer **ret_server, GError **error)
{
    Be *be = snapshot->object.be;
    Images *images;
    BeImageSource source = {.check = check_images, .check_destroy = images_free};
    BeStream *stream;

    if (!base_is_readable(be, file, error)
        || !(source.directory = be_readings_directory(be, error))) {
        return NULL;
    }
    images = g_new0(Images, 1);
    images->be = be;
    images->uuid = g_strdup(snapshot->object.domain_uuid);
    images->snapshot = g_strdup(snapshot->object.name);
    images->target = g_strdup(file->pub.target);
    images->part = file->pub.part;
    images->path = g_strdup(file->base.path);
    images->format = g_strdup(file->base.format);
    images->overlay = g_strdup(file->overlay);
    images->until_s = written_until(file, snapshot);
    if (!find_images(images, &images->chain, error)) {
        images_free(images);
        return NULL;
    }
    source.chain = g_ptr_array_ref(images->chain);
    source.check_user = images;
    if (file->pub.part == BE_PART_INTERNAL) {
        source.snapshot = snapshot->object.name;
        source.in_use = TRUE;
    }
    stream = be_stream_new_image_served(&source, ret_server, error);
    g_ptr_array_unref(source.chain);
    return stream ? be_disk_new(file->pub.target, be_stream_size(stream),
                                be_stream_allocated(stream), stream)
                  : NULL;
}

static BeDisk *open_memory(const ReadFile *file, GError **error)
{
    struct stat attr;

    if (stat(file->memory, &attr) < 0) {
        be_error_set_errno(error, errno, "cannot look at '%s'", file->memory);
        return NULL;
    }
    if (!S_ISREG(attr.st_mode)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "'%s' is no plain file", file->memory);
        return NULL;
    }
    return be_disk_new("memory", (guint64)attr.st_size, (guint64)attr.st_blocks * 512,
                       be_stream_new_file(file->memory, (guint64)attr.st_size));
}

/* ---- Preparing ------------------------------------------------------------------------------ */

typedef struct {
    ReadFile *file;            /* the snapshot's */
    BeSnapshot *snapshot;      /* a reference */
    BeDone done;
    gpointer user;
} Preparation;

static void preparation_free(gpointer data)
{
    Preparation *preparation = data;

    be_object_unref(&preparation->snapshot->object);
    g_free(preparation);
}

/* Two may have prepared at once: the first one's is taken. */
static void fill_slot(Slot *slot, const char *uuid, BeDisk *disk, BeImageServer *server)
{
    gboolean first;

    g_mutex_lock(&slot->lock);
    first = slot->disk == NULL;
    if (first) {
        slot->disk = disk;
        slot->server = server;
    }
    g_mutex_unlock(&slot->lock);
    if (!first) {
        be_disk_free(disk);
        be_image_server_unref(server);
    } else if (server) {
        be_readings_add(slot->be, uuid, slot_ref(slot), give_way, slot_unref);
        g_source_unref(be_timer_add(slot->be, WATCH_MS, watch, slot_ref(slot), slot_unref));
    }
}

static void prepare(Be *be, gpointer data)
{
    const Preparation *preparation = data;
    ReadFile *file = preparation->file;
    g_autoptr(GError) error = NULL;
    BeImageServer *server = NULL;
    BeDisk *disk = NULL;

    if (slot_disk(file->slot)) {
        preparation->done(NULL, preparation->user);
        return;
    }
    disk = file->memory ? open_memory(file, &error)
                        : open_disk(file, preparation->snapshot, &server, &error);
    if (disk) {
        file->slot->be = be;
        fill_slot(file->slot, preparation->snapshot->object.domain_uuid, disk, server);
    }
    preparation->done(error, preparation->user);
}

void be_snapshot_file_prepare(BeSnapshot *snapshot, BeSnapshotFile *file, BeDone done,
                              gpointer user)
{
    Preparation *preparation = g_new0(Preparation, 1);

    be_object_ref(&snapshot->object);
    preparation->snapshot = snapshot;
    preparation->file = (ReadFile *)file;
    preparation->done = done;
    preparation->user = user;
    be_query(snapshot->object.be, prepare, preparation, preparation_free);
}

const BeDisk *be_snapshot_file_disk(BeSnapshotFile *file)
{
    const ReadFile *read_file = (const ReadFile *)file;

    return slot_disk(read_file->slot);
}

/* ---- The files of a snapshot ------------------------------------------------------- */

static void read_file_free(gpointer data)
{
    ReadFile *file = data;

    g_mutex_lock(&file->slot->lock);
    file->slot->closed = TRUE;
    g_mutex_unlock(&file->slot->lock);
    slot_unref(file->slot);
    g_free(file->pub.target);
    g_free(file->base.path);
    g_free(file->base.format);
    g_free(file->overlay);
    g_free(file->memory);
    g_free(file->beside);
    g_free(file);
}

static ReadFile *read_file_new(const char *target, BePart part)
{
    ReadFile *file = g_new0(ReadFile, 1);

    file->pub.target = g_strdup(target);
    file->pub.part = part;
    file->slot = g_new0(Slot, 1);
    g_atomic_ref_count_init(&file->slot->refs);
    g_mutex_init(&file->slot->lock);
    return file;
}

static ReadFile *disk_file(const BeXmlSnapshot *snapshot, const BeXmlSnapshotDisk *disk)
{
    const BeXmlDisk *then =
        snapshot->domain ? be_xml_domain_disk(snapshot->domain, disk->target) : NULL;
    ReadFile *file = read_file_new(disk->target, disk->part);

    if (then) {
        file->base = then->top;
        file->base.path = g_strdup(then->top.path);
        file->base.format = g_strdup(then->top.format);
    }
    file->overlay = g_strdup(disk->overlay.path);
    file->beside = g_strdup(snapshot->memory_file);
    return file;
}

GPtrArray *be_snapshot_files_new(const BeXmlSnapshot *snapshot)
{
    GPtrArray *files = g_ptr_array_new_with_free_func(read_file_free);

    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeXmlSnapshotDisk *disk = g_ptr_array_index(snapshot->disks, i);

        if (disk->part == BE_PART_INTERNAL || disk->part == BE_PART_EXTERNAL) {
            g_ptr_array_add(files, disk_file(snapshot, disk));
        }
    }
    if (snapshot->memory_file) {
        ReadFile *memory = read_file_new("memory", BE_PART_NONE);

        memory->memory = g_strdup(snapshot->memory_file);
        g_ptr_array_add(files, memory);
    }
    return files;
}
