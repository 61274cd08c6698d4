/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-imagelock.c - backend/imagelock.c against QEMU's own tools.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "imagelock.h"
#include "tool.h"

static const char *const tools[] = {"qemu-img", "qemu-io", "qemu-nbd", NULL};
static const char *const daemon_tools[] = {"qemu-storage-daemon", NULL};

static char *dir;

static char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

static char *make_image(const char *name, const char *format)
{
    char *path = in_dir(name);

    g_remove(path);
    TOOL_OK("qemu-img", "create", "-q", "-f", format, path, "1M");
    return path;
}

static GPtrArray *inspect(const char *path, const char *format)
{
    g_autoptr(GError) error = NULL;
    GPtrArray *chain = be_image_chain_inspect(path, format, &error);

    g_assert_no_error(error);
    return chain;
}

static BeImageLock *take(const char *path, const char *format)
{
    g_autoptr(GPtrArray) chain = inspect(path, format);
    g_autoptr(GError) error = NULL;
    BeImageLock *lock = be_image_lock_take(chain, &error);

    g_assert_no_error(error);
    return lock;
}

static void assert_busy(const char *path, const char *format)
{
    g_autoptr(GPtrArray) chain = inspect(path, format);
    g_autoptr(GError) error = NULL;

    g_assert_null(be_image_lock_take(chain, &error));
    g_assert_error(error, BE_ERROR, EBUSY);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, path));
}

static int write_to(const char *path, const char *format, char **ret_output)
{
    const char *const argv[] = {"qemu-io", "-f", format, "-c", "write -P 5 0 64k", path, NULL};

    return tool_run(argv, ret_output);
}

static void assert_write_refused(const char *path, const char *format)
{
    g_autofree char *output = NULL;

    g_assert_cmpint(write_to(path, format, &output), !=, 0);
    g_assert_nonnull(strstr(output, "Failed to get \"write\" lock"));
}

/* A server of ours in the background; ended by its own pid. */
typedef struct {
    char *socket;
    char *pid_file;
} Server;

static Server start_nbd(const char *path, const char *format, const char *mode)
{
    Server server = {in_dir("nbd.sock"), in_dir("nbd.pid")};

    TOOL_OK("qemu-nbd", "--fork", "--persistent", "--pid-file", server.pid_file, "-k",
            server.socket, "-f", format, mode, path);
    return server;
}

static void stop_server(Server *server)
{
    tool_stop_server(server->pid_file);
    g_free(server->socket);
    g_free(server->pid_file);
}

static void check_format(const char *format)
{
    g_autofree char *path = make_image("locked.img", format);
    g_autofree char *copy = in_dir("copy.img");
    g_autofree char *output = NULL;
    BeImageLock *lock = take(path, format);
    BeImageLock *second = take(path, format);
    Server reader;

    assert_write_refused(path, format);
    TOOL_OK("qemu-img", "convert", "-f", format, "-O", "raw", path, copy);
    reader = start_nbd(path, format, "--read-only");
    assert_write_refused(path, format);
    be_image_lock_free(lock);
    assert_write_refused(path, format);
    stop_server(&reader);
    be_image_lock_free(second);
    g_assert_cmpint(write_to(path, format, NULL), ==, 0);
    lock = take(path, format);
    g_assert_cmpint(tool_run((const char *const[]){"qemu-img", "resize", "-f", format, path, "2M",
                                                   NULL},
                             &output),
                    !=, 0);
    be_image_lock_free(lock);
    be_image_lock_free(NULL);
}

/* faults.md 70; facts.md: raw is where qemu-nbd -r alone does not lock. */
static void test_keeps_writers_off(void)
{
    if (tool_missing(tools)) {
        return;
    }
    check_format("raw");
    check_format("qcow2");
}

static void test_every_level(void)
{
    g_autofree char *base = NULL;
    g_autofree char *top = in_dir("top.qcow2");
    g_autoptr(BeImageLock) lock = NULL;

    if (tool_missing(tools)) {
        return;
    }
    base = make_image("base.raw", "raw");
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top);
    lock = take(top, "qcow2");
    assert_write_refused(top, "qcow2");
    assert_write_refused(base, "raw");
}

static void check_writer(const char *format)
{
    g_autofree char *path = make_image("busy.img", format);
    Server writer = start_nbd(path, format, "--discard=unmap");
    BeImageLock *lock = NULL;

    assert_busy(path, format);
    stop_server(&writer);
    lock = take(path, format);
    be_image_lock_free(lock);
    /* A reader of QEMU's is no writer. */
    writer = start_nbd(path, format, "--read-only");
    lock = take(path, format);
    be_image_lock_free(lock);
    stop_server(&writer);
}

static void test_sees_writers(void)
{
    if (tool_missing(tools)) {
        return;
    }
    check_writer("raw");
    check_writer("qcow2");
}

static void test_sees_writer_below(void)
{
    g_autofree char *base = NULL;
    g_autofree char *top = in_dir("below.qcow2");
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GError) error = NULL;
    Server writer;

    if (tool_missing(tools)) {
        return;
    }
    base = make_image("below.raw", "raw");
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top);
    writer = start_nbd(base, "raw", "--discard=unmap");
    chain = inspect(top, "qcow2");
    g_assert_null(be_image_lock_take(chain, &error));
    g_assert_error(error, BE_ERROR, EBUSY);
    g_assert_nonnull(strstr(error->message, base));
    stop_server(&writer);
    /* What was locked before the failure is free again. */
    g_assert_cmpint(write_to(top, "qcow2", NULL), ==, 0);
}

