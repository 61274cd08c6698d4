/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-image.c - backend/image.c on images made by qemu-img and by hand, and what
 * it tells QEMU.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "qcow2.h"
#include "tool.h"

static const char *const tools[] = {"qemu-img", "qemu-io", "qemu-nbd", "nbdcopy", "nbdinfo", NULL};

#define MIB (1024 * 1024)

/* ---- Chains ------------------------------------------------------------- */

static char *dir;

static char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

static char *write_header(const char *name, const Qcow2Header *header)
{
    char *path = in_dir(name);
    g_autoptr(GError) error = NULL;

    g_file_set_contents(path, (const char *)header->data, (gssize)header->length, &error);
    g_assert_no_error(error);
    return path;
}

static void assert_refused(const char *path, const char *format, int errnum)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) chain = be_image_chain_inspect(path, format, &error);

    g_test_message("%s: %s", path, error ? error->message : "accepted");
    g_assert_null(chain);
    g_assert_error(error, BE_ERROR, errnum);
}

static GPtrArray *inspect(const char *path, const char *format)
{
    g_autoptr(GError) error = NULL;
    GPtrArray *chain = be_image_chain_inspect(path, format, &error);

    g_assert_no_error(error);
    return chain;
}

static void assert_image(const GPtrArray *chain, guint i, const char *path, const char *format,
                         guint64 size)
{
    const BeImage *image = g_ptr_array_index(chain, i);

    g_assert_cmpstr(image->path, ==, path);
    g_assert_cmpstr(image->format, ==, format);
    g_assert_cmpuint(image->size, ==, size);
    g_assert_false(image->block_device);
}

/* raw <- qcow2 (relative name) <- qcow2 (larger): each writes its own pattern. */
static void make_chain(const char *base, const char *middle, const char *top)
{
    g_autofree char *name = g_path_get_basename(base);
    /* The "./" hides colons from QEMU's search for a protocol. */
    g_autofree char *base_name = g_strconcat("./", name, NULL);

    TOOL_OK("qemu-img", "create", "-q", "-f", "raw", "--", base, "1M");
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", base_name, "-F", "raw", "--", middle);
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", "--", top,
            "2M");
    TOOL_OK("qemu-io", "-f", "raw", "-c", "write -P 1 0 512k", base);
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -P 2 64k 64k", middle);
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 64k", top);
}

static void test_chain(void)
{
    g_autofree char *base = in_dir("./base.img");
    g_autofree char *middle = in_dir("middle.img");
    g_autofree char *top = in_dir("top.img");
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GPtrArray) again = NULL;
    g_autoptr(GPtrArray) shorter = NULL;

    if (tool_missing(tools)) {
        return;
    }
    make_chain(base, middle, top);
    chain = inspect(top, "qcow2");
    g_assert_cmpuint(chain->len, ==, 3);
    assert_image(chain, 0, top, "qcow2", 2 * MIB);
    assert_image(chain, 1, middle, "qcow2", MIB);
    assert_image(chain, 2, base, "raw", MIB);
    g_assert_cmpuint(be_image_chain_size(chain), ==, 2 * MIB);
    g_assert_cmpuint(be_image_chain_allocated(chain), >=, 640 * 1024);
    g_assert_cmpuint(be_image_chain_allocated(chain), <=, 2 * MIB);
    again = inspect(top, "qcow2");
    shorter = inspect(middle, "qcow2");
    g_assert_true(be_image_chain_equal(chain, again));
    g_assert_false(be_image_chain_equal(chain, shorter));
}

/* faults.md 108: what the XML calls raw is raw, whatever is in it. */
static void test_raw_is_raw(void)
{
    Qcow2Header header = qcow2_backed("/etc/passwd", "raw");
    g_autofree char *path = write_header("hostile.raw", &header);
    g_autoptr(GPtrArray) chain = inspect(path, "raw");

    g_assert_cmpuint(chain->len, ==, 1);
    assert_image(chain, 0, path, "raw", QCOW2_HEADER_BYTES);
    assert_refused(path, NULL, EOPNOTSUPP);
    assert_refused(path, "vmdk", EOPNOTSUPP);
    assert_refused(path, "", EOPNOTSUPP);
    assert_refused(path, "QCOW2", EOPNOTSUPP);
}

static void test_allocated(void)
{
    g_autofree char *path = in_dir("empty.raw");
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GPtrArray) written = NULL;

    g_assert_true(g_file_set_contents(path, "", 0, NULL));
    g_assert_cmpint(truncate(path, 10 * MIB), ==, 0);
    chain = inspect(path, "raw");
    g_assert_cmpuint(be_image_chain_allocated(chain), ==, 0);
    g_assert_true(g_file_set_contents(path, "x", 1, NULL));
    written = inspect(path, "raw");
    g_assert_cmpuint(be_image_chain_size(written), ==, 512);
    g_assert_cmpuint(be_image_chain_allocated(written), ==, 4096);
}

