/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image.h - local disk images: their chain, size and allocation, without
 * running anything and without ever guessing a format.
 *
 * A guest can write a qcow2 header into its raw disk, so the content of a file
 * never decides what it is (faults.md 108): the format of the top comes from the
 * domain XML, that of each further level from the image above it.  All headers
 * are taken for hostile.
 *
 * Any thread; blocks on local files only.  Nothing stays open.
 */
#pragma once

#include "backend.h"

/* Levels of a chain; libvirt refuses longer ones, too. */
#define BE_IMAGE_MAX_LEVELS 200

/**
 * BeImageHeader: what a qcow2 header says (QEMU docs/interop/qcow2.txt).
 */
typedef struct {
    guint32 version;
    guint32 cluster_bits;
    guint64 size;              /* virtual size in bytes, a multiple of 512 */
    guint32 crypt_method;
    guint64 incompatible;      /* feature bits as they are; 0 for version 2 */
    gboolean dirty;            /* refcounts may be wrong: not closed properly */
    gboolean corrupt;
    gboolean external_data;    /* the data is in another file */
    gboolean data_file_raw;
    char *data_file;           /* its name, or NULL */
    char *backing_name;        /* as recorded, or NULL */
    char *backing_format;      /* as recorded, or NULL */
} BeImageHeader;

/**
 * be_image_header_parse:
 * @data: the beginning of a file
 * @length: how much of it is there; the first cluster (at most 2 MiB) or the
 *   whole file is enough
 * @ret: filled on success, to be emptied with be_image_header_clear()
 *
 * Reads by offset with every size checked; judges only the form.
 *
 * Returns: FALSE: EIO when it is not a well-formed qcow2 header, EOPNOTSUPP for
 * an unknown version.
 */
gboolean be_image_header_parse(const guint8 *data, gsize length, BeImageHeader *ret,
                               GError **error);
void be_image_header_clear(BeImageHeader *header);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(BeImageHeader, be_image_header_clear)

/**
 * BeImage: one image of a chain; immutable.
 */
typedef struct {
    char *path;                /* absolute */
    const char *format;        /* "raw" or "qcow2" */
    gboolean block_device;
    dev_t dev;                 /* identity; of a block device its own number */
    ino_t ino;                 /* 0 for a block device */
    guint64 size;              /* virtual size in bytes, as QEMU shows it */
    guint64 allocated;         /* bytes on the host; all of a block device */
    gboolean dirty;            /* a qcow2 image that was not closed properly */
} BeImage;

/**
 * be_image_chain_inspect:
 * @path: the top, absolute
 * @format: its format in the domain XML; NULL is refused
 *
 * Follows a chain to its end.
 *
 * Returns: (element BeImage): the top first, to be freed with
 * g_ptr_array_unref(); NULL: EOPNOTSUPP for what we do not read (other formats, a
 * level without a recorded format, encryption, external data files, json: and
 * remote backing names, unknown features, more than BE_IMAGE_MAX_LEVELS levels),
 * ELOOP for an image that is its own backing file, EIO for a damaged image, EINVAL
 * for a path that is not absolute, or the errno of opening a file (ENOENT, EACCES).
 */
GPtrArray *be_image_chain_inspect(const char *path, const char *format, GError **error);

/**
 * be_image_chain_equal: whether two inspections saw the same files in the same
 * order with the same sizes.
 */
gboolean be_image_chain_equal(const GPtrArray *a, const GPtrArray *b);

/**
 * be_image_chain_size: the virtual size of the disk in bytes.
 */
guint64 be_image_chain_size(const GPtrArray *chain);

/**
 * be_image_chain_allocated: an estimate of the bytes that are data: what all
 * levels occupy, at most the virtual size, and at least 4096 when any is there,
 * for tar takes a file of no blocks for a hole.
 */
guint64 be_image_chain_allocated(const GPtrArray *chain);

/**
 * BeImageSnapshot: an internal snapshot of a qcow2 image.
 */
typedef struct {
    char *id;                  /* QEMU's number for it, as text */
    char *name;
    guint64 size;              /* of the disk then; the image may have been resized since */
} BeImageSnapshot;

/**
 * be_image_snapshot_find: looks an internal snapshot up by name.
 * @ret: filled on success, to be emptied with be_image_snapshot_clear()
 *
 * Right for an image that a running machine has open, too.
 *
 * Returns: FALSE: ENOENT, EOPNOTSUPP for an image that is not qcow2, EBUSY when
 * the table keeps changing, EIO when it is damaged, or the errno of opening it.
 * (QEMU: docs/interop/qcow2.txt, Snapshots.)
 */
gboolean be_image_snapshot_find(const BeImage *image, const char *name, BeImageSnapshot *ret,
                                GError **error);
void be_image_snapshot_clear(BeImageSnapshot *snapshot);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(BeImageSnapshot, be_image_snapshot_clear)

/**
 * be_image_chain_json: the chain as a file name for QEMU's tools, "json:{...}":
 * a block device tree with the driver of every node named and the end of the
 * chain explicit, so that QEMU neither probes a format nor follows a header
 * (QEMU qapi/block-core.json, BlockdevOptions).  QEMU's image locking is on.
 *
 * Returns: the text, to be freed with g_free(); NULL: EOPNOTSUPP when a path is
 * not UTF-8 or all are too long for a command line.
 */
char *be_image_chain_json(const GPtrArray *chain, GError **error);

/**
 * be_image_chain_json_unlocked: the same without QEMU's image locking, for images
 * that a running machine has open; of such a one only what no machine changes can
 * be read: the images below its top, and internal snapshots.
 */
char *be_image_chain_json_unlocked(const GPtrArray *chain, GError **error);

/**
 * be_image_open: opens a regular file or block device read-only, and nothing
 * else: a fifo or device that reacts to being opened is not.
 *
 * Returns: the descriptor (close-on-exec), or -1: EOPNOTSUPP for other files, the
 * errno of open(2).
 */
int be_image_open(const char *path, GError **error);
