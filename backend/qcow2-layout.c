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

#define CLUSTER BE_QCOW2_CLUSTER
#define CLUSTER_BITS 16
#define MAGIC 0x514649fbu      /* "QFI\xfb" */
#define HEADER_LENGTH 104
#define REFCOUNT_ORDER 4       /* 16 bits */
#define COPIED (G_GUINT64_CONSTANT(1) << 63) /* of an entry: its cluster has refcount 1 */

/* Entries in one cluster of a table. */
#define PER_TABLE (CLUSTER / 8)
#define PER_REFCOUNTS (CLUSTER / 2)

/* Disk clusters with data that follow one another, on the disk and in the image. */
typedef struct {
    guint64 cluster;           /* disk cluster */
    guint64 before;            /* data clusters in front of them */
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

static guint64 run_length(const BeQcow2Layout *layout, guint index)
{
    guint64 end = index + 1 < layout->runs->len ? run_at(layout, index + 1)->before : layout->data;

    return end - run_at(layout, index)->before;
}

/* ---- Making ---- */

/* A cluster with any data in it is stored whole, and once. */
static void add_data(BeQcow2Layout *layout, guint64 first, guint64 end)
{
    guint count = layout->runs->len;
    guint64 known = 0;
    Run run;

    if (count > 0) {
        known = run_at(layout, count - 1)->cluster + run_length(layout, count - 1);
    }
    first = MAX(first, known);
    if (first >= end) {
        return;
    }
    if (count == 0 || first > known) {
        run = (Run){.cluster = first, .before = layout->data};
        g_array_append_val(layout->runs, run);
    }
    layout->data += end - first;
}

static void find_runs(BeQcow2Layout *layout, const BeExtents *extents)
{
    for (guint i = 0; i < be_extents_count(extents); i++) {
        BeExtent extent;

        be_extents_get(extents, i, &extent);
        if (be_extents_is_data(extents, extent.flags)) {
            add_data(layout, extent.start / CLUSTER,
                     divide_up(extent.start + extent.length, CLUSTER));
        }
    }
}

/* First marks the entries that have a table, then adds them up. */
static void count_tables(BeQcow2Layout *layout)
{
    guint32 *before;
    guint32 sum = 0;

    layout->l1_size = (guint32)divide_up(layout->size, (guint64)CLUSTER * PER_TABLE);
    before = layout->tables_before = g_new0(guint32, (gsize)layout->l1_size + 1);
    for (guint i = 0; i < layout->runs->len; i++) {
        guint64 first = run_at(layout, i)->cluster;
        guint64 last = first + run_length(layout, i) - 1;

        for (guint64 entry = first / PER_TABLE; entry <= last / PER_TABLE; entry++) {
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
    guint64 l1 = divide_up(layout->l1_size, PER_TABLE);
    guint64 l2 = layout->tables_before[layout->l1_size];
    guint64 table = 0, blocks = 0, total, wanted;

    do {
        total = 1 + table + blocks + l1 + l2 + layout->data;
        wanted = divide_up(total, PER_REFCOUNTS);
        if (wanted <= blocks) {
            break;
        }
        blocks = wanted;
        table = divide_up(blocks, PER_TABLE);
    } while (TRUE);
    layout->start[PART_HEADER] = 0;
    layout->start[PART_REFTABLE] = 1;
    layout->start[PART_REFBLOCKS] = 1 + table;
    layout->start[PART_L1] = layout->start[PART_REFBLOCKS] + blocks;
    layout->start[PART_L2] = layout->start[PART_L1] + l1;
    layout->start[PART_DATA] = layout->start[PART_L2] + l2;
    layout->start[PART_END] = layout->start[PART_DATA] + layout->data;
}

BeQcow2Layout *be_qcow2_layout_new(const BeExtents *extents, guint64 size, GError **error)
{
    BeQcow2Layout *layout;

    if (size > BE_QCOW2_DISK_MAX) {
        g_set_error(error, BE_ERROR, EFBIG, "a disk of more than 1 PiB cannot be shown as qcow2");
        return NULL;
    }
    layout = g_new0(BeQcow2Layout, 1);
    layout->size = size;
    layout->runs = g_array_new(FALSE, FALSE, sizeof(Run));
    find_runs(layout, extents);
    count_tables(layout);
    place(layout);
    return layout;
}

void be_qcow2_layout_free(BeQcow2Layout *layout)
{
    if (!layout) {
        return;
    }
    g_array_unref(layout->runs);
    g_free(layout->tables_before);
    g_free(layout);
}

guint64 be_qcow2_layout_file_size(const BeQcow2Layout *layout)
{
    return layout->start[PART_END] * CLUSTER;
}

/* ---- Finding ---- */

/* The last run that begins at or in front of a data cluster; there is one. */
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

        if (run_at(layout, middle)->cluster + run_length(layout, middle) > cluster) {
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
    guint64 data_start = layout->start[PART_DATA] * CLUSTER;
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
    data_cluster = (offset - data_start) / CLUSTER;
    index = run_of_data(layout, data_cluster);
    run = run_at(layout, index);
    ret_piece->kind = BE_QCOW2_DATA;
    ret_piece->disk_offset =
        (run->cluster + data_cluster - run->before) * CLUSTER + offset % CLUSTER;
    end = (run->cluster + run_length(layout, index)) * CLUSTER;
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
    guint64 cluster = disk_offset / CLUSTER;
    guint index = run_behind(layout, cluster);
    const Run *run;

    if (disk_offset >= layout->size || index == layout->runs->len
        || run_at(layout, index)->cluster > cluster) {
        return FALSE;
    }
    run = run_at(layout, index);
    *ret_offset = (layout->start[PART_DATA] + run->before + cluster - run->cluster) * CLUSTER
                  + disk_offset % CLUSTER;
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

/* What is 0 is left out: no backing file, no encryption, no snapshots, no features. */
static void fill_header(const BeQcow2Layout *layout, guint8 *buffer)
{
    put32(buffer, 0, MAGIC);
    put32(buffer, 4, 3);
    put32(buffer, 20, CLUSTER_BITS);
    put64(buffer, 24, layout->size);
    put32(buffer, 36, layout->l1_size);
    put64(buffer, 40, layout->start[PART_L1] * CLUSTER);
    put64(buffer, 48, layout->start[PART_REFTABLE] * CLUSTER);
    put32(buffer, 56, (guint32)(layout->start[PART_REFBLOCKS] - layout->start[PART_REFTABLE]));
    put32(buffer, 96, REFCOUNT_ORDER);
    put32(buffer, 100, HEADER_LENGTH);
}

static void fill_reftable(const BeQcow2Layout *layout, guint64 index, guint8 *buffer)
{
    guint64 first = layout->start[PART_REFBLOCKS] + index * PER_TABLE;
    guint64 end = MIN(first + PER_TABLE, layout->start[PART_L1]);

    for (guint64 block = first; block < end; block++) {
        put64(buffer, (block - first) * 8, block * CLUSTER);
    }
}

static void fill_refcounts(const BeQcow2Layout *layout, guint64 index, guint8 *buffer)
{
    guint64 first = index * PER_REFCOUNTS;
    guint64 end = MIN(first + PER_REFCOUNTS, layout->start[PART_END]);

    for (guint64 cluster = first; cluster < end; cluster++) {
        buffer[(cluster - first) * 2 + 1] = 1;
    }
}

static void fill_l1(const BeQcow2Layout *layout, guint64 index, guint8 *buffer)
{
    guint64 first = index * PER_TABLE;
    guint64 end = MIN(first + PER_TABLE, layout->l1_size);

    for (guint64 entry = first; entry < end; entry++) {
        guint32 before = layout->tables_before[entry];

        if (layout->tables_before[entry + 1] > before) {
            put64(buffer, (entry - first) * 8,
                  (layout->start[PART_L2] + before) * CLUSTER | COPIED);
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
    guint64 first = (guint64)entry_of_table(layout, table) * PER_TABLE;

    for (guint i = run_behind(layout, first); i < layout->runs->len; i++) {
        const Run *run = run_at(layout, i);
        guint64 from = MAX(run->cluster, first);
        guint64 end = MIN(run->cluster + run_length(layout, i), first + PER_TABLE);
        guint64 base = layout->start[PART_DATA] + run->before;

        if (run->cluster >= first + PER_TABLE) {
            break;
        }
        for (guint64 cluster = from; cluster < end; cluster++) {
            put64(buffer, (cluster - first) * 8,
                  (base + cluster - run->cluster) * CLUSTER | COPIED);
        }
    }
}

static void fill_cluster(const BeQcow2Layout *layout, guint64 cluster, guint8 *buffer)
{
    memset(buffer, 0, CLUSTER);
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
        gsize inside = offset % CLUSTER;
        gsize count = MIN(length, CLUSTER - inside);

        if (count == CLUSTER) {
            fill_cluster(layout, offset / CLUSTER, to);
        } else {
            part = part ? part : g_malloc(CLUSTER);
            fill_cluster(layout, offset / CLUSTER, part);
            memcpy(to, part + inside, count);
        }
        to += count;
        offset += count;
        length -= count;
    }
}