/* faults.md 109 */
static void test_backing_names(void)
{
    static const struct {
        const char *name;
        int errnum;
    } rows[] = {
        {"json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", EOPNOTSUPP},
        {"nbd://127.0.0.1/x", EOPNOTSUPP},
        {"nbd:unix:/run/x", EOPNOTSUPP},
        {"nbd+unix:///x?socket=/run/x", EOPNOTSUPP},
        {"http://127.0.0.1/x", EOPNOTSUPP},
        {"fat:rw:/etc", EOPNOTSUPP},
        {"rbd:pool/x", EOPNOTSUPP},
        {"fuse-1:x", EOPNOTSUPP},
        {"1:x", EOPNOTSUPP},
        {":x", EOPNOTSUPP},
        {"a b:c", EOPNOTSUPP},
        {"file:relative", EOPNOTSUPP},
        {"file:", EOPNOTSUPP},
        {"file:json:{}", EOPNOTSUPP},
        {"missing.img", ENOENT},
        {"file:/nonexistent/x", ENOENT},
        {"/nonexistent/a:b", ENOENT},
        {"./a:b", ENOENT},
        {"/dev/null", EOPNOTSUPP},
        {"/etc", EOPNOTSUPP},
        {"../../../../../../../../etc/hostname/x", ENOTDIR},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        Qcow2Header header = qcow2_backed(rows[i].name, "raw");
        g_autofree char *path = write_header("names.qcow2", &header);

        assert_refused(path, "qcow2", rows[i].errnum);
    }
}

static void test_backing_file_prefix(void)
{
    g_autofree char *base = in_dir("a:b.img");
    g_autofree char *name = g_strconcat("file:", base, NULL);
    Qcow2Header header = qcow2_backed(name, "raw");
    Qcow2Header relative = qcow2_backed("./a:b.img", "raw");
    g_autofree char *path = write_header("prefix.qcow2", &header);
    g_autofree char *other = write_header("relative.qcow2", &relative);
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GPtrArray) relative_chain = NULL;

    g_assert_true(g_file_set_contents(base, "x", 1, NULL));
    chain = inspect(path, "qcow2");
    assert_image(chain, 1, base, "raw", 512);
    relative_chain = inspect(other, "qcow2");
    g_assert_cmpuint(relative_chain->len, ==, 2);
}

static void test_features(void)
{
    static const struct {
        gsize at;
        guint64 value;
        int errnum;
    } rows[] = {
        {72, 1 << 1, EIO},
        {72, 1 << 2, EOPNOTSUPP},
        {72, 1 << 5, EOPNOTSUPP},
        {72, G_GUINT64_CONSTANT(1) << 63, EOPNOTSUPP},
        {32, G_GUINT64_CONSTANT(1) << 32, EOPNOTSUPP},
        {32, G_GUINT64_CONSTANT(2) << 32, EOPNOTSUPP},
    };
    Qcow2Header header = qcow2_plain();
    g_autofree char *path = NULL;
    g_autoptr(GPtrArray) chain = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        header = qcow2_plain();
        qcow2_put64(&header, rows[i].at, rows[i].value);
        g_free(path);
        path = write_header("features.qcow2", &header);
        assert_refused(path, "qcow2", rows[i].errnum);
    }
    header = qcow2_plain();
    qcow2_put64(&header, 72, 1 | 1 << 3 | 1 << 4);
    g_free(path);
    path = write_header("features.qcow2", &header);
    chain = inspect(path, "qcow2");
    g_assert_true(((const BeImage *)chain->pdata[0])->dirty);
}

static void test_no_format(void)
{
    g_autofree char *base = in_dir("noformat-base.img");
    Qcow2Header header = qcow2_backed(base, NULL);
    Qcow2Header vmdk = qcow2_backed(base, "vmdk");
    g_autofree char *path = write_header("noformat.qcow2", &header);
    g_autofree char *other = write_header("vmdk.qcow2", &vmdk);

    g_assert_true(g_file_set_contents(base, "x", 1, NULL));
    assert_refused(path, "qcow2", EOPNOTSUPP);
    assert_refused(other, "qcow2", EOPNOTSUPP);
}

static void test_loops(void)
{
    g_autofree char *self = in_dir("self.qcow2");
    g_autofree char *link_path = in_dir("link.qcow2");
    Qcow2Header to_self = qcow2_backed("self.qcow2", "qcow2");
    Qcow2Header to_b = qcow2_backed("b.qcow2", "qcow2");
    Qcow2Header to_link = qcow2_backed("link.qcow2", "qcow2");
    g_autofree char *a = NULL;
    g_autofree char *b = NULL;

    g_free(write_header("self.qcow2", &to_self));
    assert_refused(self, "qcow2", ELOOP);
    a = write_header("a.qcow2", &to_b);
    b = write_header("b.qcow2", &to_link);
    g_assert_cmpint(symlink("a.qcow2", link_path), ==, 0);
    assert_refused(a, "qcow2", ELOOP);
    assert_refused(b, "qcow2", ELOOP);
}

