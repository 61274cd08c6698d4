/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-header.c - the qcow2 header by offsets; see image.h.
 *
 * Pure functions: any thread, no locks.  The source of every number is QEMU
 * docs/interop/qcow2.txt; where QEMU is stricter (block/qcow2.c: qcow2_do_open)
 * so are we, since what QEMU refuses nobody can read through it.
 */
#include <errno.h>
#include <string.h>

#include "image.h"

enum {
    MAGIC = 0x514649fb,        /* "QFI\xfb" */
    V2_LENGTH = 72,
    V3_LENGTH = 104,
    MIN_CLUSTER_BITS = 9,
    MAX_CLUSTER_BITS = 21,
    MAX_BACKING_NAME = 1023,
    SECTOR = 512,
};

/* Offsets of header fields. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_BACKING_OFFSET = 8,
    AT_BACKING_LENGTH = 16,
    AT_CLUSTER_BITS = 20,
    AT_SIZE = 24,
    AT_CRYPT_METHOD = 32,
    AT_INCOMPATIBLE = 72,
    AT_AUTOCLEAR = 88,
    AT_HEADER_LENGTH = 100,
};

#define EXTENSION_END 0U
#define EXTENSION_BACKING_FORMAT 0xe2792acaU
#define EXTENSION_DATA_FILE 0x44415441U

#define INCOMPATIBLE_DIRTY (1U << 0)
#define INCOMPATIBLE_CORRUPT (1U << 1)
#define INCOMPATIBLE_DATA_FILE (1U << 2)
#define AUTOCLEAR_DATA_FILE_RAW (1U << 1)

/* The bytes at hand, and how many of them the header may use. */
typedef struct {
    const guint8 *data;
    gsize length;
} Bytes;

static guint32 get32(const Bytes *bytes, gsize at)
{
    guint32 value = 0;

    memcpy(&value, bytes->data + at, sizeof value);
    return GUINT32_FROM_BE(value);
}

static guint64 get64(const Bytes *bytes, gsize at)
{
    guint64 value = 0;

    memcpy(&value, bytes->data + at, sizeof value);
    return GUINT64_FROM_BE(value);
}

static gboolean malformed(GError **error, const char *what)
{
    g_set_error(error, BE_ERROR, EIO, "not a valid qcow2 image: %s", what);
    return FALSE;
}

/* @length bytes at @at as a string; NULL when they are not there or hold a NUL. */
static char *get_string(const Bytes *bytes, guint64 at, guint64 length)
{
    if (at > bytes->length || length > bytes->length - at
        || memchr(bytes->data + at, 0, (size_t)length)) {
        return NULL;
    }
    return g_strndup((const char *)bytes->data + at, (gsize)length);
}

static gboolean parse_backing_name(const Bytes *bytes, BeImageHeader *header, GError **error)
{
    guint64 offset = get64(bytes, AT_BACKING_OFFSET);
    guint32 length = get32(bytes, AT_BACKING_LENGTH);

    if (offset == 0 || length == 0) {
        return TRUE;
    }
    if (length > MAX_BACKING_NAME) {
        return malformed(error, "the name of its backing file is too long");
    }
    header->backing_name = get_string(bytes, offset, length);
    if (!header->backing_name) {
        return malformed(error, "the name of its backing file is damaged");
    }
    return TRUE;
}

static gboolean take_extension(const Bytes *bytes, guint32 type, gsize at, guint32 length,
                               BeImageHeader *header, GError **error)
{
    char **field = NULL;

    if (type == EXTENSION_BACKING_FORMAT) {
        field = &header->backing_format;
    } else if (type == EXTENSION_DATA_FILE) {
        field = &header->data_file;
    } else {
        return TRUE;
    }
    if (*field) {
        return malformed(error, "a header extension is there twice");
    }
    *field = get_string(bytes, at, length);
    if (!*field) {
        return malformed(error, "a header extension is damaged");
    }
    return TRUE;
}

/*
 * Extensions follow the header up to an end mark, the backing file name or the
 * end of the first cluster.  Running into either of the last two without a mark
 * is allowed, as in QEMU.
 */
