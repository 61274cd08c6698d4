/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qcow2-layout.c - the qcow2 image of a disk, computed; see qcow2-layout.h.
 *
 * Pure.  Numbers are counted in clusters; `disk cluster` is a place on the disk,
 * `image cluster` one in the file.
 */
#include "backend/qcow2-layout.h"

#include <errno.h>
#include <string.h>

#include "backend/error.h"

#define MAGIC 0x514649fbu      /* "QFI\xfb" */
#define HEADER_LENGTH 104
#define REFCOUNT_ORDER 4       /* 16 bits */
#define COPIED (G_GUINT64_CONSTANT(1) << 63) /* of an entry: its cluster has refcount 1 */
#define ZERO G_GUINT64_CONSTANT(1)           /* of an L2 entry: reads as zeroes, takes no room */
#define EXTENSION_BACKING_FORMAT 0xe2792acau

/* The largest L1 table that is made where clusters could be larger, too: QEMU keeps
 * all of it in memory. */
#define L1_SIZE_GOOD (1024u * 1024)

/* Disk clusters of one sort that follow one another, on the disk and in the image. */
typedef struct {
    guint64 cluster;           /* disk cluster */
    guint64 before;            /* data clusters in front of them */
    guint64 length : 63;
    guint64 zero : 1;          /* zero clusters, which are in the tables only */
} Run;

typedef enum {
    PART_HEADER,
    PART_REFTABLE,
    PART_REFBLOCKS,
    PART_L1,
    PART_L2,
    PART_DATA,
    PART_END,
} Part;

struct BeQcow2Layout {
    guint64 size;              /* of the disk */
    guint32 cluster;           /* bytes of one */
    guint32 per_table;         /* entries in one cluster of a table */
    guint32 per_refcounts;     /* refcounts in one cluster */
    char *backing_name;        /* NULL: a full image */
    char *backing_format;
    GArray *runs;              /* of Run, ascending */
    guint64 data;              /* data clusters */
    guint32 l1_size;           /* entries */
    guint32 *tables_before;    /* L2 tables in front of that of an L1 entry; l1_size + 1 of them */
    guint64 start[PART_END + 1]; /* image cluster at which a part begins */
};

static guint64 divide_up(guint64 value, guint64 by)
{
    return value / by + (value % by != 0);
}

static const Run *run_at(const BeQcow2Layout *layout, guint index)
{
    return &g_array_index(layout->runs, Run, index);
}

/* ---- Making ---- */

/* The first disk cluster that is in no run yet, and that none is in front of. */
static guint64 runs_end(const BeQcow2Layout *layout)
{
    guint count = layout->runs->len;

    return count > 0 ? run_at(layout, count - 1)->cluster + run_at(layout, count - 1)->length : 0;
}

/* Whole clusters, each of them once: what is in a run stays in it. */
static void add_run(BeQcow2Layout *layout, guint64 first, guint64 end, gboolean zero)
{
    guint64 known = runs_end(layout);
    guint count = layout->runs->len;

    first = MAX(first, known);
    if (first >= end) {
        return;
    }
    if (count > 0 && first == known && run_at(layout, count - 1)->zero == (guint)zero) {
        g_array_index(layout->runs, Run, count - 1).length += end - first;
    } else {
        Run run = {.cluster = first, .before = layout->data, .length = end - first,
                   .zero = (guint)zero};

        g_array_append_val(layout->runs, run);
    }
    if (!zero) {
        layout->data += end - first;
    }
}

/* A cluster with any data in it is stored whole. */
static void find_runs(BeQcow2Layout *layout, const BeExtents *extents)
{
    for (guint i = 0; i < be_extents_count(extents); i++) {
        BeExtent extent;

        be_extents_get(extents, i, &extent);
        if (be_extents_is_data(extents, extent.flags)) {
            add_run(layout, extent.start / layout->cluster,
                    divide_up(extent.start + extent.length, layout->cluster), FALSE);
        }
    }
}

