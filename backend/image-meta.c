/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-meta.c - see image-meta.h.  No state.
 */
#include "image-meta.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "image.h"

enum {
    MAGIC = 0x514649fb,
    HEADER_BYTES = 64 * 1024,
    MIN_CLUSTER_BITS = 9,
    MAX_CLUSTER_BITS = 21,
    V2_LENGTH = 72,
    V3_LENGTH = 104,
    /* QEMU's own limits (block/qcow2-bitmap.c). */
    MAX_BITMAPS = 65535,
    MAX_DIRECTORY = 64 * 1024 * 1024,
    DIRECTORY_ENTRY = 24,
    BITMAPS_EXTENSION = 24,
    /* Of the first table; 1 MiB of it is 64 TiB of disk in clusters of 64 KiB. */
    L1_BYTES = 1024 * 1024,
    L2_TABLES = 64,
};

/* Offsets of header fields. */
enum {
    AT_VERSION = 4,
    AT_CLUSTER_BITS = 20,
    AT_SIZE = 24,
    AT_L1_SIZE = 36,
    AT_L1_OFFSET = 40,
    AT_INCOMPATIBLE = 72,
    AT_AUTOCLEAR = 88,
    AT_HEADER_LENGTH = 100,
};

#define EXTENSION_BITMAPS 0x23852875U
#define AUTOCLEAR_BITMAPS 1U
#define INCOMPATIBLE_EXTENDED_L2 (1U << 4)
#define BITMAP_IN_USE 1U
#define BITMAP_AUTO 2U

#define OFFSET_MASK G_GUINT64_CONSTANT(0x00fffffffffffe00)
#define L2_COMPRESSED (G_GUINT64_CONSTANT(1) << 62)
#define L2_ZERO 1U

typedef struct {
    const char *path;
    int fd;
    guint8 *header;            /* HEADER_BYTES, zeroes behind the end of the file */
    guint32 version;
    guint32 cluster_bits;
    guint64 size;
} Image;

static guint32 get32(const guint8 *at)
{
    guint32 value;

    memcpy(&value, at, sizeof value);
    return GUINT32_FROM_BE(value);
}

static guint64 get64(const guint8 *at)
{
    guint64 value;

    memcpy(&value, at, sizeof value);
    return GUINT64_FROM_BE(value);
}

static gboolean damaged(const Image *image, const char *what, GError **error)
{
    g_set_error(error, BE_ERROR, EIO, "the image '%s' is damaged: %s", image->path, what);
    return FALSE;
}

/* Zeroes stand for what is behind the end of the file. */
static gboolean read_at(const Image *image, guint64 offset, void *buffer, gsize length,
                        GError **error)
{
    gsize done = 0;

    if (offset > G_MAXINT64 - length) {
        return damaged(image, "an offset is out of range", error);
    }
    memset(buffer, 0, length);
    while (done < length) {
        ssize_t got = pread(image->fd, (char *)buffer + done, length - done,
                            (off_t)(offset + done));

        if (got < 0 && errno != EINTR) {
            be_error_set_errno(error, errno, "cannot read the image '%s'", image->path);
            return FALSE;
        }
        if (got == 0) {
            break;
        }
        done += got > 0 ? (gsize)got : 0;
    }
    return TRUE;
}

static void image_close(Image *image)
{
    if (image->fd >= 0) {
        close(image->fd);
    }
    g_free(image->header);
}

static gboolean image_open(Image *image, const char *path, GError **error)
{
    *image = (Image){.path = path, .fd = be_image_open(path, error)};
    if (image->fd < 0) {
        return FALSE;
    }
    image->header = g_malloc(HEADER_BYTES);
    if (!read_at(image, 0, image->header, HEADER_BYTES, error)) {
        return FALSE;
    }
    image->version = get32(image->header + AT_VERSION);
    image->cluster_bits = get32(image->header + AT_CLUSTER_BITS);
    image->size = get64(image->header + AT_SIZE);
    if (get32(image->header) != MAGIC || image->version < 2 || image->version > 3
        || image->cluster_bits < MIN_CLUSTER_BITS || image->cluster_bits > MAX_CLUSTER_BITS) {
        return damaged(image, "it has no qcow2 header", error);
    }
    return TRUE;
}

