/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-map.c - where the bytes of a disk are; see image-map.h.
 *
 * Entered by workers of streams and by FUSE threads.  The lock guards the slices of
 * L2 tables that are kept, and is held while one is read from the local file.
 *
 * The source of every number is QEMU docs/interop/qcow2.txt.  An entry that breaks a
 * rule there, or leads out of the file, is OTHER: QEMU then says what it thinks of it.
 */
#include "backend/image-map.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/imagelock.h"
#include "backend/lease.h"
#include "backend/wait.h"

#define OFFSET_MASK G_GUINT64_CONSTANT(0x00fffffffffffe00)
#define COMPRESSED (G_GUINT64_CONSTANT(1) << 62)
#define READS_AS_ZERO G_GUINT64_CONSTANT(1)
#define INCOMPATIBLE_EXTENDED_L2 (1u << 4)

/* Of all chains together that are looked up: bytes of L1 tables. */
#define L1_BYTES_MAX (64u * 1024 * 1024)

/* QEMU opens no larger one (QCOW_MAX_L1_SIZE). */
#define L1_ENTRIES_MAX (32u * 1024 * 1024 / 8)

#define HEADER_BYTES 104
#define SUBCLUSTERS 32

/* L2 tables are read and kept in parts of this, or whole when they are smaller. */
#define SLICE_BYTES 4096u
#define SLICES_OF_ALL 1024u
#define SLICES_MIN 8u

typedef struct {
    guint64 offset;            /* in the file; 0: none */
    guint8 *bytes;
} Slice;

typedef struct {
    int fd;
    gboolean raw;
    gboolean sparse;           /* holes are in the file where its tables have data */
    guint64 size;              /* of the disk */
    guint64 file_size;
    guint32 version;
    guint32 cluster_bits;
    guint32 entry_bits;        /* of an L2 entry: 3, or 4 with subclusters */
    guint32 l1_size;
    guint64 *l1;
    Slice *slices;             /* guarded by the map's lock */
} Level;

struct BeImageMap {
    GPtrArray *chain;          /* of BeImage */
    BeImageLock *lock_of_images;
    Level *levels;             /* the top first */
    guint count;
    guint slices;              /* of each level */
    GMutex lock;
};

static guint64 get_be(const guint8 *data, gsize at, gsize bytes)
{
    guint64 value = 0;

    for (gsize i = 0; i < bytes; i++) {
        value = value << 8 | data[at + i];
    }
    return value;
}

/* ---- Opening ---- */

static gboolean changed(const BeImage *image, GError **error)
{
    g_set_error(error, BE_ERROR, EIO, "the image '%s' is not the one that it was", image->path);
    return FALSE;
}

static gboolean not_for_us(const BeImage *image, GError **error)
{
    g_set_error(error, BE_ERROR, EOPNOTSUPP, "the tables of the image '%s' are not read here",
                image->path);
    return FALSE;
}

/*
 * Holes where the tables have data are those of an image with preallocated metadata;
 * QEMU looks for them by the same rule (qcow2_detect_metadata_preallocation).
 */
static gboolean has_holes(const Level *level, const struct stat *st)
{
    guint64 unit = level->raw ? 4096 : G_GUINT64_CONSTANT(1) << level->cluster_bits;
    guint64 real = (guint64)st->st_blocks * 512 / unit;

    if (!S_ISREG(st->st_mode)) {
        return FALSE;
    }
    return level->raw || level->file_size / unit >= MAX(real * 10 / 9, real + 2);
}

static gboolean read_l1(Level *level, const BeImage *image, guint64 offset, guint64 *budget,
                        GError **error)
{
    gsize bytes = (gsize)level->l1_size * 8;

    if (level->l1_size > L1_ENTRIES_MAX || bytes > *budget || offset > level->file_size
        || bytes > level->file_size - offset) {
        return not_for_us(image, error);
    }
    *budget -= bytes;
    level->l1 = g_try_malloc(MAX(bytes, 1));
    if (!level->l1 || be_pread_whole(level->fd, level->l1, bytes, offset)) {
        return not_for_us(image, error);
    }
    for (guint32 i = 0; i < level->l1_size; i++) {
        level->l1[i] = GUINT64_FROM_BE(level->l1[i]) & OFFSET_MASK;
    }
    return TRUE;
}

/* All that be_image_chain_inspect() accepted is accepted; it is only looked up again. */
static gboolean read_tables(Level *level, const BeImage *image, guint64 *budget, GError **error)
{
    guint8 header[HEADER_BYTES] = {0};
    guint64 incompatible = 0;
    guint64 size;

    if (be_pread_whole(level->fd, header, MIN(sizeof(header), level->file_size), 0)
        || memcmp(header, "QFI\xfb", 4) != 0) {
        return changed(image, error);
    }
    level->version = (guint32)get_be(header, 4, 4);
    level->cluster_bits = (guint32)get_be(header, 20, 4);
    size = get_be(header, 24, 8);
    if (level->version >= 3) {
        incompatible = get_be(header, 72, 8);
    }
    if (size - size % 512 != image->size || get_be(header, 32, 4) != 0
        || level->cluster_bits < 9 || level->cluster_bits > 21) {
        return changed(image, error);
    }
    level->entry_bits = incompatible & INCOMPATIBLE_EXTENDED_L2 ? 4 : 3;
    level->l1_size = (guint32)get_be(header, 36, 4);
    return read_l1(level, image, get_be(header, 40, 8), budget, error);
}