/* The clusters from @first to @end changed: to data, or to zeroes. */
static void add_changed(BeQcow2Layout *layout, const BeExtents *map, guint64 first, guint64 end)
{
    first = MAX(first, runs_end(layout));
    while (first < end) {
        guint64 data = layout->size;
        guint64 hole = layout->size;

        if (be_extents_next(map, first * layout->cluster, TRUE, &data) == BE_NEXT_FOUND) {
            be_extents_next(map, data, FALSE, &hole);
            data /= layout->cluster;
        } else {
            data = end;
        }
        add_run(layout, first, MIN(data, end), TRUE);
        first = data;
        if (first < end) {
            first = MIN(divide_up(hole, layout->cluster), end);
            add_run(layout, data, first, FALSE);
        }
    }
}

static void find_changed_runs(BeQcow2Layout *layout, const BeExtents *map, const BeExtents *dirty)
{
    for (guint i = 0; i < be_extents_count(dirty); i++) {
        BeExtent extent;

        be_extents_get(dirty, i, &extent);
        if (be_extents_is_data(dirty, extent.flags)) {
            add_changed(layout, map, extent.start / layout->cluster,
                        divide_up(extent.start + extent.length, layout->cluster));
        }
    }
}

/* First marks the entries that have a table, then adds them up. */
static void count_tables(BeQcow2Layout *layout)
{
    guint32 *before;
    guint32 sum = 0;

    layout->l1_size =
        (guint32)divide_up(layout->size, (guint64)layout->cluster * layout->per_table);
    before = layout->tables_before = g_new0(guint32, (gsize)layout->l1_size + 1);
    for (guint i = 0; i < layout->runs->len; i++) {
        guint64 first = run_at(layout, i)->cluster;
        guint64 last = first + run_at(layout, i)->length - 1;
        guint64 last_entry = last / layout->per_table;

        for (guint64 entry = first / layout->per_table; entry <= last_entry; entry++) {
            before[entry] = 1;
        }
    }
    for (guint32 i = 0; i <= layout->l1_size; i++) {
        guint32 has = before[i];

        before[i] = sum;
        sum += has;
    }
}

/* Refcounts are kept of the refcount blocks too: so until it fits. */
static void place(BeQcow2Layout *layout)
{
    guint64 l1 = divide_up(layout->l1_size, layout->per_table);
    guint64 l2 = layout->tables_before[layout->l1_size];
    guint64 table = 0, blocks = 0, total, wanted;

    do {
        total = 1 + table + blocks + l1 + l2 + layout->data;
        wanted = divide_up(total, layout->per_refcounts);
        if (wanted <= blocks) {
            break;
        }
        blocks = wanted;
        table = divide_up(blocks, layout->per_table);
    } while (TRUE);
    layout->start[PART_HEADER] = 0;
    layout->start[PART_REFTABLE] = 1;
    layout->start[PART_REFBLOCKS] = 1 + table;
    layout->start[PART_L1] = layout->start[PART_REFBLOCKS] + blocks;
    layout->start[PART_L2] = layout->start[PART_L1] + l1;
    layout->start[PART_DATA] = layout->start[PART_L2] + l2;
    layout->start[PART_END] = layout->start[PART_DATA] + layout->data;
}

static BeQcow2Layout *layout_new(guint64 size, guint32 cluster)
{
    BeQcow2Layout *layout = g_new0(BeQcow2Layout, 1);

    layout->size = size;
    layout->cluster = cluster;
    layout->per_table = cluster / 8;
    layout->per_refcounts = cluster / 2;
    layout->runs = g_array_new(FALSE, FALSE, sizeof(Run));
    return layout;
}

static gboolean check_size(guint64 size, GError **error)
{
    if (size > BE_QCOW2_DISK_MAX) {
        g_set_error(error, BE_ERROR, EFBIG, "a disk of more than 1 PiB cannot be shown as qcow2");
        return FALSE;
    }
    return TRUE;
}

BeQcow2Layout *be_qcow2_layout_new(const BeExtents *extents, guint64 size, GError **error)
{
    BeQcow2Layout *layout;

    if (!check_size(size, error)) {
        return NULL;
    }
    layout = layout_new(size, BE_QCOW2_CLUSTER);
    find_runs(layout, extents);
    count_tables(layout);
    place(layout);
    return layout;
}

