/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-child.c - backend/child.c with the real qemu-nbd.
 *
 * Run as "test-child --owner SOCKET JSON" it is the process that is killed in
 * test_dies_with_owner(): it starts a child, prints its number and waits.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
#include "image.h"
#include "tool.h"

static const char *const tools[] = {"qemu-nbd", "qemu-img", "qemu-io", "nbdcopy", "nbdinfo", NULL};

static char *dir;

static char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

static char *json_of(const char *path, const char *format)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) chain = be_image_chain_inspect(path, format, &error);
    char *json = NULL;

    g_assert_no_error(error);
    json = be_image_chain_json(chain, &error);
    g_assert_no_error(error);
    return json;
}

static char *make_image(void)
{
    g_autofree char *path = in_dir("disk.qcow2");

    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "4M");
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1M", path);
    return json_of(path, "qcow2");
}

static BeChild *start(const char *socket, const char *json)
{
    g_autoptr(GError) error = NULL;
    BeQemuNbd server = {.socket_path = socket, .image_json = json, .export_name = "vda"};
    BeChild *child = be_child_start_qemu_nbd(&server, &error);

    g_assert_no_error(error);
    g_assert_nonnull(child);
    return child;
}

static int read_size(const char *socket)
{
    g_autofree char *uri = g_strdup_printf("nbd+unix:///vda?socket=%s", socket);

    return TOOL("nbdinfo", "--size", uri);
}

/* What a line of /proc/PID/... says; NULL when the process is gone. */
static char *proc_text(pid_t pid, const char *name)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", (int)pid, name);
    char *text = NULL;
    gsize length = 0;

    if (!g_file_get_contents(path, &text, &length, NULL)) {
        return NULL;
    }
    for (gsize i = 0; i + 1 < length; i++) {
        text[i] = text[i] ? text[i] : '\n';
    }
    return text;
}

static gboolean is_gone(gpointer pid)
{
    return kill(GPOINTER_TO_INT(pid), 0) < 0 && errno == ESRCH;
}

static void test_serves(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    g_autofree char *uri = g_strdup_printf("nbd+unix:///vda?socket=%s", socket);
    g_autofree char *copy = in_dir("copy.raw");
    g_autofree char *disk = in_dir("disk.qcow2");
    BeChild *child = NULL;
    struct stat st;
    pid_t pid = 0;

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    child = start(socket, json);
    pid = be_child_pid(child);
    g_assert_true(be_child_alive(child));
    g_assert_null(be_child_failure(child));
    g_assert_cmpint(lstat(socket, &st), ==, 0);
    g_assert_cmpuint(st.st_mode, ==, S_IFSOCK | 0600);
    TOOL_OK("nbdcopy", uri, copy);
    TOOL_OK("qemu-img", "compare", "-f", "raw", "-F", "qcow2", copy, disk);
    /* Persistent, and read-only. */
    g_assert_cmpint(TOOL("nbdcopy", copy, uri), !=, 0);
    g_assert_cmpint(read_size(socket), ==, 0);
    be_child_stop(child);
    g_assert_false(be_child_alive(child));
    g_assert_true(is_gone(GINT_TO_POINTER(pid)));
    g_assert_false(g_file_test(socket, G_FILE_TEST_EXISTS));
    g_assert_null(be_child_failure(child));
    be_child_stop(child);
    be_child_free(child);
    be_child_free(NULL);
}