static gboolean open_level(Level *level, const BeImage *image, guint64 *budget, GError **error)
{
    struct stat st;
    off_t end;

    level->fd = be_image_open(image->path, error);
    if (level->fd < 0) {
        return FALSE;
    }
    end = fstat(level->fd, &st) == 0 ? lseek(level->fd, 0, SEEK_END) : -1;
    if (end < 0
        || (image->block_device ? !S_ISBLK(st.st_mode) || st.st_rdev != image->dev
                                : st.st_dev != image->dev || st.st_ino != image->ino)) {
        return changed(image, error);
    }
    level->file_size = (guint64)end;
    level->size = image->size;
    level->raw = strcmp(image->format, "raw") == 0;
    if (!level->raw && !read_tables(level, image, budget, error)) {
        return FALSE;
    }
    level->sparse = has_holes(level, &st);
    return TRUE;
}

BeImageMap *be_image_map_open(GPtrArray *chain, GError **error)
{
    BeImageMap *map = g_new0(BeImageMap, 1);
    guint64 budget = L1_BYTES_MAX;
    gboolean good;

    g_mutex_init(&map->lock);
    map->chain = g_ptr_array_ref(chain);
    map->levels = g_new0(Level, chain->len);
    map->slices = MAX(SLICES_OF_ALL / chain->len, SLICES_MIN);
    for (guint i = 0; i < chain->len; i++) {
        be_lease_take(g_ptr_array_index(chain, i));
        map->levels[i].fd = -1;
    }
    map->count = chain->len;
    map->lock_of_images = be_image_lock_take(chain, error);
    good = map->lock_of_images != NULL;
    for (guint i = 0; good && i < chain->len; i++) {
        good = open_level(&map->levels[i], g_ptr_array_index(chain, i), &budget, error);
        map->levels[i].slices = g_new0(Slice, map->slices);
    }
    if (!good) {
        be_image_map_free(map);
        return NULL;
    }
    return map;
}

static void close_level(Level *level, guint slices)
{
    for (guint i = 0; level->slices && i < slices; i++) {
        g_free(level->slices[i].bytes);
    }
    g_free(level->slices);
    g_free(level->l1);
    if (level->fd >= 0) {
        close(level->fd);
    }
}

void be_image_map_free(BeImageMap *map)
{
    if (!map) {
        return;
    }
    for (guint i = 0; i < map->count; i++) {
        close_level(&map->levels[i], map->slices);
        be_lease_drop(g_ptr_array_index(map->chain, i));
    }
    be_image_lock_free(map->lock_of_images);
    g_ptr_array_unref(map->chain);
    g_mutex_clear(&map->lock);
    g_free(map->levels);
    g_free(map);
}

/* ---- Tables ---- */

/* The part of an L2 table at @offset of the file; NULL: it cannot be read. */
static const guint8 *slice_locked(const BeImageMap *map, Level *level, guint64 offset, gsize bytes)
{
    Slice *slice = &level->slices[offset / bytes % map->slices];

    if (slice->offset == offset) {
        return slice->bytes;
    }
    if (offset > level->file_size || bytes > level->file_size - offset) {
        return NULL;
    }
    if (!slice->bytes) {
        slice->bytes = g_malloc(SLICE_BYTES);
    }
    slice->offset = 0;
    if (be_pread_whole(level->fd, slice->bytes, bytes, offset)) {
        return NULL;
    }
    slice->offset = offset;
    return slice->bytes;
}

typedef enum {
    ENTRY_ABSENT,              /* the level below has it */
    ENTRY_ZERO,
    ENTRY_PLAIN,
    ENTRY_OTHER,
} EntryKind;

/* The parts of a cluster that are alike; without subclusters there is one part. */
typedef struct {
    EntryKind kind;
    guint64 start;             /* of the disk */
    guint64 end;
    guint64 host;              /* of PLAIN: where @start is in the file */
} Entry;

static EntryKind kind_of_subcluster(guint64 bitmap, guint index, gboolean has_host)
{
    gboolean allocated = bitmap >> index & 1;
    gboolean zero = bitmap >> (index + SUBCLUSTERS) & 1;

    if (allocated && (zero || !has_host)) {
        return ENTRY_OTHER;
    }
    return allocated ? ENTRY_PLAIN : zero ? ENTRY_ZERO : ENTRY_ABSENT;
}