/* ---- Bitmaps ----------------------------------------------------------------------- */

static void bitmap_free(gpointer data)
{
    BeImageBitmap *bitmap = data;

    g_free(bitmap->name);
    g_free(bitmap);
}

/* The extension of the bitmaps in the header, or NULL. */
static const guint8 *find_extension(const Image *image)
{
    guint64 end = MIN((guint64)1 << image->cluster_bits, HEADER_BYTES);
    guint64 at = image->version == 2 ? V2_LENGTH : get32(image->header + AT_HEADER_LENGTH);

    while (at >= V2_LENGTH && at + 8 <= end) {
        guint32 type = get32(image->header + at);
        guint64 length = get32(image->header + at + 4);

        if (type == 0 || length > end - at - 8) {
            return NULL;
        }
        if (type == EXTENSION_BITMAPS) {
            return length >= BITMAPS_EXTENSION ? image->header + at + 8 : NULL;
        }
        at += 8 + ((length + 7) & ~(guint64)7);
    }
    return NULL;
}

static gboolean parse_directory(const Image *image, const guint8 *bytes, guint64 length,
                                guint32 count, GPtrArray *bitmaps, GError **error)
{
    guint64 at = 0;

    for (guint32 i = 0; i < count; i++) {
        guint64 name_at, name_size, flags;
        BeImageBitmap *bitmap;

        if (length - at < DIRECTORY_ENTRY) {
            return damaged(image, "its list of bitmaps is too short", error);
        }
        flags = get32(bytes + at + 12);
        name_size = (guint64)bytes[at + 18] << 8 | bytes[at + 19];
        name_at = at + DIRECTORY_ENTRY + (guint64)get32(bytes + at + 20);
        if (name_at > length || name_size > length - name_at) {
            return damaged(image, "a bitmap has no name", error);
        }
        bitmap = g_new0(BeImageBitmap, 1);
        bitmap->name = g_strndup((const char *)bytes + name_at, name_size);
        bitmap->in_use = (flags & BITMAP_IN_USE) != 0;
        bitmap->enabled = (flags & BITMAP_AUTO) != 0;
        g_ptr_array_add(bitmaps, bitmap);
        at = MIN((name_at + name_size + 7) & ~(guint64)7, length);
    }
    return TRUE;
}

static gboolean read_bitmaps(const Image *image, GPtrArray *bitmaps, GError **error)
{
    const guint8 *extension = find_extension(image);
    g_autofree guint8 *directory = NULL;
    guint64 length, offset;
    guint32 count;

    /* A program that knows no bitmaps clears the bit: they say nothing any more. */
    if (image->version < 3 || !extension
        || !(get64(image->header + AT_AUTOCLEAR) & AUTOCLEAR_BITMAPS)) {
        return TRUE;
    }
    count = get32(extension);
    length = get64(extension + 8);
    offset = get64(extension + 16);
    if (count > MAX_BITMAPS || length > MAX_DIRECTORY) {
        return damaged(image, "its list of bitmaps is too long", error);
    }
    directory = g_malloc(length + 1);
    return read_at(image, offset, directory, length, error)
           && parse_directory(image, directory, length, count, bitmaps, error);
}

GPtrArray *be_image_bitmaps(const char *path, GError **error)
{
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new_with_free_func(bitmap_free);
    Image image;
    gboolean done = image_open(&image, path, error) && read_bitmaps(&image, bitmaps, error);

    image_close(&image);
    return done ? g_steal_pointer(&bitmaps) : NULL;
}

