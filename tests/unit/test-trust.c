/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-trust.c - backend/trust*.c and backend/image-meta.c: records, chains of then
 * and now, and what QEMU's own tools put into an image.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image-meta.h"
#include "record.h"
#include "tool.h"
#include "trust-priv.h"

static const char *const tools[] = {"qemu-img", "qemu-io", NULL};

static Be be;
static char *dir;

static char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

/* ---- Chains of then and now ------------------------------------------------------- */

/* "base=1" is the file "base" with the content "1"; "base" says nothing of it. */
static GPtrArray *images_of(const char *text)
{
    GPtrArray *images = be_trust_images_new();
    g_auto(GStrv) words = g_strsplit(text, " ", -1);

    for (char **word = words; *word; word++) {
        BeTrustImage *image = g_new0(BeTrustImage, 1);
        g_auto(GStrv) parts = g_strsplit(*word, "=", 2);

        image->path = g_strconcat("/", parts[0], NULL);
        image->identity = g_strdup(parts[0]);
        image->content = g_strdup(parts[1]);
        g_ptr_array_add(images, image);
    }
    return images;
}

typedef struct {
    const char *then;
    const char *now;
    int holder;                /* -1: refused */
    guint grown;
    const char *why;           /* part of the reason */
} ChainCase;

static const ChainCase chain_cases[] = {
    {"a", "a", 0, 0, NULL},
    {"a base=1", "a base=1", 0, 0, NULL},
    /* Snapshots made since. */
    {"a base=1", "n a base=1", 1, 1, NULL},
    {"a base=1", "o n a base=1", 2, 2, NULL},
    /* Snapshots deleted since: merged into the next one. */
    {"b a base=1", "a base=1", 0, 0, NULL},
    {"c b a", "a", 0, 0, NULL},
    {"b a base=1", "n a base=1", 1, 1, NULL},
    /* One in the middle, into the one below it, which changed by that. */
    {"c b a=1", "c a=2", 0, 0, NULL},
    {"c b=1 a=1", "c a=2", 0, 0, NULL},
    {"c b a", "c a", -1, 0, "'/b' is gone"},
    {"c b=1 a=1", "c a=1", -1, 0, "'/b' is gone"},
    {"c b a=1", "c a=1", -1, 0, "'/b' is gone"},
    /* Replaced, pulled, copied. */
    {"a", "b", -1, 0, "none of its images"},
    {"a base", "n", -1, 0, "none of its images"},
    {"a base=1", "a", -1, 0, "'/base' is gone"},
    {"a base=1", "a other=1", -1, 0, "'/base' is gone"},
    {"b a base=1", "b base=1", -1, 0, "'/a' is gone"},
    /* Written to by somebody else. */
    {"a base=1", "a base=2", -1, 0, "'/base' was written to"},
    {"b a base=1", "b a base=2", -1, 0, "'/base' was written to"},
    {"a mid=1 base=1", "a mid=1 base=2", -1, 0, "'/base' was written to"},
    /* The old one is below, and has got something below it. */
    {"a", "a base=1", -1, 0, "'/base' was not there"},
    {"a base=1", "a x base=1", -1, 0, "'/base' is gone"},
};

static void test_chains(void)
{
    for (gsize i = 0; i < G_N_ELEMENTS(chain_cases); i++) {
        const ChainCase *row = &chain_cases[i];
        g_autoptr(GPtrArray) then = images_of(row->then);
        g_autoptr(GPtrArray) now = images_of(row->now);
        BeTrustDisk disk = {.target = (char *)"vda", .images = then};
        guint holder = 0, grown = 0;
        g_autofree char *why = be_trust_compare(&disk, now, &holder, &grown);

        g_test_message("%s -> %s: %s", row->then, row->now, why ? why : "valid");
        if (row->holder < 0) {
            g_assert_nonnull(why);
            g_assert_nonnull(strstr(why, row->why));
            g_assert_nonnull(strstr(why, "'vda'"));
        } else {
            g_assert_null(why);
            g_assert_cmpuint(holder, ==, row->holder);
            g_assert_cmpuint(grown, ==, row->grown);
        }
    }
}

/* ---- Records ------------------------------------------------------------------------ */