static EntryKind kind_of_cluster(const Level *level, guint64 entry)
{
    if (entry & READS_AS_ZERO) {
        return level->version >= 3 ? ENTRY_ZERO : ENTRY_OTHER;
    }
    return entry & OFFSET_MASK ? ENTRY_PLAIN : ENTRY_ABSENT;
}

/* What an L2 entry says of @offset. */
static void judge(const Level *level, const guint8 *bytes, guint64 offset, Entry *ret)
{
    guint64 cluster = G_GUINT64_CONSTANT(1) << level->cluster_bits;
    guint64 start = offset & ~(cluster - 1);
    guint64 entry = get_be(bytes, 0, 8);
    guint64 host = entry & OFFSET_MASK;

    *ret = (Entry){.kind = ENTRY_OTHER, .start = start, .end = start + cluster};
    if (entry & COMPRESSED || host % cluster != 0) {
        return;
    }
    if (level->entry_bits == 4) {
        guint64 part = cluster / SUBCLUSTERS;
        guint index = (guint)((offset - start) / part);

        ret->kind = entry & READS_AS_ZERO
                        ? ENTRY_OTHER
                        : kind_of_subcluster(get_be(bytes, 8, 8), index, host != 0);
        ret->start = start + index * part;
        ret->end = ret->start + part;
    } else {
        ret->kind = kind_of_cluster(level, entry);
    }
    ret->host = host + (ret->start - start);
    if (ret->kind == ENTRY_PLAIN
        && (ret->host > level->file_size
            || ret->end - ret->start > level->file_size - ret->host)) {
        ret->kind = ENTRY_OTHER;
    }
}

/* Cannot be wrong about the length: of what is not known the smallest part. */
static void look_up_locked(const BeImageMap *map, Level *level, guint64 offset, Entry *ret)
{
    guint32 table_bits = level->cluster_bits - level->entry_bits;
    guint64 per_table = G_GUINT64_CONSTANT(1) << (level->cluster_bits + table_bits);
    guint64 l1_index = offset / per_table;
    guint64 table = l1_index < level->l1_size ? level->l1[l1_index] : 0;
    gsize slice_bytes = MIN(SLICE_BYTES, 1u << level->cluster_bits);
    guint64 at = (offset % per_table >> level->cluster_bits) << level->entry_bits;
    const guint8 *slice;

    if (table == 0) {
        *ret = (Entry){.kind = ENTRY_ABSENT, .start = l1_index * per_table,
                       .end = (l1_index + 1) * per_table};
        return;
    }
    slice = table % (1u << level->cluster_bits)
                ? NULL
                : slice_locked(map, level, table + at / slice_bytes * slice_bytes, slice_bytes);
    if (slice) {
        judge(level, slice + at % slice_bytes, offset, ret);
    } else {
        *ret = (Entry){.kind = ENTRY_OTHER, .start = offset & ~G_GUINT64_CONSTANT(511),
                       .end = (offset | 511) + 1};
    }
}

/* ---- Finding ---- */

/* In one qcow2 image: as far as it is the same, up to @end. */
static EntryKind find_in_level_locked(const BeImageMap *map, Level *level, guint64 offset,
                                      guint64 *end, guint64 *ret_host)
{
    Entry first, next;

    look_up_locked(map, level, offset, &first);
    *ret_host = first.host + (offset - first.start);
    while (first.end < *end) {
        look_up_locked(map, level, first.end, &next);
        if (next.kind != first.kind
            || (first.kind == ENTRY_PLAIN
                && next.host != first.host + (first.end - first.start))) {
            break;
        }
        first.end = next.end;
    }
    *end = MIN(*end, first.end);
    return first.kind;
}

static void set_plain(const Level *level, guint64 host, guint64 length, BeImagePiece *ret)
{
    *ret = (BeImagePiece){.kind = BE_IMAGE_PLAIN, .length = length, .fd = level->fd,
                          .offset = host, .sparse = level->sparse, .raw = level->raw};
}

void be_image_map_find(BeImageMap *map, guint64 offset, guint64 length, BeImagePiece *ret)
{
    guint64 end = offset + length;
    EntryKind kind = ENTRY_ABSENT;

    g_mutex_lock(&map->lock);
    for (guint i = 0; i < map->count && kind == ENTRY_ABSENT; i++) {
        Level *level = &map->levels[i];
        guint64 level_end = level->raw ? level->file_size : level->size;
        guint64 host = offset;

        /* Behind the end of a backing file are zeroes. */
        if (offset >= level_end) {
            break;
        }
        end = MIN(end, level_end);
        kind = level->raw ? ENTRY_PLAIN : find_in_level_locked(map, level, offset, &end, &host);
        if (kind == ENTRY_PLAIN) {
            set_plain(level, host, end - offset, ret);
        }
    }
    g_mutex_unlock(&map->lock);
    if (kind != ENTRY_PLAIN) {
        *ret = (BeImagePiece){.kind = kind == ENTRY_OTHER ? BE_IMAGE_OTHER : BE_IMAGE_ZERO,
                              .length = end - offset};
    }
}
