/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * attr.c - attributes of nodes; see attr.h.  Any thread, never blocks.
 */
#include "fs/attr.h"

#include <string.h>

#include "fs/guest.h"

#define BLOCK_SIZE_HINT (128 * 1024)

/* What cp reads at once of a file without holes; the kernel asks for no more in one request. */
#define STREAM_BLOCK_SIZE_HINT (1024 * 1024)
#define STATIC_SECONDS 3600.0
#define STREAM_SECONDS 1.0

static mode_t file_type(FsKind kind)
{
    switch (kind) {
    case FS_KIND_DIR:
    case FS_KIND_GUEST:
        return S_IFDIR;
    case FS_KIND_LINK:
        return S_IFLNK;
    case FS_KIND_ATTR:
    case FS_KIND_CONTROL:
    case FS_KIND_STREAM:
    case FS_KIND_FEED:
        return S_IFREG;
    }
    return S_IFREG;
}

void fs_attr_set_size(struct stat *attr, guint64 size)
{
    attr->st_size = (off_t)size;
    attr->st_blocks = (blkcnt_t)((size + 511) / 512);
}

static void fill_size(Fs *fs, const FsNode *node, struct stat *attr)
{
    g_autofree char *target = NULL;
    BeStream *stream;

    switch (node->def->kind) {
    case FS_KIND_STREAM:
        attr->st_blksize = STREAM_BLOCK_SIZE_HINT;
        stream = node->def->stream(node->item);
        if (stream) {
            attr->st_size = (off_t)be_stream_size(stream);
            attr->st_blocks = (blkcnt_t)((be_stream_allocated(stream) + 511) / 512);
        }
        break;
    case FS_KIND_LINK:
        target = node->def->target(fs, node->item);
        attr->st_size = target ? (off_t)strlen(target) : 0;
        break;
    case FS_KIND_DIR:
    case FS_KIND_GUEST:
    case FS_KIND_ATTR:
    case FS_KIND_CONTROL:
    case FS_KIND_FEED:
        break;
    }
}

/*
 * An appliance reads the data as a group of its own (-o data-gid), and has to
 * come through the directories to get there.
 */
static gid_t group_of(const Fs *fs, FsKind kind)
{
    gboolean data = kind == FS_KIND_STREAM || kind == FS_KIND_DIR || kind == FS_KIND_GUEST;

    return data && fs->data_gid != (gid_t)-1 ? fs->data_gid : fs->gid;
}

void fs_attr_fill(Fs *fs, const FsNode *node, struct stat *attr)
{
    gint64 time_us = node->item && node->item->time_us ? node->item->time_us : fs->started_us;
    gboolean owned = node->item && node->item->owner != (uid_t)-1;

    if (node->def->kind == FS_KIND_GUEST && fs_guest_attr(fs, node, attr)) {
        return;
    }
    memset(attr, 0, sizeof(*attr));
    attr->st_ino = node->ino;
    attr->st_mode = file_type(node->def->kind) | (node->def->mode & ~fs->umask);
    attr->st_nlink = 1;
    attr->st_uid = owned ? node->item->owner : fs->uid;
    attr->st_gid = group_of(fs, node->def->kind);
    attr->st_blksize = BLOCK_SIZE_HINT;
    attr->st_mtim.tv_sec = time_us / G_USEC_PER_SEC;
    attr->st_mtim.tv_nsec = time_us % G_USEC_PER_SEC * 1000;
    attr->st_ctim = attr->st_mtim;
    attr->st_atim = attr->st_mtim;
    fill_size(fs, node, attr);
}

double fs_attr_timeout(const FsNode *node)
{
    switch (node->def->kind) {
    case FS_KIND_DIR:
        return STATIC_SECONDS;
    case FS_KIND_GUEST:
        return fs_guest_is_certain(node) ? STATIC_SECONDS : 0;
    case FS_KIND_STREAM:
        /* Not prepared: the kernel has to come back for the size. */
        return node->def->stream(node->item) ? STREAM_SECONDS : 0;
    case FS_KIND_ATTR:
    case FS_KIND_CONTROL:
    case FS_KIND_FEED:
    case FS_KIND_LINK:
        return 0;
    }
    return 0;
}

double fs_entry_timeout(const FsNode *node)
{
    gboolean guest = node->def->kind == FS_KIND_GUEST;
    gboolean object = !guest && node->parent && node->item != node->parent->item;

    if (object || node->def->kind == FS_KIND_CONTROL || node->def->kind == FS_KIND_LINK
        || node->def->make || (guest && !fs_guest_is_certain(node))) {
        return 0;
    }
    return STATIC_SECONDS;
}
