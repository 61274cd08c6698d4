/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-file-stream.c - backend/file-stream.c: every byte of a file, or EIO.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/file-stream.h"
#include "stream-tool.h"

/* No multiple of anything. */
#define SIZE (MIB + 3)

static guint8 *content;

static char *make_file(gsize size)
{
    char *path = stream_tool_path("file");
    g_autoptr(GError) error = NULL;

    g_file_set_contents(path, (char *)content, (gssize)size, &error);
    g_assert_no_error(error);
    return path;
}

static void assert_bytes(BeReader *reader, guint64 offset, gsize length, gsize expected)
{
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(read_into(reader, call, offset, length), ==, 0);
    g_assert_cmpint(call->result, ==, expected);
    g_assert_cmpmem(call->bytes, expected, content + offset, expected);
}

static void test_bytes(void)
{
    g_autofree char *path = make_file(SIZE);
    BeStream *stream = be_stream_new_file(path, SIZE);
    BeReader *reader = be_reader_new(stream);

    g_assert_cmpuint(be_stream_size(stream), ==, SIZE);
    g_assert_cmpuint(be_stream_allocated(stream), ==, SIZE);
    for (guint64 offset = 0; offset < SIZE; offset += 128 * KIB) {
        assert_bytes(reader, offset, 128 * KIB, MIN(128 * KIB, SIZE - offset));
    }
    assert_bytes(reader, 4095, 3, 3);
    assert_bytes(reader, SIZE - 5, 4096, 5);
    assert_bytes(reader, SIZE, 4096, 0);
    be_reader_free(reader);
    stream_end(stream);
    g_remove(path);
}

static void test_seek(void)
{
    g_autofree char *path = make_file(SIZE);
    BeStream *stream = be_stream_new_file(path, SIZE);
    int errnum;

    g_assert_cmpint(seek(stream, 0, TRUE, &errnum), ==, 0);
    g_assert_cmpint(seek(stream, 7, FALSE, &errnum), ==, SIZE);
    stream_end(stream);
    g_remove(path);
}

static void assert_eio(BeStream *stream)
{
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
    be_reader_free(reader);
}

static void test_other_size(void)
{
    g_autofree char *path = make_file(SIZE - 1);
    BeStream *stream = be_stream_new_file(path, SIZE);

    assert_eio(stream);
    stream_end(stream);
    g_remove(path);
}

static void test_no_file(void)
{
    g_autofree char *path = stream_tool_path("nothing");
    BeStream *stream = be_stream_new_file(path, SIZE);

    assert_eio(stream);
    stream_end(stream);
}

/* The file is cut while it is open: no zeroes. */
static void test_cut(void)
{
    g_autofree char *path = make_file(SIZE);
    BeStream *stream = be_stream_new_file(path, SIZE);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    assert_bytes(reader, 0, 1, 1);
    g_assert_cmpint(truncate(path, 4096), ==, 0);
    g_assert_cmpint(read_into(reader, call, SIZE - 4096, 4096), ==, EIO);
    be_reader_free(reader);
    stream_end(stream);
    g_remove(path);
}

static void test_failed(void)
{
    g_autofree char *path = make_file(SIZE);
    BeStream *stream = be_stream_new_file(path, SIZE);

    be_stream_fail(stream, "it ended");
    assert_eio(stream);
    stream_end(stream);
    g_remove(path);
}

int main(int argc, char **argv)
{
    int code;

    g_test_init(&argc, &argv, NULL);
    if (!stream_tool_begin()) {
        g_test_skip("nbdkit is not installed");
        return 77;
    }
    content = g_malloc(SIZE);
    for (gsize i = 0; i < SIZE; i++) {
        content[i] = (guint8)(i * 7 + i / 251);
    }
    g_test_add_func("/file-stream/bytes", test_bytes);
    g_test_add_func("/file-stream/seek", test_seek);
    g_test_add_func("/file-stream/other-size", test_other_size);
    g_test_add_func("/file-stream/no-file", test_no_file);
    g_test_add_func("/file-stream/cut", test_cut);
    g_test_add_func("/file-stream/failed", test_failed);
    code = g_test_run();
    stream_tool_end();
    g_free(content);
    return code;
}
