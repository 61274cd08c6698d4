/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * dirs.c - directories whose owner and mode are sure.
 *
 * Any worker; blocks on the local file system.  A directory is opened first and
 * then looked at through its descriptor, so nobody can put another in between.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/private.h"

#define RANDOM_BYTES 12

static int open_directory(const char *path)
{
    return open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

gboolean be_dirs_ensure(const char *path, mode_t mode, GError **error)
{
    g_autofree char *parent = g_path_get_dirname(path);
    struct stat attr;
    int fd, errnum = 0;

    if (g_mkdir_with_parents(parent, 0755) < 0 || (mkdir(path, mode) < 0 && errno != EEXIST)) {
        be_error_set_errno(error, errno, "cannot make the directory '%s'", path);
        return FALSE;
    }
    fd = open_directory(path);
    if (fd < 0 || fstat(fd, &attr) < 0) {
        errnum = errno;
    } else if (attr.st_uid != geteuid()) {
        errnum = EPERM;
    } else if ((attr.st_mode & 07777) != mode && fchmod(fd, mode) < 0) {
        errnum = errno;
    }
    if (fd >= 0) {
        close(fd);
    }
    if (errnum == EPERM) {
        g_set_error(error, BE_ERROR, EPERM, "the directory '%s' belongs to somebody else", path);
    } else if (errnum) {
        be_error_set_errno(error, errnum, "cannot use the directory '%s'", path);
    }
    return errnum == 0;
}

gboolean be_dirs_sync(const char *path, GError **error)
{
    int fd = open_directory(path);
    gboolean synced = fd >= 0 && fsync(fd) == 0;

    if (!synced) {
        be_error_set_errno(error, errno, "cannot sync the directory '%s'", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return synced;
}

static char *random_name(GError **error)
{
    guint8 bytes[RANDOM_BYTES];
    GString *name;

    if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
        be_error_set_errno(error, errno, "no random numbers");
        return NULL;
    }
    name = g_string_new(NULL);
    for (gsize i = 0; i < sizeof(bytes); i++) {
        g_string_append_printf(name, "%02x", bytes[i]);
    }
    return g_string_free(name, FALSE);
}

char *be_dirs_random(const char *parent, GError **error)
{
    g_autofree char *name = random_name(error);

    return name ? g_build_filename(parent, name, NULL) : NULL;
}

gboolean be_dirs_private(const char *path, uid_t uid, gid_t gid, GError **error)
{
    if (mkdir(path, 0700) < 0) {
        be_error_set_errno(error, errno, "cannot make the directory '%s'", path);
        return FALSE;
    }
    if ((uid != geteuid() || gid != getegid()) && chown(path, uid, gid) < 0) {
        be_error_set_errno(error, errno, "cannot give the directory '%s' to QEMU's user %u", path,
                           uid);
        return FALSE;
    }
    return TRUE;
}

void be_dirs_remove(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        if (unlink(file) < 0 && errno != ENOENT) {
            g_warning("cannot remove '%s': %s", file, g_strerror(errno));
        }
    }
    if (rmdir(path) < 0 && errno != ENOENT) {
        g_warning("cannot remove '%s': %s", path, g_strerror(errno));
    }
}
