/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qemu-img.c - running qemu-img; see qemu-img.h.  Workers.
 */
#include "backend/qemu-img.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/error.h"

#define PROGRAM "qemu-img"
#define WORDS_MAX 2000
#define POLL_MS 50

/*
 * In the child: it ends with the thread that forked it, which waits for it in
 * be_qemu_img().
 */
static void end_with_parent(gpointer user G_GNUC_UNUSED)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void keep_words(GString *words, int fd)
{
    char buffer[512];
    ssize_t got;

    while ((got = read(fd, buffer, sizeof buffer)) > 0) {
        if (words->len < WORDS_MAX) {
            g_string_append_len(words, buffer, got);
        }
    }
}

/* Waits for the end; returns the status of waitpid(). */
static int wait_for_end(BeJob *job, GPid pid, int fd, GString *words, gboolean *ret_cancelled)
{
    struct pollfd waited = {.fd = fd, .events = POLLIN};
    int status = 0;

    *ret_cancelled = FALSE;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (poll(&waited, 1, POLL_MS) > 0) {
            keep_words(words, fd);
            if (waited.revents & POLLHUP) {
                g_usleep(1000);
            }
        }
        if (!*ret_cancelled && job && be_job_is_cancelled(job)) {
            *ret_cancelled = TRUE;
            kill(pid, SIGTERM);
        }
    }
    keep_words(words, fd);
    return status;
}

static int errno_of_words(const char *words)
{
    static const struct {
        const char *fragment;
        int errnum;
    } rows[] = {
        {" lock", EBUSY},
        {"No space left", ENOSPC},
        {"Permission denied", EACCES},
        {"No such file", ENOENT},
        {"Read-only file system", EROFS},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        if (strstr(words, rows[i].fragment)) {
            return rows[i].errnum;
        }
    }
    return EIO;
}

static gboolean judge(const char *verb, int status, gboolean cancelled, GString *words,
                      GError **error)
{
    g_autofree char *valid = NULL;

    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return TRUE;
    }
    if (cancelled) {
        g_set_error(error, BE_ERROR, ECANCELED, "'qemu-img %s' was cancelled", verb);
        return FALSE;
    }
    valid = g_utf8_make_valid(words->str, (gssize)words->len);
    g_strstrip(valid);
    g_set_error(error, BE_ERROR, errno_of_words(valid), "'qemu-img %s' failed: %s", verb,
                *valid ? valid : "it was killed");
    return FALSE;
}

gboolean be_qemu_img(BeJob *job, const char *const *argv, GError **error)
{
    g_autofree char *program = g_find_program_in_path(PROGRAM);
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    g_autoptr(GString) said = g_string_new(NULL);
    g_autoptr(GError) spawn_error = NULL;
    gboolean cancelled;
    int fd, status;
    GPid pid;

    if (!program) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "'%s' is not installed", PROGRAM);
        return FALSE;
    }
    g_ptr_array_add(words, program);
    for (gsize i = 0; argv[i]; i++) {
        g_ptr_array_add(words, (gpointer)argv[i]);
    }
    g_ptr_array_add(words, NULL);
    if (!g_spawn_async_with_pipes("/", (char **)words->pdata, NULL,
                                  G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL,
                                  end_with_parent, NULL, &pid, NULL, NULL, &fd, &spawn_error)) {
        g_set_error(error, BE_ERROR, EIO, "cannot start %s: %s", PROGRAM, spawn_error->message);
        return FALSE;
    }
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    status = wait_for_end(job, pid, fd, said, &cancelled);
    close(fd);
    return judge(argv[0], status, cancelled, said, error);
}

/* ---- Overlays --------------------------------------------------------------------- */

/* Empty, ours alone, and of the owner of the base: as libvirt's own overlays are. */
static gboolean make_file(const char *path, const char *base, GError **error)
{
    struct stat owner;
    int fd;

    if (stat(base, &owner) < 0) {
        be_error_set_errno(error, errno, "cannot look at '%s'", base);
        return FALSE;
    }
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        be_error_set_errno(error, errno, "cannot make the image '%s'", path);
        return FALSE;
    }
    if (geteuid() == 0 && fchown(fd, owner.st_uid, owner.st_gid) < 0) {
        be_error_set_errno(error, errno, "cannot give the image '%s' its owner", path);
        close(fd);
        unlink(path);
        return FALSE;
    }
    close(fd);
    return TRUE;
}

static gboolean sync_file(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gboolean synced = fd >= 0 && dir_fd >= 0 && fsync(fd) == 0 && fsync(dir_fd) == 0;

    if (!synced) {
        be_error_set_errno(error, errno, "cannot sync the image '%s'", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (dir_fd >= 0) {
        close(dir_fd);
    }
    return synced;
}

gboolean be_qemu_img_overlay(const char *path, const char *base, const char *format, guint64 size,
                             GError **error)
{
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    const char *const argv[] = {"create", "-q", "-u",   "-f", "qcow2", "-b",
                                base,     "-F", format, path, bytes,   NULL};

    if (!make_file(path, base, error)) {
        return FALSE;
    }
    if (!be_qemu_img(NULL, argv, error) || !sync_file(path, error)) {
        unlink(path);
        return FALSE;
    }
    return TRUE;
}
