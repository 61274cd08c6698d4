/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-image-header.c - backend/image-header.c on headers no tool would make.
 */
#include <errno.h>
#include <string.h>

#include "image.h"
#include "qcow2.h"

#define MIB (1024 * 1024)

static int parse_code(const Qcow2Header *header)
{
    g_auto(BeImageHeader) parsed = {.version = 0};
    g_autoptr(GError) error = NULL;

    if (be_image_header_parse(header->data, header->length, &parsed, &error)) {
        g_assert_no_error(error);
        return 0;
    }
    g_assert_true(error && error->domain == BE_ERROR);
    return error->code;
}

static void test_header_fields(void)
{
    Qcow2Header header = qcow2_backed("base.img", "raw");
    g_auto(BeImageHeader) parsed = {.version = 0};

    qcow2_put64(&header, 72, 1);
    g_assert_true(be_image_header_parse(header.data, header.length, &parsed, NULL));
    g_assert_cmpuint(parsed.version, ==, 3);
    g_assert_cmpuint(parsed.cluster_bits, ==, 12);
    g_assert_cmpuint(parsed.size, ==, MIB);
    g_assert_true(parsed.dirty);
    g_assert_false(parsed.corrupt);
    g_assert_false(parsed.external_data);
    g_assert_cmpstr(parsed.backing_name, ==, "base.img");
    g_assert_cmpstr(parsed.backing_format, ==, "raw");
    g_assert_null(parsed.data_file);
}

static void test_header_data_file(void)
{
    Qcow2Header header = qcow2_plain();
    g_auto(BeImageHeader) parsed = {.version = 0};

    qcow2_put64(&header, 72, 4);
    qcow2_put64(&header, 88, 2);
    qcow2_put32(&header, 104, 0x44415441);
    qcow2_put32(&header, 108, 8);
    memcpy(header.data + 112, "data.raw", 8);
    g_assert_true(be_image_header_parse(header.data, header.length, &parsed, NULL));
    g_assert_true(parsed.external_data);
    g_assert_true(parsed.data_file_raw);
    g_assert_cmpstr(parsed.data_file, ==, "data.raw");
}

static void test_header_version2(void)
{
    Qcow2Header header = qcow2_plain();
    g_auto(BeImageHeader) parsed = {.version = 0};

    qcow2_put32(&header, 4, 2);
    /* In version 2 these bytes are extensions: an unknown one, then the end. */
    memset(header.data + 72, 0, 32);
    qcow2_put32(&header, 72, 0x12345678);
    qcow2_put32(&header, 76, 3);
    qcow2_put32(&header, 88, 0xe2792aca);
    qcow2_put32(&header, 92, 5);
    memcpy(header.data + 96, "qcow2", 5);
    qcow2_put64(&header, 104, 0);
    g_assert_true(be_image_header_parse(header.data, header.length, &parsed, NULL));
    g_assert_cmpstr(parsed.backing_format, ==, "qcow2");
    g_assert_cmpuint(parsed.incompatible, ==, 0);
}

typedef struct {
    gsize at;
    gsize bytes;               /* of the value: 4 or 8 */
    guint64 value;
    int errnum;
} Damage;

static const Damage damages[] = {
    {0, 4, 0x514649fa, EIO},
    {4, 4, 0, EOPNOTSUPP},
    {4, 4, 1, EOPNOTSUPP},
    {4, 4, 4, EOPNOTSUPP},
    {20, 4, 8, EIO},
    {20, 4, 22, EIO},
    {20, 4, 0xffffffff, EIO},
    {20, 4, 9, 0},
    {20, 4, 21, 0},
    {24, 8, G_MAXUINT64, EIO},
    {24, 8, G_MAXINT64, 0},
    {24, 8, 0, 0},
    {100, 4, 103, EIO},
    {100, 4, 0, EIO},
    {100, 4, 4097, EIO},
    {100, 4, 0xffffffff, EIO},
    {100, 4, 4096, 0},
    {108, 4, 0xffffffff, EIO},
    {108, 4, 4096, EIO},
    {8, 8, 4096, EIO},
    {8, 8, G_MAXUINT64, EIO},
    {8, 8, 4090, EIO},
    {8, 8, 0, 0},
    {16, 4, 1024, EIO},
    {16, 4, 0xffffffff, EIO},
    {16, 4, 0, 0},
    {16, 4, 9, EIO},
};

static void test_header_damages(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        Qcow2Header header = qcow2_backed("base.img", "raw");

        if (damages[i].bytes == 4) {
            qcow2_put32(&header, damages[i].at, (guint32)damages[i].value);
        } else {
            qcow2_put64(&header, damages[i].at, damages[i].value);
        }
        g_test_message("damage %" G_GSIZE_FORMAT, i);
        g_assert_cmpint(parse_code(&header), ==, damages[i].errnum);
    }
}

static void test_header_cut(void)
{
    Qcow2Header header = qcow2_backed("base.img", "raw");

    for (gsize length = 0; length <= 104; length++) {
        header.length = length;
        g_assert_cmpint(parse_code(&header), ==, EIO);
    }
    header.length = QCOW2_HEADER_BYTES;
    g_assert_cmpint(parse_code(&header), ==, 0);
}

static void test_header_twice(void)
{
    Qcow2Header header = qcow2_plain();

    for (gsize at = 104; at < 136; at += 16) {
        qcow2_put32(&header, at, 0xe2792aca);
        qcow2_put32(&header, at + 4, 3);
        memcpy(header.data + at + 8, "raw", 3);
    }
    g_assert_cmpint(parse_code(&header), ==, EIO);
}

static void test_header_name_limit(void)
{
    g_autofree char *name = g_strnfill(1023, 'a');
    Qcow2Header header = qcow2_backed(name, "raw");
    g_auto(BeImageHeader) parsed = {.version = 0};

    g_assert_true(be_image_header_parse(header.data, header.length, &parsed, NULL));
    g_assert_cmpstr(parsed.backing_name, ==, name);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/image/header/fields", test_header_fields);
    g_test_add_func("/image/header/data-file", test_header_data_file);
    g_test_add_func("/image/header/version2", test_header_version2);
    g_test_add_func("/image/header/damages", test_header_damages);
    g_test_add_func("/image/header/cut", test_header_cut);
    g_test_add_func("/image/header/twice", test_header_twice);
    g_test_add_func("/image/header/name-limit", test_header_name_limit);
    return g_test_run();
}