static gboolean parse_extensions(const Bytes *bytes, gsize at, BeImageHeader *header,
                                 GError **error)
{
    guint64 backing = header->backing_name ? get64(bytes, AT_BACKING_OFFSET) : bytes->length;
    gsize end = (gsize)MIN(backing, bytes->length);

    while (at < end && end - at >= 8) {
        guint32 type = get32(bytes, at);
        guint32 length = get32(bytes, at + 4);

        at += 8;
        if (type == EXTENSION_END) {
            return TRUE;
        }
        if (length > end - at) {
            return malformed(error, "a header extension is too long");
        }
        if (!take_extension(bytes, type, at, length, header, error)) {
            return FALSE;
        }
        /* Cannot overflow: the padded length exceeds the buffer by 7 at most. */
        at += ((gsize)length + 7) & ~(gsize)7;
    }
    return TRUE;
}

static gboolean parse_features(const Bytes *bytes, gsize *ret_length, BeImageHeader *header,
                               GError **error)
{
    guint32 length = V2_LENGTH;

    if (header->version >= 3) {
        if (bytes->length < V3_LENGTH) {
            return malformed(error, "the header is cut off");
        }
        length = get32(bytes, AT_HEADER_LENGTH);
        if (length < V3_LENGTH || length > bytes->length) {
            return malformed(error, "the length of the header is wrong");
        }
        header->incompatible = get64(bytes, AT_INCOMPATIBLE);
        header->dirty = (header->incompatible & INCOMPATIBLE_DIRTY) != 0;
        header->corrupt = (header->incompatible & INCOMPATIBLE_CORRUPT) != 0;
        header->external_data = (header->incompatible & INCOMPATIBLE_DATA_FILE) != 0;
        header->data_file_raw = (get64(bytes, AT_AUTOCLEAR) & AUTOCLEAR_DATA_FILE_RAW) != 0;
    }
    *ret_length = length;
    return TRUE;
}

/* The fields all versions have; cuts @bytes to the first cluster. */
static gboolean parse_base(Bytes *bytes, BeImageHeader *header, GError **error)
{
    if (bytes->length < V2_LENGTH || get32(bytes, AT_MAGIC) != MAGIC) {
        return malformed(error, "there is no qcow2 header");
    }
    header->version = get32(bytes, AT_VERSION);
    if (header->version != 2 && header->version != 3) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "qcow2 version %u is not known",
                    header->version);
        return FALSE;
    }
    header->cluster_bits = get32(bytes, AT_CLUSTER_BITS);
    if (header->cluster_bits < MIN_CLUSTER_BITS || header->cluster_bits > MAX_CLUSTER_BITS) {
        return malformed(error, "the cluster size is wrong");
    }
    bytes->length = MIN(bytes->length, (gsize)1 << header->cluster_bits);
    header->crypt_method = get32(bytes, AT_CRYPT_METHOD);
    header->size = get64(bytes, AT_SIZE);
    if (header->size > G_MAXINT64) {
        return malformed(error, "the size of the disk is wrong");
    }
    /* QEMU counts whole sectors. */
    header->size -= header->size % SECTOR;
    return TRUE;
}

gboolean be_image_header_parse(const guint8 *data, gsize length, BeImageHeader *ret,
                               GError **error)
{
    g_auto(BeImageHeader) header = {.version = 0};
    Bytes bytes = {data, length};
    gsize header_length = 0;

    if (!parse_base(&bytes, &header, error)
        || !parse_features(&bytes, &header_length, &header, error)
        || !parse_backing_name(&bytes, &header, error)
        || !parse_extensions(&bytes, header_length, &header, error)) {
        return FALSE;
    }
    *ret = header;
    header = (BeImageHeader){.version = 0};
    return TRUE;
}

void be_image_header_clear(BeImageHeader *header)
{
    g_clear_pointer(&header->data_file, g_free);
    g_clear_pointer(&header->backing_name, g_free);
    g_clear_pointer(&header->backing_format, g_free);
}