static BeTrustRecord *make_record(const char *uuid, const char *name)
{
    BeXmlDomain domain = {.uuid = (char *)uuid, .name = (char *)"web \xc3\xa4"};
    BeCaller owner = {.uid = 7, .gid = 8, .pid = 9};

    return be_trust_record_new(&domain, name, "nightly", "id-1", "monday", "sunday", &owner);
}

static void put_image(const char *path, gboolean backing)
{
    g_autofree char *base = in_dir("base.raw");

    g_remove(path);
    if (backing) {
        TOOL_OK("qemu-img", "create", "-q", "-f", "raw", base, "1M");
        TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path);
    } else {
        TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
    }
}

static BeXmlDisk disk_at(char *path)
{
    return (BeXmlDisk){.target = (char *)"vda", .top = {.source = BE_XML_SOURCE_FILE, .path = path,
                                                        .format = (char *)"qcow2"}};
}

static void test_record(void)
{
    g_autoptr(BeTrustRecord) record = make_record("u-1", "monday/1");
    g_autofree char *path = in_dir("disk.qcow2");
    BeXmlDisk disk = disk_at(path);
    g_autoptr(GPtrArray) records = NULL;
    g_autoptr(BeTrustRecord) found = NULL;
    g_autoptr(GError) error = NULL;
    BeTrustDisk *then;

    if (tool_missing(tools)) {
        return;
    }
    put_image(path, TRUE);
    g_assert_true(be_trust_record_add_disk(record, &disk, 1 << 20, &error));
    g_assert_no_error(error);
    be_trust_disk_add_sample(be_trust_record_disk(record, "vda"), 65536, 4096, "abc");
    g_assert_true(be_trust_write(&be, record, &error));
    g_assert_no_error(error);

    g_assert_null(be_trust_find(&be, "u-1", "monday"));
    found = be_trust_find(&be, "u-1", "monday/1");
    g_assert_cmpstr(found->domain_name, ==, "web \xc3\xa4");
    g_assert_cmpstr(found->chain, ==, "nightly");
    g_assert_cmpstr(found->since, ==, "sunday");
    g_assert_cmpuint(found->owner.uid, ==, 7);
    g_assert_cmpint(found->created_us, ==, record->created_us);
    g_assert_false(found->taken);
    g_assert_null(found->broken);
    then = be_trust_record_disk(found, "vda");
    g_assert_cmpuint(then->images->len, ==, 2);
    g_assert_cmpuint(then->samples->len, ==, 1);
    g_assert_cmpuint(then->size, ==, 1 << 20);
    g_assert_null(((BeTrustImage *)g_ptr_array_index(then->images, 0))->content);
    g_assert_nonnull(((BeTrustImage *)g_ptr_array_index(then->images, 1))->content);

    g_assert_true(be_trust_taken(&be, "u-1", "monday/1", &error));
    g_assert_true(be_trust_break(&be, "u-1", "reverted", &error));
    g_assert_true(be_trust_break(&be, "u-1", "again", &error));
    g_assert_true(be_trust_break(&be, "u-2", "nothing there", &error));
    g_assert_no_error(error);
    records = be_trust_records(&be, "u-1");
    g_assert_cmpuint(records->len, ==, 1);
    g_assert_true(((BeTrustRecord *)g_ptr_array_index(records, 0))->taken);
    g_assert_cmpstr(((BeTrustRecord *)g_ptr_array_index(records, 0))->broken, ==, "reverted");

    be_trust_remove(&be, "u-1", "monday/1");
    g_assert_false(be_trust_taken(&be, "u-1", "monday/1", &error));
    g_assert_error(error, BE_ERROR, ENOENT);
}

static void test_order(void)
{
    g_autoptr(BeTrustRecord) first = make_record("u-1", "z");
    g_autoptr(BeTrustRecord) second = make_record("u-1", "a");
    g_autoptr(BeTrustRecord) other = make_record("u-2", "b");
    g_autoptr(GPtrArray) records = NULL;
    g_autoptr(GPtrArray) all = NULL;

    first->created_us = 1;
    second->created_us = 2;
    other->created_us = 3;
    g_assert_true(be_trust_write(&be, second, NULL));
    g_assert_true(be_trust_write(&be, other, NULL));
    g_assert_true(be_trust_write(&be, first, NULL));
    records = be_trust_records(&be, "u-1");
    all = be_trust_records(&be, NULL);
    g_assert_cmpuint(records->len, ==, 2);
    g_assert_cmpuint(all->len, ==, 3);
    g_assert_cmpstr(((BeTrustRecord *)g_ptr_array_index(records, 0))->name, ==, "z");
    g_assert_cmpstr(((BeTrustRecord *)g_ptr_array_index(records, 1))->name, ==, "a");
    be_trust_remove(&be, "u-1", "z");
    be_trust_remove(&be, "u-1", "a");
    be_trust_remove(&be, "u-2", "b");
}