static void test_depth(void)
{
    g_autofree char *longest = in_dir("d199.qcow2");
    g_autofree char *longer = in_dir("d200.qcow2");
    g_autoptr(GPtrArray) chain = NULL;
    g_autofree char *json = NULL;
    Qcow2Header header = qcow2_plain();

    g_free(write_header("d0.qcow2", &header));
    for (int i = 1; i <= 200; i++) {
        g_autofree char *name = g_strdup_printf("d%d.qcow2", i);
        g_autofree char *below = g_strdup_printf("d%d.qcow2", i - 1);

        header = qcow2_backed(below, "qcow2");
        g_free(write_header(name, &header));
    }
    chain = inspect(longest, "qcow2");
    g_assert_cmpuint(chain->len, ==, 200);
    json = be_image_chain_json(chain, NULL);
    g_assert_nonnull(json);
    assert_refused(longer, "qcow2", EOPNOTSUPP);
}

static void test_kinds(void)
{
    g_autofree char *fifo = in_dir("fifo");
    g_autofree char *missing = in_dir("missing");
    g_autofree char *empty = in_dir("empty");

    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    assert_refused(fifo, "raw", EOPNOTSUPP);
    assert_refused(dir, "raw", EOPNOTSUPP);
    assert_refused("/dev/zero", "raw", EOPNOTSUPP);
    assert_refused(missing, "raw", ENOENT);
    assert_refused("relative.img", "raw", EINVAL);
    g_assert_true(g_file_set_contents(empty, "", 0, NULL));
    assert_refused(empty, "qcow2", EIO);
}

/* ---- QEMU --------------------------------------------------------------- */

static void test_json_text(void)
{
    Qcow2Header header = qcow2_backed("base.raw", "raw");
    g_autofree char *path = write_header("json.qcow2", &header);
    g_autofree char *base = in_dir("base.raw");
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GPtrArray) base_only = NULL;
    g_autofree char *json = NULL;
    g_autofree char *expected = NULL;

    g_assert_true(g_file_set_contents(base, "x", 1, NULL));
    chain = inspect(path, "qcow2");
    json = be_image_chain_json(chain, NULL);
    expected = g_strdup_printf("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
                               "\"filename\":\"%s\",\"locking\":\"auto\"},\"backing\":{"
                               "\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
                               "\"filename\":\"%s\",\"locking\":\"auto\"}}}",
                               path, base);
    g_assert_cmpstr(json, ==, expected);
    header = qcow2_plain();
    g_free(path);
    path = write_header("json.qcow2", &header);
    base_only = inspect(path, "qcow2");
    g_free(json);
    json = be_image_chain_json(base_only, NULL);
    g_assert_true(g_str_has_suffix(json, "\"backing\":null}"));
}

static void test_json_refuses(void)
{
    BeImage image = {.path = (char *)"/\xff", .format = "raw"};
    g_autofree char *long_path = g_strnfill(128 * 1024, '/');
    g_autoptr(GPtrArray) chain = g_ptr_array_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(GError) long_error = NULL;

    g_ptr_array_add(chain, &image);
    g_assert_null(be_image_chain_json(chain, &error));
    g_assert_error(error, BE_ERROR, EOPNOTSUPP);
    image.path = long_path;
    g_assert_null(be_image_chain_json(chain, &long_error));
    g_assert_error(long_error, BE_ERROR, EOPNOTSUPP);
}

/* Reads a chain through qemu-nbd and through QEMU's own rules: no difference. */
static void compare_with_qemu(const char *base, const char *middle, const char *top)
{
    g_autofree char *copy = in_dir("copy.raw");
    g_autofree char *socket = in_dir("socket");
    g_autofree char *pid_file = in_dir("pid");
    g_autofree char *uri = g_strdup_printf("nbd+unix:///?socket=%s", socket);
    g_autofree char *size = NULL;
    g_autofree char *expected = NULL;
    g_autofree char *json = NULL;
    g_autofree char *top_name = g_strconcat("file:", top, NULL);
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GError) error = NULL;

    make_chain(base, middle, top);
    chain = inspect(top, "qcow2");
    g_assert_cmpuint(chain->len, ==, 3);
    json = be_image_chain_json(chain, &error);
    g_assert_no_error(error);
    TOOL_OK("qemu-nbd", "--read-only", "--fork", "--persistent", "--pid-file", pid_file, "-k",
            socket, json);
    g_assert_cmpint(tool_run((const char *const[]){"nbdinfo", "--size", uri, NULL}, &size), ==, 0);
    expected = g_strdup_printf("%" G_GUINT64_FORMAT "\n", be_image_chain_size(chain));
    g_assert_cmpstr(size, ==, expected);
    TOOL_OK("nbdcopy", uri, copy);
    tool_stop_server(pid_file);
    TOOL_OK("qemu-img", "compare", "-f", "raw", "-F", "qcow2", copy, top_name);
    g_remove(copy);
}