const BeImageBitmap *be_image_bitmap(const GPtrArray *bitmaps, const char *name)
{
    for (guint i = 0; i < bitmaps->len; i++) {
        const BeImageBitmap *bitmap = g_ptr_array_index(bitmaps, i);

        if (g_str_equal(bitmap->name, name)) {
            return bitmap;
        }
    }
    return NULL;
}

/* ---- Allocated clusters ---------------------------------------------------------------- */

/*
 * Keeps @most of all that come, each with the same chance; @seen counts them.
 */
static void keep_some(GArray *kept, guint most, guint64 *seen, guint64 value)
{
    guint64 place = (*seen)++;

    if (kept->len < most) {
        g_array_append_val(kept, value);
        return;
    }
    place = (guint64)(g_random_double() * (double)(place + 1));
    if (place < most) {
        g_array_index(kept, guint64, place) = value;
    }
}

static gboolean is_allocated(const guint8 *entry, gboolean extended)
{
    guint64 value = get64(entry);

    if (value & (L2_COMPRESSED | OFFSET_MASK)) {
        return TRUE;
    }
    return extended ? get64(entry + 8) != 0 : (value & L2_ZERO) != 0;
}

/* Indexes of the second tables that are there. */
static GArray *choose_tables(const Image *image, const guint8 *l1, guint64 entries)
{
    GArray *tables = g_array_new(FALSE, FALSE, sizeof(guint64));
    guint64 seen = 0;

    for (guint64 i = 0; i < entries; i++) {
        if (get64(l1 + i * 8) & OFFSET_MASK) {
            keep_some(tables, L2_TABLES, &seen, i);
        }
    }
    return tables;
}

static gboolean read_tables(const Image *image, guint most, GArray *clusters, GError **error)
{
    gsize cluster = (gsize)1 << image->cluster_bits;
    gboolean extended = image->version == 3
                        && (get64(image->header + AT_INCOMPATIBLE) & INCOMPATIBLE_EXTENDED_L2);
    gsize entry = extended ? 16 : 8;
    guint64 l1_entries = MIN(get32(image->header + AT_L1_SIZE), L1_BYTES / 8);
    g_autofree guint8 *l1 = g_malloc(l1_entries * 8 + 1);
    g_autofree guint8 *l2 = g_malloc(cluster);
    g_autoptr(GArray) tables = NULL;
    guint64 seen = 0;

    if (!read_at(image, get64(image->header + AT_L1_OFFSET), l1, l1_entries * 8, error)) {
        return FALSE;
    }
    tables = choose_tables(image, l1, l1_entries);
    for (guint i = 0; i < tables->len; i++) {
        guint64 table = g_array_index(tables, guint64, i);

        if (!read_at(image, get64(l1 + table * 8) & OFFSET_MASK, l2, cluster, error)) {
            return FALSE;
        }
        for (gsize j = 0; j < cluster / entry; j++) {
            if (is_allocated(l2 + j * entry, extended)) {
                keep_some(clusters, most, &seen, table * (cluster / entry) + j);
            }
        }
    }
    return TRUE;
}

GArray *be_image_allocated(const char *path, guint most, GError **error)
{
    g_autoptr(GArray) clusters = g_array_new(FALSE, FALSE, sizeof(guint64));
    GArray *ranges = NULL;
    Image image;
    gboolean done = image_open(&image, path, error) && read_tables(&image, most, clusters, error);

    if (done) {
        ranges = g_array_new(FALSE, FALSE, sizeof(BeImageRange));
        for (guint i = 0; i < clusters->len; i++) {
            guint64 length = (guint64)1 << image.cluster_bits;
            BeImageRange range = {g_array_index(clusters, guint64, i) * length, length};

            if (range.offset < image.size) {
                range.length = MIN(length, image.size - range.offset);
                g_array_append_val(ranges, range);
            }
        }
    }
    image_close(&image);
    return ranges;
}