#define WHO                                                                                        \
    "\"domain-uuid\": \"u\", \"domain-name\": \"n\", \"checkpoint\": \"c\", \"chain\": \"x\","     \
    " \"backup-id\": \"i\", \"backup\": \"b\""

static gboolean makes_sense(const char *text)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = be_record_parse(text, strlen(text), &error);
    g_autoptr(BeTrustRecord) record = NULL;

    g_assert_no_error(error);
    record = be_trust_parse(object);
    return record != NULL;
}

static void test_nonsense(void)
{
    g_assert_true(makes_sense("{" WHO "}"));
    g_assert_false(makes_sense("{}"));
    g_assert_false(makes_sense("{" WHO ", \"disks\": [1]}"));
    g_assert_false(makes_sense("{" WHO ", \"disks\": [{\"target\": \"vda\"}]}"));
#define DISK "\"target\": \"vda\", \"bitmap\": \"c\", \"size\": 100"
#define IMAGES "\"images\": [{\"path\": \"/a\", \"identity\": \"1\"}]"
    g_assert_true(makes_sense("{" WHO ", \"disks\": [{" DISK ", " IMAGES "}]}"));
    g_assert_false(makes_sense("{" WHO ", \"disks\": [{" DISK ", \"images\": []}]}"));
    g_assert_false(makes_sense("{" WHO ", \"disks\": [{" DISK ", " IMAGES "}, {" DISK ", " IMAGES
                               "}]}"));
#define WITH(samples)                                                                              \
    "{" WHO ", \"disks\": [{" DISK ", " IMAGES ", \"samples\": [" samples "]}]}"
    g_assert_true(makes_sense(WITH("{\"offset\": 98, \"length\": 2, \"digest\": \"x\"}")));
    g_assert_false(makes_sense(WITH("{\"offset\": 99, \"length\": 2, \"digest\": \"x\"}")));
    g_assert_false(makes_sense(WITH("{\"offset\": 0, \"length\": -2, \"digest\": \"x\"}")));
    g_assert_false(makes_sense(WITH("{\"offset\": 0, \"length\": 2}")));
    g_assert_false(makes_sense(
        WITH("{\"offset\": 9223372036854775807, \"length\": 9, \"digest\": \"x\"}")));
}

static void test_identity(void)
{
    g_autofree char *path = in_dir("disk.qcow2");
    g_autofree char *copy = in_dir("copy.qcow2");
    BeXmlDisk disk = disk_at(path);
    g_autoptr(GPtrArray) before = NULL;
    g_autoptr(GPtrArray) after = NULL;
    g_autoptr(GError) error = NULL;

    if (tool_missing(tools)) {
        return;
    }
    put_image(path, FALSE);
    before = be_trust_images(&disk, &error);
    g_assert_no_error(error);
    /* Replaced under the same name, with the same bytes. */
    TOOL_OK("cp", "--preserve=all", path, copy);
    g_assert_cmpint(g_rename(copy, path), ==, 0);
    after = be_trust_images(&disk, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(((BeTrustImage *)g_ptr_array_index(before, 0))->identity, !=,
                    ((BeTrustImage *)g_ptr_array_index(after, 0))->identity);
    disk.top.format = (char *)"raw";
    g_assert_null(be_trust_images(&disk, &error));
    g_assert_error(error, BE_ERROR, EOPNOTSUPP);
}

/* ---- What is in an image ---------------------------------------------------------------- */

static void assert_bitmap(const char *path, const char *name, gboolean there, gboolean enabled)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) bitmaps = be_image_bitmaps(path, &error);
    const BeImageBitmap *bitmap;

    g_assert_no_error(error);
    bitmap = be_image_bitmap(bitmaps, name);
    g_assert_true((bitmap != NULL) == there);
    if (bitmap) {
        g_assert_true(bitmap->enabled == enabled);
        g_assert_false(bitmap->in_use);
    }
}