static gboolean check_backing(const BeQcow2Increment *increment, GError **error)
{
    if (strlen(increment->backing_name) > BE_QCOW2_BACKING_NAME_MAX) {
        g_set_error(error, BE_ERROR, ENAMETOOLONG,
                    "the name of the backing file would have more than %u bytes",
                    BE_QCOW2_BACKING_NAME_MAX);
        return FALSE;
    }
    if (!*increment->backing_name
        || (strcmp(increment->backing_format, "raw") != 0
            && strcmp(increment->backing_format, "qcow2") != 0)) {
        g_set_error(error, BE_ERROR, EINVAL, "'%s' of the format '%s' cannot be a backing file",
                    increment->backing_name, increment->backing_format);
        return FALSE;
    }
    return TRUE;
}

static BeQcow2Layout *layout_new_changed(const BeQcow2Increment *increment, guint32 cluster)
{
    BeQcow2Layout *layout = layout_new(increment->size, cluster);

    find_changed_runs(layout, increment->map, increment->dirty);
    count_tables(layout);
    place(layout);
    return layout;
}

/*
 * Bitmaps of images with small clusters have small ones, too; and a few changes far
 * from one another need a table of one cluster for each.  Large clusters are better
 * for whoever reads the image: so the largest that cost next to nothing.
 */
BeQcow2Layout *be_qcow2_layout_new_incremental(const BeQcow2Increment *increment, GError **error)
{
    guint32 least = MAX(increment->block_min, BE_QCOW2_CLUSTER_MIN);
    BeQcow2Layout *best;

    if (!check_size(increment->size, error) || !check_backing(increment, error)) {
        return NULL;
    }
    best = layout_new_changed(increment, BE_QCOW2_CLUSTER);
    for (guint32 cluster = BE_QCOW2_CLUSTER / 2; cluster >= least; cluster /= 2) {
        BeQcow2Layout *layout;
        guint64 size = be_qcow2_layout_file_size(best);

        if (divide_up(increment->size, (guint64)cluster * (cluster / 8)) > L1_SIZE_GOOD) {
            break;
        }
        layout = layout_new_changed(increment, cluster);
        if (be_qcow2_layout_file_size(layout) < size - size / 20) {
            be_qcow2_layout_free(best);
            best = layout;
        } else {
            be_qcow2_layout_free(layout);
        }
    }
    best->backing_name = g_strdup(increment->backing_name);
    best->backing_format = g_strdup(increment->backing_format);
    return best;
}

void be_qcow2_layout_free(BeQcow2Layout *layout)
{
    if (!layout) {
        return;
    }
    g_array_unref(layout->runs);
    g_free(layout->tables_before);
    g_free(layout->backing_name);
    g_free(layout->backing_format);
    g_free(layout);
}

guint64 be_qcow2_layout_file_size(const BeQcow2Layout *layout)
{
    return layout->start[PART_END] * layout->cluster;
}

guint32 be_qcow2_layout_cluster(const BeQcow2Layout *layout)
{
    return layout->cluster;
}

void be_qcow2_layout_essence(const BeQcow2Layout *layout, guint64 *ret_start, guint64 *ret_end)
{
    guint64 offset = 0;

    *ret_start = 0;
    *ret_end = be_qcow2_layout_file_size(layout);
    if (layout->data > 0) {
        *ret_start = layout->start[PART_DATA] * layout->cluster;
        if (layout->size > 0 && be_qcow2_layout_locate(layout, layout->size - 1, &offset)) {
            *ret_end = offset + 1;
        }
    }
}

/* ---- Finding ---- */

/*
 * The run of a data cluster.  Runs of zero clusters have as many data clusters in
 * front of them as the run of data behind them, which is the later one.
 */