/* faults.md 14, 15, 109: what the new process has of ours. */
static void test_surroundings(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    g_autofree char *environment = NULL;
    g_autofree char *limits = NULL;
    g_autofree char *status = NULL;
    g_autofree char *cwd_path = NULL;
    g_autofree char *cwd = NULL;
    g_autofree char *listen_pid = NULL;
    g_autoptr(BeChild) child = NULL;
    int inherited = open("/etc/hostname", O_RDONLY);
    pid_t pid = 0;

    if (tool_missing(tools)) {
        close(inherited);
        return;
    }
    g_setenv("SECRET_OF_OURS", "1", TRUE);
    json = make_image();
    child = start(socket, json);
    pid = be_child_pid(child);
    environment = proc_text(pid, "environ");
    listen_pid = g_strdup_printf("LISTEN_PID=%d", (int)pid);
    g_assert_null(strstr(environment, "SECRET"));
    g_assert_nonnull(strstr(environment, "LANG=C\n"));
    g_assert_nonnull(strstr(environment, listen_pid));
    limits = proc_text(pid, "limits");
    g_assert_true(g_regex_match_simple("Max core file size +0 +0 ", limits, 0, 0));
    g_assert_true(g_regex_match_simple("Max address space +1073741824 +1073741824 ", limits, 0, 0));
    g_assert_true(g_regex_match_simple("Max file size +0 +0 ", limits, 0, 0));
    status = proc_text(pid, "status");
    g_assert_true(g_regex_match_simple("NoNewPrivs:\t1\n", status, 0, 0));
    g_assert_true(g_regex_match_simple("Umask:\t0077\n", status, 0, 0));
    cwd_path = g_strdup_printf("/proc/%d/cwd", (int)pid);
    cwd = g_file_read_link(cwd_path, NULL);
    g_assert_cmpstr(cwd, ==, "/");
    for (int fd = 0; fd < 64; fd++) {
        g_autofree char *link = g_strdup_printf("/proc/%d/fd/%d", (int)pid, fd);
        g_autofree char *target = g_file_read_link(link, NULL);

        g_assert_cmpstr(target, !=, "/etc/hostname");
    }
    g_unsetenv("SECRET_OF_OURS");
    close(inherited);
}

static void assert_start_fails(const char *socket, const char *json, int errnum, const char *word)
{
    g_autoptr(GError) error = NULL;
    BeQemuNbd server = {.socket_path = socket, .image_json = json, .export_name = "vda"};
    BeChild *child = be_child_start_qemu_nbd(&server, &error);

    g_assert_null(child);
    g_assert_error(error, BE_ERROR, errnum);
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, word));
    g_assert_null(strstr(error->message, "driver"));
}

static void test_refusals(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    g_autofree char *long_name = g_strnfill(108, 'a');
    g_autofree char *long_socket = g_strconcat("/tmp/", long_name, NULL);
    g_autofree char *missing = in_dir("missing/s");

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    assert_start_fails(socket, "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
                               "\"filename\":\"/nonexistent\"}}",
                       EIO, "No such file");
    g_assert_false(g_file_test(socket, G_FILE_TEST_EXISTS));
    assert_start_fails(socket, "json:{", EIO, "JSON");
    assert_start_fails(long_socket, json, ENAMETOOLONG, "longer");
    assert_start_fails("", json, ENAMETOOLONG, "empty");
    assert_start_fails(missing, json, ENOENT, "missing");
    /* What is there is not ours: it stays. */
    g_assert_true(g_file_set_contents(socket, "x", 1, NULL));
    assert_start_fails(socket, json, EEXIST, "bind");
    g_assert_true(g_file_test(socket, G_FILE_TEST_IS_REGULAR));
    g_remove(socket);
}

static void test_locked_image(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    g_autofree char *disk = in_dir("disk.qcow2");
    int fd = -1;
    struct flock range = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    fd = open(disk, O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(fcntl(fd, F_OFD_SETLK, &range), ==, 0);
    assert_start_fails(socket, json, EBUSY, "lock");
    close(fd);
}

/* Names of exports that look like options or like paths. */
static void test_export_names(void)
{
    static const char *const names[] = {"", "--help", "-x", "a b", "a=b,c", "\xc3\xa9"};
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) error = NULL;
        BeQemuNbd server = {.socket_path = socket, .image_json = json, .export_name = names[i]};
        g_autoptr(BeChild) child = be_child_start_qemu_nbd(&server, &error);
        g_autofree char *uri = g_strdup_printf("nbd+unix://?socket=%s", socket);
        g_autofree char *list = NULL;
        g_autofree char *line = g_strdup_printf("export=\"%s\":\n", names[i]);

        g_assert_no_error(error);
        g_assert_true(be_child_alive(child));
        tool_run((const char *const[]){"nbdinfo", "--list", uri, NULL}, &list);
        g_assert_nonnull(strstr(list, line));
    }
}