static void test_json_names(void)
{
    static const char *const names[] = {
        "plain", "two words", "\"quoted\" 'twice'", "a,b,,c=d", "-r", "nbd:x", "back\\slash",
        "new\nline", "tab\t\x01", "\x1e\x1f\x7f", "100%s%n", "{\"driver\":\"raw\"}",
        "\xc3\xa9\xf0\x9f\x90\xa7", "json:{}", "file.driver=file",
    };

    if (tool_missing(tools)) {
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *base = g_strdup_printf("%s/x-%s.img", dir, names[i]);
        g_autofree char *middle = g_strdup_printf("%s/%s.middle", dir, names[i]);
        g_autofree char *top = g_strdup_printf("%s/%s", dir, names[i]);

        compare_with_qemu(base, middle, top);
    }
}

/* Sizes that are no whole sectors are those QEMU shows (faults.md 46). */
static void test_odd_sizes(void)
{
    static const off_t sizes[] = {1, 511, 512, 513, 1000, MIB + 1};
    g_autofree char *raw = in_dir("odd.raw");

    if (tool_missing(tools)) {
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(GPtrArray) chain = NULL;
        g_autofree char *json = NULL;
        g_autofree char *info = NULL;
        g_autofree char *expected = NULL;

        g_assert_true(g_file_set_contents(raw, "", 0, NULL));
        g_assert_cmpint(truncate(raw, sizes[i]), ==, 0);
        chain = inspect(raw, "raw");
        json = be_image_chain_json(chain, NULL);
        expected = g_strdup_printf("\"virtual-size\": %" G_GUINT64_FORMAT ",",
                                   be_image_chain_size(chain));
        tool_run((const char *const[]){"qemu-img", "info", "--output=json", json, NULL}, &info);
        g_assert_nonnull(strstr(info, expected));
    }
}

static void test_block_device(void)
{
    g_autofree char *file = in_dir("loop.img");
    g_autofree char *device = NULL;
    g_autofree char *json = NULL;
    g_autofree char *copy = in_dir("loop.copy");
    g_autoptr(GPtrArray) chain = NULL;
    const BeImage *image = NULL;

    if (tool_missing(tools) || tool_missing((const char *const[]){"losetup", NULL})) {
        return;
    }
    TOOL_OK("truncate", "-s", "4M", file);
    if (tool_run((const char *const[]){"losetup", "-f", "--show", file, NULL}, &device) != 0) {
        g_test_skip("no loop device to be had");
        return;
    }
    g_strchomp(device);
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", device, "1M");
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 64k", device);
    chain = inspect(device, "qcow2");
    image = chain->pdata[0];
    g_assert_true(image->block_device);
    g_assert_cmpuint(image->size, ==, MIB);
    g_assert_cmpuint(image->allocated, >, 0);
    json = be_image_chain_json(chain, NULL);
    g_assert_nonnull(strstr(json, "host_device"));
    TOOL_OK("qemu-img", "convert", "-O", "raw", json, copy);
    TOOL_OK("qemu-img", "compare", "-f", "raw", "-F", "qcow2", copy, device);
    TOOL_OK("losetup", "-d", device);
}

int main(int argc, char **argv)
{
    int result = 0;

    g_test_init(&argc, &argv, NULL);
    dir = tool_dir_new();
    g_test_add_func("/image/chain/made", test_chain);
    g_test_add_func("/image/chain/raw-is-raw", test_raw_is_raw);
    g_test_add_func("/image/chain/allocated", test_allocated);
    g_test_add_func("/image/chain/backing-names", test_backing_names);
    g_test_add_func("/image/chain/backing-file-prefix", test_backing_file_prefix);
    g_test_add_func("/image/chain/features", test_features);
    g_test_add_func("/image/chain/no-format", test_no_format);
    g_test_add_func("/image/chain/loops", test_loops);
    g_test_add_func("/image/chain/depth", test_depth);
    g_test_add_func("/image/chain/kinds", test_kinds);
    g_test_add_func("/image/json/text", test_json_text);
    g_test_add_func("/image/json/refuses", test_json_refuses);
    g_test_add_func("/image/json/names", test_json_names);
    g_test_add_func("/image/json/odd-sizes", test_odd_sizes);
    g_test_add_func("/image/json/block-device", test_block_device);
    result = g_test_run();
    tool_dir_remove(dir);
    return result;
}
