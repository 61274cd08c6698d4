/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust-sample.c - the second half of trust: a few blocks of a backup that has
 * just begun, against what was kept of them, and the few to keep this time.
 *
 * Workers; a connection of its own to each export, closed at the end.  Blocks, at
 * most CONFIRM_US for all disks together; a guest under load answers in
 * milliseconds.
 *
 * Which blocks: what nobody writes says nothing about a bitmap that misses writes.
 * So those are preferred that change often: blocks kept last time that have changed
 * since, and blocks of the increment; then the head of the disk and of its first
 * partition, where a file system counts its mounts; the last that hold data, for who
 * makes a disk shorter and longer again takes these first, and QEMU 7.2 then calls
 * all that was cut off clean; and data anywhere.
 */
#include <errno.h>
#include <libnbd.h>
#include <string.h>

#include "backend/error.h"
#include "backend/trust-priv.h"

#define CONFIRM_US (15 * G_USEC_PER_SEC)

#define BLOCK (64u * 1024)
#define BLOCKS 20u

/* Of these, so many that are known to change. */
#define BLOCKS_HOT 10u

/* The last with data, so far before one another; of a big disk further: a part of it. */
#define TAILS 4u
#define TAIL_STEP (1024u * 1024)
#define TAIL_PART 16u

/* Where the search for the last data begins, and how often it goes on before that. */
#define TAIL_BYTES (16u * 1024 * 1024)
#define TAIL_SEARCHES 64

/* Where partitions begin, by every tool of the last ten years. */
#define FIRST_PARTITION (1024u * 1024)

/* How often chance may hit a block that is there already, or a hole. */
#define TRIES 24

/* What QEMU may say at once about one place. */
#define SEARCH_BYTES (1024u * 1024 * 1024)

#define DIRTY 1u
#define ZERO 2u

typedef struct {
    struct nbd_handle *nbd;
    const char *target;
    char *dirty_context;       /* NULL: the disk is full in this backup */
    guint64 size;
    gint64 deadline_us;
} Export;

/* ---- The connection ------------------------------------------------------------------ */

static gboolean lost(Export *export, int errnum, GError **error)
{
    g_set_error(error, BE_ERROR, errnum, "disk '%s' of the backup cannot be read: %s",
                export->target,
                errnum == ETIMEDOUT ? "QEMU does not answer" : nbd_get_error());
    return FALSE;
}

/* Lets libnbd work until the deadline; FALSE: lost. */
static gboolean work(Export *export, GError **error)
{
    gint64 left_us = export->deadline_us - g_get_monotonic_time();
    int result = left_us > 0 ? nbd_poll(export->nbd, (int)(left_us / 1000) + 1) : 0;

    return result > 0 || lost(export, result == 0 ? ETIMEDOUT : EIO, error);
}

static gboolean wait_for(Export *export, gint64 cookie, GError **error)
{
    int done;

    if (cookie < 0) {
        return lost(export, EIO, error);
    }
    while ((done = nbd_aio_command_completed(export->nbd, (uint64_t)cookie)) == 0) {
        if (!work(export, error)) {
            return FALSE;
        }
    }
    return done == 1 || lost(export, EIO, error);
}