static gboolean is_dead(gpointer child)
{
    return !be_child_alive(child);
}

static void test_killed(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    g_autofree char *failure = NULL;
    BeChild *child = NULL;

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    child = start(socket, json);
    kill(be_child_pid(child), SIGSEGV);
    g_assert_true(tool_wait(is_dead, child));
    failure = be_child_failure(child);
    g_assert_nonnull(strstr(failure, "signal 11"));
    g_assert_cmpint(read_size(socket), !=, 0);
    be_child_free(child);
    g_assert_false(g_file_test(socket, G_FILE_TEST_EXISTS));
}

/* A stopped process does not hear SIGTERM: SIGKILL follows. */
static void test_stubborn(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    BeChild *child = NULL;
    gint64 start_us = 0;
    pid_t pid = 0;

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    child = start(socket, json);
    pid = be_child_pid(child);
    kill(pid, SIGSTOP);
    start_us = g_get_monotonic_time();
    be_child_free(child);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 60 * G_USEC_PER_SEC);
    g_assert_true(is_gone(GINT_TO_POINTER(pid)));
}

typedef struct {
    const char *socket;
    const char *json;
} Order;

static gpointer start_in_thread(gpointer data)
{
    const Order *order = data;

    return start(order->socket, order->json);
}

/* The thread that asked for a child may end: PR_SET_PDEATHSIG must not fire. */
static void test_outlives_thread(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    g_autoptr(BeChild) child = NULL;
    Order order;

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    order = (Order){socket, json};
    child = g_thread_join(g_thread_new("short", start_in_thread, &order));
    g_assert_cmpint(read_size(socket), ==, 0);
    g_assert_true(be_child_alive(child));
}

static gpointer start_and_stop(gpointer data)
{
    const Order *order = data;

    for (int i = 0; i < 5; i++) {
        g_autofree char *socket = g_strdup_printf("%s-%p", order->socket, (void *)g_thread_self());
        g_autoptr(BeChild) child = start(socket, order->json);

        g_assert_true(be_child_alive(child));
    }
    return NULL;
}

static guint count_fds(void)
{
    g_autoptr(GDir) fds = g_dir_open("/proc/self/fd", 0, NULL);
    guint count = 0;

    while (g_dir_read_name(fds)) {
        count++;
    }
    return count;
}

/* The keeper closes its end a moment after the child is gone. */
static gboolean no_more_fds_than(gpointer fds)
{
    return count_fds() <= *(guint *)fds;
}

static void test_many(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("m");
    GThread *threads[8];
    Order order;
    guint fds = 0;

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    order = (Order){socket, json};
    start_and_stop(&order);
    fds = count_fds();
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        threads[i] = g_thread_new("many", start_and_stop, &order);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_thread_join(threads[i]);
    }
    g_assert_true(tool_wait(no_more_fds_than, &fds));
}

/* The memory limit leaves room for the longest chain and eight busy readers. */
static void test_memory_limit(void)
{
    g_autofree char *base = in_dir("m0.qcow2");
    g_autofree char *top = in_dir("m199.qcow2");
    g_autofree char *socket = in_dir("s");
    g_autofree char *json = NULL;
    g_autoptr(BeChild) child = NULL;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", base, "1T");
    for (int i = 1; i < BE_IMAGE_MAX_LEVELS; i++) {
        g_autofree char *below = g_strdup_printf("m%d.qcow2", i - 1);
        g_autofree char *name = g_strdup_printf("m%d.qcow2", i);
        g_autofree char *path = in_dir(name);

        TOOL_OK("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", path,
                "1T");
    }
    json = json_of(top, "qcow2");
    child = start(socket, json);
    g_assert_cmpint(read_size(socket), ==, 0);
    g_assert_true(be_child_alive(child));
}

