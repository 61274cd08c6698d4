/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-snapshot.c - the internal snapshots of a qcow2 image; see image.h.
 *
 * Any thread, no locks; blocks on local files.  The image may be in use by a
 * running machine: QEMU writes a new table beside the old one and then points
 * the header to it (block/qcow2-snapshot.c: qcow2_write_snapshots), so a table is
 * believed only if the header still points to it after it was read.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "image.h"

enum {
    AT_SIZE = 24,
    AT_COUNT = 60,
    AT_TABLE = 64,
    HEADER_BYTES = 72,
    ENTRY_BYTES = 40,
    ENTRY_AT_ID_LENGTH = 12,
    ENTRY_AT_NAME_LENGTH = 14,
    ENTRY_AT_EXTRA_LENGTH = 36,
    EXTRA_AT_DISK_SIZE = 8,
    EXTRA_BYTES = 16,
    SECTOR = 512,
    /* Of QEMU: QCOW_MAX_SNAPSHOTS, QCOW_MAX_SNAPSHOT_EXTRA_DATA. */
    MAX_SNAPSHOTS = 65536,
    MAX_EXTRA = 1024,
    TRIES = 5,
};

static guint64 get_be(const guint8 *data, gsize at, gsize bytes)
{
    guint64 value = 0;

    for (gsize i = 0; i < bytes; i++) {
        value = value << 8 | data[at + i];
    }
    return value;
}

/* All of it, or FALSE with errno; EIO for what is not there. */
static gboolean read_exactly(int fd, void *buffer, gsize length, guint64 offset)
{
    guint8 *to = buffer;

    if (offset > G_MAXINT64 - length) {
        errno = EIO;
        return FALSE;
    }
    while (length > 0) {
        ssize_t got = pread(fd, to, length, (off_t)offset);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            errno = got == 0 ? EIO : errno;
            return FALSE;
        }
        to += got;
        offset += (guint64)got;
        length -= (gsize)got;
    }
    return TRUE;
}

/* One entry of the table, whole; moves @at behind it. */
static gboolean read_entry(int fd, guint64 *at, guint64 current_size, BeImageSnapshot *ret)
{
    guint8 fixed[ENTRY_BYTES];
    guint8 extra[EXTRA_BYTES] = {0};
    gsize id_length, name_length, extra_length;

    if (!read_exactly(fd, fixed, sizeof(fixed), *at)) {
        return FALSE;
    }
    id_length = get_be(fixed, ENTRY_AT_ID_LENGTH, 2);
    name_length = get_be(fixed, ENTRY_AT_NAME_LENGTH, 2);
    extra_length = get_be(fixed, ENTRY_AT_EXTRA_LENGTH, 4);
    if (extra_length > MAX_EXTRA) {
        errno = EIO;
        return FALSE;
    }
    ret->id = g_malloc0(id_length + 1);
    ret->name = g_malloc0(name_length + 1);
    if (!read_exactly(fd, extra, MIN(extra_length, EXTRA_BYTES), *at + ENTRY_BYTES)
        || !read_exactly(fd, ret->id, id_length, *at + ENTRY_BYTES + extra_length)
        || !read_exactly(fd, ret->name, name_length,
                         *at + ENTRY_BYTES + extra_length + id_length)) {
        return FALSE;
    }
    ret->size = extra_length >= EXTRA_BYTES ? get_be(extra, EXTRA_AT_DISK_SIZE, 8) : current_size;
    ret->size -= ret->size % SECTOR;
    *at += (ENTRY_BYTES + extra_length + id_length + name_length + 7) & ~(guint64)7;
    return TRUE;
}

typedef enum {
    FOUND,
    NOT_FOUND,
    DAMAGED,                   /* errno is set */
} Search;

static Search search(int fd, const guint8 *header, const char *name, BeImageSnapshot *ret)
{
    guint64 at = get_be(header, AT_TABLE, 8);
    guint64 count = get_be(header, AT_COUNT, 4);

    for (guint64 i = 0; i < count; i++) {
        g_auto(BeImageSnapshot) entry = {.id = NULL};

        if (i == MAX_SNAPSHOTS) {
            errno = EIO;
            return DAMAGED;
        }
        if (!read_entry(fd, &at, get_be(header, AT_SIZE, 8), &entry)) {
            return DAMAGED;
        }
        if (strcmp(entry.name, name) == 0) {
            *ret = entry;
            entry = (BeImageSnapshot){.id = NULL};
            return FOUND;
        }
    }
    return NOT_FOUND;
}

/* Whether the header says the same of the table twice, before and after. */
static gboolean search_settled(int fd, const char *name, BeImageSnapshot *ret, Search *ret_search)
{
    guint8 before[HEADER_BYTES];
    guint8 after[HEADER_BYTES];

    if (!read_exactly(fd, before, sizeof(before), 0)) {
        *ret_search = DAMAGED;
        return TRUE;
    }
    *ret_search = search(fd, before, name, ret);
    if (read_exactly(fd, after, sizeof(after), 0)
        && memcmp(before + AT_COUNT, after + AT_COUNT, HEADER_BYTES - AT_COUNT) == 0) {
        return TRUE;
    }
    be_image_snapshot_clear(ret);
    return FALSE;
}

gboolean be_image_snapshot_find(const BeImage *image, const char *name, BeImageSnapshot *ret,
                                GError **error)
{
    Search result = DAMAGED;
    gboolean settled = FALSE;
    int fd;

    *ret = (BeImageSnapshot){.id = NULL};
    if (strcmp(image->format, "qcow2") != 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image '%s' is no qcow2 image, so it has no internal snapshots",
                    image->path);
        return FALSE;
    }
    fd = be_image_open(image->path, error);
    if (fd < 0) {
        return FALSE;
    }
    for (guint i = 0; i < TRIES && !settled; i++) {
        settled = search_settled(fd, name, ret, &result);
    }
    if (!settled) {
        g_set_error(error, BE_ERROR, EBUSY, "the snapshots of the image '%s' keep changing",
                    image->path);
    } else if (result == DAMAGED) {
        be_error_set_errno(error, errno, "cannot read the table of snapshots of the image '%s'",
                           image->path);
    } else if (result == NOT_FOUND) {
        g_set_error(error, BE_ERROR, ENOENT, "the image '%s' has no internal snapshot '%s'",
                    image->path, name);
    }
    close(fd);
    return settled && result == FOUND;
}

void be_image_snapshot_clear(BeImageSnapshot *snapshot)
{
    g_clear_pointer(&snapshot->id, g_free);
    g_clear_pointer(&snapshot->name, g_free);
}