/* As a machine with a <shareable/> disk: it writes and lets others write. */
static void test_sees_sharing_writer(void)
{
    g_autofree char *path = NULL;
    g_autofree char *blockdev = NULL;
    Server server = {in_dir("qsd.sock"), in_dir("qsd.pid")};
    g_autofree char *listen = g_strdup_printf("addr.type=unix,addr.path=%s", server.socket);

    if (tool_missing(tools) || tool_missing(daemon_tools)) {
        g_free(server.socket);
        g_free(server.pid_file);
        return;
    }
    path = make_image("shared.raw", "raw");
    blockdev = g_strdup_printf("driver=file,node-name=f,filename=%s", path);
    TOOL_OK("qemu-storage-daemon", "--daemonize", "--pidfile", server.pid_file, "--blockdev",
            blockdev, "--nbd-server", listen, "--export",
            "type=nbd,id=e,node-name=f,writable=on");
    assert_busy(path, "raw");
    stop_server(&server);
    be_image_lock_free(take(path, "raw"));
}

static void test_sees_refused_readers(void)
{
    g_autofree char *path = in_dir("exclusive.raw");
    struct flock range = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 200, .l_len = 1};
    int fd = -1;

    g_assert_true(g_file_set_contents(path, "x", 1, NULL));
    fd = open(path, O_RDWR | O_CLOEXEC);
    g_assert_cmpint(fcntl(fd, F_OFD_SETLK, &range), ==, 0);
    assert_busy(path, "raw");
    range.l_start = 100;
    range.l_type = F_WRLCK;
    g_assert_cmpint(fcntl(fd, F_OFD_SETLK, &range), ==, 0);
    assert_busy(path, "raw");
    close(fd);
    be_image_lock_free(take(path, "raw"));
}

/* Between the inspection and the lock somebody replaces or removes a file. */
static void test_sees_changes(void)
{
    g_autofree char *path = in_dir("changed.raw");
    g_autofree char *other = in_dir("other.raw");
    g_autoptr(GPtrArray) chain = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(GError) gone_error = NULL;

    g_assert_true(g_file_set_contents(path, "x", 1, NULL));
    chain = inspect(path, "raw");
    g_assert_true(g_file_set_contents(other, "x", 1, NULL));
    g_assert_cmpint(g_rename(other, path), ==, 0);
    g_assert_null(be_image_lock_take(chain, &error));
    g_assert_error(error, BE_ERROR, EBUSY);
    g_remove(path);
    g_assert_null(be_image_lock_take(chain, &gone_error));
    g_assert_error(gone_error, BE_ERROR, ENOENT);
}

/* A descriptor that a child inherited would keep the lock for ever. */
static void test_not_inherited(void)
{
    g_autofree char *path = in_dir("inherited.raw");
    BeImageLock *lock = NULL;

    g_assert_true(g_file_set_contents(path, "x", 1, NULL));
    lock = take(path, "raw");
    for (int fd = 3; fd < 64; fd++) {
        g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
        g_autofree char *target = g_file_read_link(link, NULL);

        if (g_strcmp0(target, path) == 0) {
            g_assert_cmpint(fcntl(fd, F_GETFD) & FD_CLOEXEC, ==, FD_CLOEXEC);
        }
    }
    be_image_lock_free(lock);
}

static void test_block_device(void)
{
    g_autofree char *file = in_dir("loop.img");
    g_autofree char *device = NULL;
    BeImageLock *lock = NULL;

    if (tool_missing(tools) || tool_missing((const char *const[]){"losetup", NULL})) {
        return;
    }
    TOOL_OK("truncate", "-s", "1M", file);
    if (tool_run((const char *const[]){"losetup", "-f", "--show", file, NULL}, &device) != 0) {
        g_test_skip("no loop device to be had");
        return;
    }
    g_strchomp(device);
    lock = take(device, "raw");
    assert_write_refused(device, "raw");
    be_image_lock_free(lock);
    g_assert_cmpint(write_to(device, "raw", NULL), ==, 0);
    TOOL_OK("losetup", "-d", device);
}

int main(int argc, char **argv)
{
    int result = 0;

    g_test_init(&argc, &argv, NULL);
    dir = tool_dir_new();
    g_test_add_func("/imagelock/keeps-writers-off", test_keeps_writers_off);
    g_test_add_func("/imagelock/every-level", test_every_level);
    g_test_add_func("/imagelock/sees-writers", test_sees_writers);
    g_test_add_func("/imagelock/sees-writer-below", test_sees_writer_below);
    g_test_add_func("/imagelock/sees-sharing-writer", test_sees_sharing_writer);
    g_test_add_func("/imagelock/sees-refused-readers", test_sees_refused_readers);
    g_test_add_func("/imagelock/sees-changes", test_sees_changes);
    g_test_add_func("/imagelock/not-inherited", test_not_inherited);
    g_test_add_func("/imagelock/block-device", test_block_device);
    result = g_test_run();
    tool_dir_remove(dir);
    return result;
}