static gboolean connect_to(Export *export, const char *socket, const char *name, GError **error)
{
    export->nbd = nbd_create();
    if (!export->nbd || nbd_set_export_name(export->nbd, name) < 0
        || nbd_add_meta_context(export->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0
        || (export->dirty_context
            && nbd_add_meta_context(export->nbd, export->dirty_context) < 0)
        || nbd_aio_connect_unix(export->nbd, socket) < 0) {
        return lost(export, EIO, error);
    }
    while (!nbd_aio_is_ready(export->nbd)) {
        if (nbd_aio_is_dead(export->nbd) || nbd_aio_is_closed(export->nbd)) {
            return lost(export, EIO, error);
        }
        if (!work(export, error)) {
            return FALSE;
        }
    }
    export->size = (guint64)MAX(nbd_get_size(export->nbd), 0);
    if (export->dirty_context && nbd_can_meta_context(export->nbd, export->dirty_context) != 1) {
        g_set_error(error, BE_ERROR, EIO, "the backup of disk '%s' does not say what changed",
                    export->target);
        return FALSE;
    }
    return TRUE;
}

static void disconnect(Export *export)
{
    nbd_close(export->nbd);
    g_free(export->dirty_context);
}

static char *digest_at(Export *export, guint64 offset, guint32 length, GError **error)
{
    g_autofree guint8 *buffer = g_malloc(length);
    gint64 cookie = nbd_aio_pread(export->nbd, buffer, length, offset, NBD_NULL_COMPLETION, 0);

    if (!wait_for(export, cookie, error)) {
        /* libnbd may still write into it. */
        nbd_close(g_steal_pointer(&export->nbd));
        return NULL;
    }
    return g_compute_checksum_for_data(G_CHECKSUM_SHA256, buffer, length);
}

/* ---- Block status ---------------------------------------------------------------------- */

typedef struct {
    const char *context;
    GArray *pairs;             /* of guint32: length, flags */
} Status;

static int take_status(void *user, const char *context, uint64_t offset G_GNUC_UNUSED,
                       uint32_t *entries, size_t count, int *error G_GNUC_UNUSED)
{
    Status *status = user;

    if (g_str_equal(context, status->context)) {
        g_array_append_vals(status->pairs, entries, (guint)(count & ~(size_t)1));
    }
    return 0;
}

/* Pairs of length and flags from @offset on; possibly of less than @length. */
static GArray *status_at(Export *export, const char *context, guint64 offset,
                         guint64 length, GError **error)
{
    Status status = {context, g_array_new(FALSE, FALSE, sizeof(guint32))};
    gint64 cookie = nbd_aio_block_status(
        export->nbd, length, offset,
        (nbd_extent_callback){.callback = take_status, .user_data = &status},
        NBD_NULL_COMPLETION, 0);

    if (!wait_for(export, cookie, error)) {
        nbd_close(g_steal_pointer(&export->nbd));
        g_array_unref(status.pairs);
        return NULL;
    }
    return status.pairs;
}

/* Whether any byte of it is dirty: 1, 0; -1 with @error. */
static int is_dirty(Export *export, guint64 offset, guint64 length, GError **error)
{
    guint64 end = MIN(offset + length, export->size);

    while (offset < end) {
        g_autoptr(GArray) pairs =
            status_at(export, export->dirty_context, offset, end - offset, error);
        guint64 before = offset;

        for (guint i = 0; pairs && i + 1 < pairs->len && offset < end; i += 2) {
            if (g_array_index(pairs, guint32, i + 1) & DIRTY) {
                return 1;
            }
            offset += g_array_index(pairs, guint32, i);
        }
        if (!pairs) {
            return -1;
        }
        if (offset == before) {
            g_set_error(error, BE_ERROR, EIO, "disk '%s': QEMU does not say what changed",
                        export->target);
            return -1;
        }
    }
    return 0;
}

/*
 * The block of the first byte behind @from that is dirty, or data: at most
 * SEARCH_BYTES away.  FALSE without @error: there is none.
 */
static gboolean find_block(Export *export, const char *context, guint64 from,
                           guint64 *ret_offset, GError **error)
{
    gboolean dirty = context == export->dirty_context;
    g_autoptr(GArray) pairs =
        status_at(export, context, from, MIN(export->size - from, SEARCH_BYTES), error);
    guint64 offset = from;

    for (guint i = 0; pairs && i + 1 < pairs->len && offset < export->size; i += 2) {
        guint32 flags = g_array_index(pairs, guint32, i + 1);

        if (dirty ? (flags & DIRTY) != 0 : (flags & ZERO) == 0) {
            *ret_offset = offset & ~(guint64)(BLOCK - 1);
            return TRUE;
        }
        offset += g_array_index(pairs, guint32, i);
    }
    return FALSE;
}

/* ---- The blocks kept last time ------------------------------------------------------------ */

static gboolean lies(Export *export, guint64 offset, const char *what, GError **error)
{
    g_set_error(error, BE_ERROR, EUCLEAN,
                "disk '%s' %s at byte %" G_GUINT64_FORMAT
                " although the bitmap says that nothing changed there: it was restored, emptied or "
                "bypassed",
                export->target, what, offset);
    return FALSE;
}

/* @hot: gets the offsets of those that changed. */
static gboolean compare_samples(Export *export, const BeTrustDisk *disk, GArray *hot,
                                GError **error)
{
    for (guint i = 0; i < disk->samples->len; i++) {
        const BeTrustSample *sample = g_ptr_array_index(disk->samples, i);
        int dirty = is_dirty(export, sample->offset, sample->length, error);
        g_autofree char *now =
            dirty == 0 ? digest_at(export, sample->offset, sample->length, error) : NULL;

        if (dirty < 0 || (dirty == 0 && !now)) {
            return FALSE;
        }
        if (dirty == 1) {
            g_array_append_val(hot, sample->offset);
        } else if (!g_str_equal(now, sample->digest)) {
            return lies(export, sample->offset, "has other content", error);
        }
    }
    return TRUE;
}

static gboolean compare_grown(Export *export, const BeTrustDisk *disk, GError **error)
{
    for (guint i = 0; i < disk->grown->len; i++) {
        const BeTrustRange *range = &g_array_index(disk->grown, BeTrustRange, i);
        int dirty = is_dirty(export, range->offset, range->length, error);

        if (dirty < 0) {
            return FALSE;
        }
        if (dirty == 0) {
            return lies(export, range->offset, "has data in an image made since", error);
        }
    }
    return TRUE;
}

/* ---- The blocks to keep this time ------------------------------------------------------------ */

static gboolean has_block(const GArray *blocks, guint64 offset)
{
    for (guint i = 0; i < blocks->len; i++) {
        if (g_array_index(blocks, guint64, i) == offset) {
            return TRUE;
        }
    }
    return FALSE;
}

static void add_block(Export *export, GArray *blocks, guint64 offset, guint most)
{
    if (blocks->len < most && offset < export->size && !has_block(blocks, offset)) {
        g_array_append_val(blocks, offset);
    }
}

static gboolean add_by_chance(Export *export, GArray *blocks, const char *context,
                              guint most, GError **error)
{
    guint64 count = (export->size + BLOCK - 1) / BLOCK;

    for (guint i = 0; i < TRIES && blocks->len < most; i++) {
        guint64 from = MIN((guint64)(g_random_double() * (double)count), count - 1) * BLOCK;
        g_autoptr(GError) failure = NULL;
        guint64 offset;

        if (find_block(export, context, from, &offset, &failure)) {
            add_block(export, blocks, offset, most);
        } else if (failure) {
            g_propagate_error(error, g_steal_pointer(&failure));
            return FALSE;
        }
    }
    return TRUE;
}

/* Where the last data of a range ends; 0: there is none, or @error. */
static guint64 end_of_data(Export *export, guint64 from, guint64 end, GError **error)
{
    guint64 last = 0;

    while (from < end) {
        g_autoptr(GArray) pairs =
            status_at(export, LIBNBD_CONTEXT_BASE_ALLOCATION, from, end - from, error);
        guint64 before = from;

        for (guint i = 0; pairs && i + 1 < pairs->len && from < end; i += 2) {
            from += g_array_index(pairs, guint32, i);
            if ((g_array_index(pairs, guint32, i + 1) & ZERO) == 0) {
                last = MIN(from, end);
            }
        }
        if (!pairs) {
            return 0;
        }
        if (from == before) {
            break;             /* QEMU does not say: then there is no such sample */
        }
    }
    return last;
}

/* The block of the last data before @end; FALSE without @error: none, or too far. */
static gboolean find_last(Export *export, guint64 end, guint64 *ret_offset, GError **error)
{
    guint64 window = TAIL_BYTES;

    for (guint i = 0; i < TAIL_SEARCHES && end > 0; i++) {
        guint64 from = end > window ? (end - window) & ~(guint64)(BLOCK - 1) : 0;
        g_autoptr(GError) failure = NULL;
        guint64 last = end_of_data(export, from, end, &failure);

        if (failure) {
            g_propagate_error(error, g_steal_pointer(&failure));
            return FALSE;
        }
        if (last > 0) {
            *ret_offset = (last - 1) & ~(guint64)(BLOCK - 1);
            return TRUE;
        }
        end = from;
        window = MIN(window * 2, SEARCH_BYTES);
    }
    return FALSE;
}

static gboolean add_last(Export *export, GArray *blocks, GError **error)
{
    guint64 end = export->size;

    for (guint i = 0; i < TAILS && end > 0; i++) {
        guint64 step = i < TAILS / 2 ? TAIL_STEP : export->size / TAIL_PART & ~(guint64)(BLOCK - 1);
        g_autoptr(GError) failure = NULL;
        guint64 offset;

        if (!find_last(export, end, &offset, &failure)) {
            gboolean none = failure == NULL;

            if (!none) {
                g_propagate_error(error, g_steal_pointer(&failure));
            }
            return none;
        }
        add_block(export, blocks, offset, BLOCKS);
        end = offset > step ? offset - step : 0;
    }
    return TRUE;
}

static gboolean keep_samples(Export *export, const GArray *hot, BeTrustDisk *disk,
                             GError **error)
{
    g_autoptr(GArray) blocks = g_array_new(FALSE, FALSE, sizeof(guint64));

    if (export->size == 0) {
        return TRUE;
    }
    add_block(export, blocks, 0, BLOCKS);
    add_block(export, blocks, FIRST_PARTITION, BLOCKS);
    for (guint i = 0; i < hot->len; i++) {
        add_block(export, blocks, g_array_index(hot, guint64, i), BLOCKS_HOT);
    }
    if ((export->dirty_context
         && !add_by_chance(export, blocks, export->dirty_context, BLOCKS_HOT, error))
        || !add_last(export, blocks, error)
        || !add_by_chance(export, blocks, LIBNBD_CONTEXT_BASE_ALLOCATION, BLOCKS, error)) {
        return FALSE;
    }
    g_ptr_array_set_size(disk->samples, 0);
    for (guint i = 0; i < blocks->len; i++) {
        guint64 offset = g_array_index(blocks, guint64, i);
        guint32 length = (guint32)MIN(BLOCK, export->size - offset);
        g_autofree char *digest = digest_at(export, offset, length, error);

        if (!digest) {
            return FALSE;
        }
        be_trust_disk_add_sample(disk, offset, length, digest);
    }
    return TRUE;
}

/* ---- One backup ------------------------------------------------------------------------------ */

static gboolean confirm_disk(Export *export, const BeTrustDisk *then, BeTrustDisk *now,
                             GError **error)
{
    g_autoptr(GArray) hot = g_array_new(FALSE, FALSE, sizeof(guint64));

    if (then && export->dirty_context
        && (!compare_samples(export, then, hot, error) || !compare_grown(export, then, error))) {
        return FALSE;
    }
    return !now || keep_samples(export, hot, now, error);
}

static gboolean confirm_export(const char *socket, const BeTrustExport *what, gint64 deadline_us,
                               BeTrustRecord *base, BeTrustRecord *record, GError **error)
{
    const BeTrustDisk *then = base ? be_trust_record_disk(base, what->target) : NULL;
    BeTrustDisk *now = record ? be_trust_record_disk(record, what->target) : NULL;
    Export export = {.target = what->target, .deadline_us = deadline_us};
    gboolean done;

    if (!now && !(then && what->bitmap)) {
        return TRUE;
    }
    export.dirty_context =
        what->bitmap ? g_strconcat("qemu:dirty-bitmap:", what->bitmap, NULL) : NULL;
    done = connect_to(&export, socket, what->export_name, error)
           && confirm_disk(&export, then, now, error);
    disconnect(&export);
    return done;
}

gboolean be_trust_confirm(Be *be, const char *socket, const GPtrArray *exports,
                          BeTrustRecord *base, BeTrustRecord *record, GError **error)
{
    gint64 deadline_us = g_get_monotonic_time() + CONFIRM_US;

    for (guint i = 0; i < exports->len; i++) {
        const BeTrustExport *what = g_ptr_array_index(exports, i);
        g_autoptr(GError) failure = NULL;
        g_autoptr(GError) write_error = NULL;

        if (confirm_export(socket, what, deadline_us, base, record, &failure)) {
            continue;
        }
        if (failure->code == EUCLEAN && base) {
            if (!be_trust_break_one(be, base, failure->message, &write_error)) {
                g_warning("%s", write_error->message);
            }
            g_prefix_error(&failure, "checkpoint '%s' can serve no incremental backup any more: ",
                           base->name);
        }
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return TRUE;
}