static guint run_of_data(const BeQcow2Layout *layout, guint64 data_cluster)
{
    guint low = 0;
    guint high = layout->runs->len;

    while (high - low > 1) {
        guint middle = low + (high - low) / 2;

        if (run_at(layout, middle)->before <= data_cluster) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The first run that ends behind a disk cluster, or the number of runs. */
static guint run_behind(const BeQcow2Layout *layout, guint64 cluster)
{
    guint low = 0;
    guint high = layout->runs->len;

    while (low < high) {
        guint middle = low + (high - low) / 2;

        if (run_at(layout, middle)->cluster + run_at(layout, middle)->length > cluster) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

gboolean be_qcow2_layout_find(const BeQcow2Layout *layout, guint64 offset,
                              BeQcow2Piece *ret_piece)
{
    guint64 data_start = layout->start[PART_DATA] * layout->cluster;
    guint64 data_cluster, end;
    const Run *run;
    guint index;

    if (offset >= be_qcow2_layout_file_size(layout)) {
        return FALSE;
    }
    if (offset < data_start) {
        *ret_piece = (BeQcow2Piece){.kind = BE_QCOW2_METADATA, .length = data_start - offset};
        return TRUE;
    }
    data_cluster = (offset - data_start) / layout->cluster;
    index = run_of_data(layout, data_cluster);
    run = run_at(layout, index);
    ret_piece->kind = BE_QCOW2_DATA;
    ret_piece->disk_offset =
        (run->cluster + data_cluster - run->before) * layout->cluster + offset % layout->cluster;
    end = (run->cluster + run->length) * layout->cluster;
    if (ret_piece->disk_offset >= layout->size) {
        ret_piece->kind = BE_QCOW2_PADDING;
    } else {
        end = MIN(end, layout->size);
    }
    ret_piece->length = end - ret_piece->disk_offset;
    return TRUE;
}

gboolean be_qcow2_layout_locate(const BeQcow2Layout *layout, guint64 disk_offset,
                                guint64 *ret_offset)
{
    guint64 cluster = disk_offset / layout->cluster;
    guint index = run_behind(layout, cluster);
    const Run *run;

    if (disk_offset >= layout->size || index == layout->runs->len
        || run_at(layout, index)->cluster > cluster || run_at(layout, index)->zero) {
        return FALSE;
    }
    run = run_at(layout, index);
    cluster += layout->start[PART_DATA] + run->before - run->cluster;
    *ret_offset = cluster * layout->cluster + disk_offset % layout->cluster;
    return TRUE;
}

/* ---- Metadata ---- */

static void put32(guint8 *buffer, gsize at, guint32 value)
{
    value = GUINT32_TO_BE(value);
    memcpy(buffer + at, &value, sizeof(value));
}

static void put64(guint8 *buffer, gsize at, guint64 value)
{
    value = GUINT64_TO_BE(value);
    memcpy(buffer + at, &value, sizeof(value));
}

/* The extensions, and behind their end the name: all within 4 KiB. */
static void fill_backing(const BeQcow2Layout *layout, guint8 *buffer)
{
    gsize format_length = strlen(layout->backing_format);
    gsize name_length = strlen(layout->backing_name);
    gsize name_at = HEADER_LENGTH + 8 + ((format_length + 7) & ~(gsize)7) + 8;

    put32(buffer, HEADER_LENGTH, EXTENSION_BACKING_FORMAT);
    put32(buffer, HEADER_LENGTH + 4, (guint32)format_length);
    memcpy(buffer + HEADER_LENGTH + 8, layout->backing_format, format_length);
    memcpy(buffer + name_at, layout->backing_name, name_length);
    put64(buffer, 8, name_at);
    put32(buffer, 16, (guint32)name_length);
}

/* What is 0 is left out: no encryption, no snapshots, no features. */
static void fill_header(const BeQcow2Layout *layout, guint8 *buffer)
{
    put32(buffer, 0, MAGIC);
    put32(buffer, 4, 3);
    put32(buffer, 20, (guint32)g_bit_nth_lsf(layout->cluster, -1));
    put64(buffer, 24, layout->size);
    put32(buffer, 36, layout->l1_size);
    put64(buffer, 40, layout->start[PART_L1] * layout->cluster);
    put64(buffer, 48, layout->start[PART_REFTABLE] * layout->cluster);
    put32(buffer, 56, (guint32)(layout->start[PART_REFBLOCKS] - layout->start[PART_REFTABLE]));
    put32(buffer, 96, REFCOUNT_ORDER);
    put32(buffer, 100, HEADER_LENGTH);
    if (layout->backing_name) {
        fill_backing(layout, buffer);
    }
}

static void fill_reftable(const BeQcow2Layout *layout, guint64 index, guint8 *buffer)
{
    guint64 first = layout->start[PART_REFBLOCKS] + index * layout->per_table;
    guint64 end = MIN(first + layout->per_table, layout->start[PART_L1]);

    for (guint64 block = first; block < end; block++) {
        put64(buffer, (block - first) * 8, block * layout->cluster);
    }
}

static void fill_refcounts(const BeQcow2Layout *layout, guint64 index, guint8 *buffer)
{
    guint64 first = index * layout->per_refcounts;
    guint64 end = MIN(first + layout->per_refcounts, layout->start[PART_END]);

    for (guint64 cluster = first; cluster < end; cluster++) {
        buffer[(cluster - first) * 2 + 1] = 1;
    }
}

static void fill_l1(const BeQcow2Layout *layout, guint64 index, guint8 *buffer)
{
    guint64 first = index * layout->per_table;
    guint64 end = MIN(first + layout->per_table, layout->l1_size);

    for (guint64 entry = first; entry < end; entry++) {
        guint32 before = layout->tables_before[entry];

        if (layout->tables_before[entry + 1] > before) {
            put64(buffer, (entry - first) * 8,
                  (layout->start[PART_L2] + before) * layout->cluster | COPIED);
        }
    }
}

/* The L1 entry of a table: the last one with no more tables in front of it. */
static guint32 entry_of_table(const BeQcow2Layout *layout, guint64 table)
{
    guint32 low = 0;
    guint32 high = layout->l1_size;

    while (high - low > 1) {
        guint32 middle = low + (high - low) / 2;

        if (layout->tables_before[middle] <= table) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

static void fill_l2(const BeQcow2Layout *layout, guint64 table, guint8 *buffer)
{
    guint64 first = (guint64)entry_of_table(layout, table) * layout->per_table;

    for (guint i = run_behind(layout, first); i < layout->runs->len; i++) {
        const Run *run = run_at(layout, i);
        guint64 from = MAX(run->cluster, first);
        guint64 end = MIN(run->cluster + run_at(layout, i)->length, first + layout->per_table);
        guint64 base = layout->start[PART_DATA] + run->before;

        if (run->cluster >= first + layout->per_table) {
            break;
        }
        for (guint64 cluster = from; cluster < end; cluster++) {
            put64(buffer, (cluster - first) * 8,
                  run->zero ? ZERO : (base + cluster - run->cluster) * layout->cluster | COPIED);
        }
    }
}

static void fill_cluster(const BeQcow2Layout *layout, guint64 cluster, guint8 *buffer)
{
    memset(buffer, 0, layout->cluster);
    if (cluster < layout->start[PART_REFTABLE]) {
        fill_header(layout, buffer);
    } else if (cluster < layout->start[PART_REFBLOCKS]) {
        fill_reftable(layout, cluster - layout->start[PART_REFTABLE], buffer);
    } else if (cluster < layout->start[PART_L1]) {
        fill_refcounts(layout, cluster - layout->start[PART_REFBLOCKS], buffer);
    } else if (cluster < layout->start[PART_L2]) {
        fill_l1(layout, cluster - layout->start[PART_L1], buffer);
    } else {
        fill_l2(layout, cluster - layout->start[PART_L2], buffer);
    }
}

void be_qcow2_layout_fill(const BeQcow2Layout *layout, guint64 offset, gsize length, void *buffer)
{
    g_autofree guint8 *part = NULL;
    guint8 *to = buffer;

    while (length > 0) {
        gsize inside = offset % layout->cluster;
        gsize count = MIN(length, layout->cluster - inside);

        if (count == layout->cluster) {
            fill_cluster(layout, offset / layout->cluster, to);
        } else {
            part = part ? part : g_malloc(layout->cluster);
            fill_cluster(layout, offset / layout->cluster, part);
            memcpy(to, part + inside, count);
        }
        to += count;
        offset += count;
        length -= count;
    }
}