static void test_bitmaps(void)
{
    g_autofree char *path = in_dir("bitmaps.qcow2");

    if (tool_missing(tools)) {
        return;
    }
    put_image(path, FALSE);
    assert_bitmap(path, "one", FALSE, FALSE);
    TOOL_OK("qemu-img", "bitmap", "--add", path, "one");
    TOOL_OK("qemu-img", "bitmap", "--add", path, "a longer name of it");
    assert_bitmap(path, "one", TRUE, TRUE);
    assert_bitmap(path, "a longer name of it", TRUE, TRUE);
    assert_bitmap(path, "a longer name", FALSE, FALSE);
    TOOL_OK("qemu-img", "bitmap", "--disable", path, "one");
    assert_bitmap(path, "one", TRUE, FALSE);
    TOOL_OK("qemu-img", "bitmap", "--remove", path, "one");
    assert_bitmap(path, "one", FALSE, FALSE);
    assert_bitmap(path, "a longer name of it", TRUE, TRUE);
    TOOL_OK("qemu-img", "bitmap", "--remove", path, "a longer name of it");
    assert_bitmap(path, "a longer name of it", FALSE, FALSE);
}

static guint count_allocated(const char *path, guint most, guint64 *ret_first)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) ranges = be_image_allocated(path, most, &error);

    g_assert_no_error(error);
    if (ranges->len > 0) {
        *ret_first = g_array_index(ranges, BeImageRange, 0).offset;
    }
    return ranges->len;
}

static void test_allocated(gconstpointer options)
{
    g_autofree char *path = in_dir("allocated.qcow2");
    guint64 first = 0;

    if (tool_missing(tools)) {
        return;
    }
    g_remove(path);
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1G");
    g_assert_cmpuint(count_allocated(path, 10, &first), ==, 0);
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -P 1 512M 4k", path);
    g_assert_cmpuint(count_allocated(path, 10, &first), ==, 1);
    g_assert_cmpuint(first, ==, 512 * 1024 * 1024);
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -z 0 2M", path);
    g_assert_cmpuint(count_allocated(path, 10000, &first), >, 1);
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64M", path);
    g_assert_cmpuint(count_allocated(path, 10, &first), ==, 10);
}

/* Nothing in it may lead out of the file or round in circles. */
static void test_damaged(void)
{
    g_autofree char *path = in_dir("damaged.qcow2");
    g_autoptr(GRand) rand = g_rand_new_with_seed(5);

    if (tool_missing(tools)) {
        return;
    }
    put_image(path, FALSE);
    TOOL_OK("qemu-img", "bitmap", "--add", path, "one");
    for (int round = 0; round < 400; round++) {
        g_autoptr(GArray) ranges = NULL;
        g_autoptr(GPtrArray) bitmaps = NULL;
        int fd = g_open(path, O_RDWR | O_CLOEXEC, 0);
        guint8 byte = (guint8)g_rand_int(rand);
        guint8 saved;
        /* The header, and anywhere in the tables. */
        off_t at = round % 2 ? g_rand_int_range(rand, 8, 300) : g_rand_int_range(rand, 0, 500000);

        if (pread(fd, &saved, 1, at) != 1) {
            saved = 0;
        }
        g_assert_cmpint(pwrite(fd, &byte, 1, at), ==, 1);
        bitmaps = be_image_bitmaps(path, NULL);
        ranges = be_image_allocated(path, 10, NULL);
        g_assert_cmpint(pwrite(fd, &saved, 1, at), ==, 1);
        close(fd);
    }
    assert_bitmap(path, "one", TRUE, TRUE);
}

int main(int argc, char **argv)
{
    int failed;

    g_test_init(&argc, &argv, NULL);
    dir = tool_dir_new();
    be.state_dir = dir;
    g_test_add_func("/trust/chains", test_chains);
    g_test_add_func("/trust/record", test_record);
    g_test_add_func("/trust/order", test_order);
    g_test_add_func("/trust/nonsense", test_nonsense);
    g_test_add_func("/trust/identity", test_identity);
    g_test_add_func("/image-meta/bitmaps", test_bitmaps);
    g_test_add_data_func("/image-meta/allocated", "compat=1.1", test_allocated);
    g_test_add_data_func("/image-meta/allocated-extended",
                         "compat=1.1,extended_l2=on,cluster_size=128k", test_allocated);
    g_test_add_func("/image-meta/damaged", test_damaged);
    failed = g_test_run();
    tool_dir_remove(dir);
    return failed;
}