static void test_busy_readers(void)
{
    g_autofree char *disk = in_dir("disk.raw");
    g_autofree char *socket = in_dir("s");
    g_autofree char *uri = g_strdup_printf("nbd+unix:///vda?socket=%s", socket);
    g_autofree char *json = NULL;
    g_autoptr(BeChild) child = NULL;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "raw", disk, "256M");
    TOOL_OK("qemu-io", "-f", "raw", "-c", "write -P 1 0 256M", disk);
    json = json_of(disk, "raw");
    child = start(socket, json);
    TOOL_OK("nbdcopy", "--connections=8", "--requests=64", "--request-size=1048576", uri, "null:");
    g_assert_true(be_child_alive(child));
    g_remove(disk);
}

/* faults.md 1: when the owner is killed, what it started is gone, too. */
static void test_dies_with_owner(void)
{
    g_autofree char *json = NULL;
    g_autofree char *socket = in_dir("s");
    const char *argv[] = {"/proc/self/exe", "--owner", socket, NULL, NULL};
    g_autoptr(GError) error = NULL;
    FILE *from = NULL;
    GPid owner = 0;
    int out = -1;
    int pid = 0;
    int status = 0;

    if (tool_missing(tools)) {
        return;
    }
    json = make_image();
    argv[3] = json;
    /* Orphans become ours, so that their end can be seen. */
    g_assert_cmpint(prctl(PR_SET_CHILD_SUBREAPER, 1), ==, 0);
    g_spawn_async_with_pipes(NULL, (char **)argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                             &owner, NULL, &out, NULL, &error);
    g_assert_no_error(error);
    from = fdopen(out, "r");
    g_assert_cmpint(fscanf(from, "%d", &pid), ==, 1);
    g_assert_cmpint(read_size(socket), ==, 0);
    kill(owner, SIGKILL);
    g_assert_cmpint(waitpid(owner, NULL, 0), ==, owner);
    /* Ends: a child that lives on would keep us here until meson's timeout. */
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFSIGNALED(status));
    g_assert_cmpint(WTERMSIG(status), ==, SIGKILL);
    fclose(from);
    g_remove(socket);
    g_assert_cmpint(prctl(PR_SET_CHILD_SUBREAPER, 0), ==, 0);
}

static int be_owner(const char *socket, const char *json)
{
    Order order = {socket, json};
    BeChild *child = g_thread_join(g_thread_new("short", start_in_thread, &order));

    printf("%d\n", (int)be_child_pid(child));
    fflush(stdout);
    pause();
    return 1;
}

int main(int argc, char **argv)
{
    int result = 0;

    if (argc == 4 && strcmp(argv[1], "--owner") == 0) {
        return be_owner(argv[2], argv[3]);
    }
    g_test_init(&argc, &argv, NULL);
    dir = tool_dir_new();
    g_test_add_func("/child/serves", test_serves);
    g_test_add_func("/child/surroundings", test_surroundings);
    g_test_add_func("/child/refusals", test_refusals);
    g_test_add_func("/child/locked-image", test_locked_image);
    g_test_add_func("/child/export-names", test_export_names);
    g_test_add_func("/child/killed", test_killed);
    g_test_add_func("/child/stubborn", test_stubborn);
    g_test_add_func("/child/outlives-thread", test_outlives_thread);
    g_test_add_func("/child/many", test_many);
    g_test_add_func("/child/memory-limit", test_memory_limit);
    g_test_add_func("/child/busy-readers", test_busy_readers);
    g_test_add_func("/child/dies-with-owner", test_dies_with_owner);
    result = g_test_run();
    tool_dir_remove(dir);
    return result;
}
