/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-main.c - vmsnapfs-files: reads requests and answers them in turn.
 *
 * Started by the daemon alone (files-appliance.c), with one end of a socket
 * pair as FILES_FD:
 *     vmsnapfs-files kvm|tcg CACHE-DIR TARGET...
 * It ends when the daemon closes its end, kills it, or dies.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/guestfs-helper.h"

/* ---- Frames -------------------------------------------------------------------- */

static void write_all(int fd, struct iovec *iov, int count)
{
    while (count > 0) {
        ssize_t written = writev(fd, iov, count);

        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written < 0) {
            exit(1);
        }
        for (; count > 0 && (gsize)written >= iov->iov_len; iov++, count--) {
            written -= (ssize_t)iov->iov_len;
        }
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + written;
            iov->iov_len -= (gsize)written;
        }
    }
}

void helper_send_frame(Helper *helper, FilesKind kind, guint32 id, int errnum, const void *data,
                       gsize length)
{
    FilesFrame frame = {.kind = kind, .id = id, .errnum = errnum, .length = (guint32)length};
    struct iovec iov[] = {{&frame, sizeof(frame)}, {(void *)data, length}};

    write_all(helper->fd, iov, length ? 2 : 1);
}

void helper_flush(Helper *helper)
{
    if (helper->sender) {
        g_thread_join(g_steal_pointer(&helper->sender));
    }
}

void helper_send(Helper *helper, FilesKind kind, guint32 id, int errnum, const void *data,
                 gsize length)
{
    helper_flush(helper);
    helper_send_frame(helper, kind, id, errnum, data, length);
}

void helper_fail(Helper *helper, guint32 id, int errnum, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    helper_send(helper, FILES_END, id, errnum ? errnum : EIO, text, MIN(strlen(text), 4096));
}

/* 0 does not mean "no error", it means that the errno was not caught. */
void helper_fail_guestfs(Helper *helper, guint32 id, const char *what)
{
    int errnum = guestfs_last_errno(helper->guestfs);
    const char *text = guestfs_last_error(helper->guestfs);

    text = text ? text : "libguestfs gives no reason";
    /* No answer, after which the daemon might ask for more: the end says it. */
    if (!guestfs_is_ready(helper->guestfs)) {
        helper_flush(helper);
        fprintf(stderr, "%s, a file system may be broken: %s\n", what, text);
        exit(1);
    }
    helper_fail(helper, id, errnum > 0 ? errnum : EIO, "%s: %s", what, text);
}

static gboolean read_all(int fd, void *buffer, gsize length)
{
    for (gsize have = 0; have < length;) {
        ssize_t got = read(fd, (char *)buffer + have, length - have);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return FALSE;
        }
        have += (gsize)got;
    }
    return TRUE;
}

/* ---- The sockets of the disks --------------------------------------------------- */

static int listen_on(guint index)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/disk%u", index);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0
        || listen(fd, 8) < 0) {
        perror("the socket of a disk");
        exit(1);
    }
    return fd;
}

/*
 * They are made in here, where nobody else can see them, and served by the
 * daemon, which is the only one that can read the disks.
 */
static void send_sockets(Helper *helper)
{
    guint count = helper->targets->len;
    FilesFrame frame = {.kind = FILES_HELLO};
    struct iovec iov = {&frame, sizeof(frame)};
    g_autofree char *control = g_malloc0(CMSG_SPACE(count * sizeof(int)));
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (guint i = 0; i < count; i++) {
        int fd = listen_on(i);

        memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
    }
    if (sendmsg(helper->fd, &message, MSG_NOSIGNAL) != (ssize_t)sizeof(frame)) {
        perror("the sockets of the disks");
        exit(1);
    }
    for (guint i = 0; i < count; i++) {
        int fd;

        memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
        close(fd);
    }
}

/* ---- Requests ---------------------------------------------------------------------- */

static char *volume_root(const char *resolved)
{
    const char *slash = strchr(resolved + 1, '/');

    return slash ? g_strndup(resolved, (gsize)(slash - resolved)) : g_strdup(resolved);
}

static void serve_path(Helper *helper, const FilesRequest *request, const char *path)
{
    g_autofree char *resolved = helper_resolve(helper, request->id, path);
    g_autofree char *root = resolved ? volume_root(resolved) : NULL;

    if (!resolved) {
        return;
    }
    switch ((FilesOp)request->op) {
    case FILES_OP_STAT:
        helper_stat(helper, request->id, resolved, root);
        return;
    case FILES_OP_LIST:
        helper_list(helper, request->id, resolved, root);
        return;
    case FILES_OP_XATTR:
        helper_xattr(helper, request->id, resolved);
        return;
    case FILES_OP_XATTRS:
        helper_xattrs(helper, request->id, resolved);
        return;
    case FILES_OP_READ:
        helper_read(helper, request->id, resolved, request->offset, request->size);
        return;
    case FILES_OP_START:
        break;
    }
    helper_fail(helper, request->id, EINVAL, "no such request");
}

static void serve(Helper *helper)
{
    static char path[FILES_PATH_MAX + 1];
    FilesRequest request;

    while (read_all(helper->fd, &request, sizeof(request))) {
        if (request.path_length > FILES_PATH_MAX
            || !read_all(helper->fd, path, request.path_length)) {
            return;
        }
        path[request.path_length] = '\0';
        if (request.op == FILES_OP_START) {
            helper_start(helper, request.id);
        } else {
            serve_path(helper, &request, path);
        }
        if (!helper->guestfs || !guestfs_is_ready(helper->guestfs)) {
            helper_flush(helper);
            fprintf(stderr, "the appliance has ended: a file system may be broken\n");
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    Helper helper = {.fd = FILES_FD};

    if (argc < 4 || argc - 3 > FILES_DISKS_MAX) {
        fprintf(stderr, "vmsnapfs-files is started by vmsnapfs alone\n");
        return 2;
    }
    helper.tcg = strcmp(argv[1], "tcg") == 0;
    helper.cache_dir = (char *)JAIL_CACHE;
    helper.targets = g_ptr_array_new();
    helper.volumes = g_ptr_array_new();
    for (int i = 3; i < argc; i++) {
        g_ptr_array_add(helper.targets, argv[i]);
    }
    jail_enter(argv[2]);
    send_sockets(&helper);
    serve(&helper);
    return 0;
}
