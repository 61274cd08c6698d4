/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * notify.c - hears a child say that it is ready; see notify.h.
 *
 * Main thread.  The socket has a name in the abstract name space, where anybody
 * can send to it: only what the kernel says comes from the child counts.
 */
#include "notify.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MESSAGE_MAX 4096

struct VmNotify {
    int fd;
    guint source;
    char *address;
    int pid;
    void (*ready)(gpointer user);
    gpointer user;
};

static gboolean is_from(struct msghdr *message, int pid)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        struct ucred sender;

        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_CREDENTIALS
            && part->cmsg_len == CMSG_LEN(sizeof(sender))) {
            memcpy(&sender, CMSG_DATA(part), sizeof(sender));
            return sender.pid == pid;
        }
    }
    return FALSE;
}

static gboolean says_ready(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    return g_strv_contains((const char *const *)lines, "READY=1");
}

static gboolean receive(int fd, GIOCondition condition G_GNUC_UNUSED, gpointer user)
{
    VmNotify *notify = user;
    g_autofree char *text = g_malloc0(MESSAGE_MAX + 1);
    g_autofree char *control = g_malloc0(CMSG_SPACE(sizeof(struct ucred)));
    struct iovec data = {.iov_base = text, .iov_len = MESSAGE_MAX};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = CMSG_SPACE(sizeof(struct ucred))};
    void (*ready)(gpointer) = notify->ready;

    /* No descriptor that is sent along is kept: there is no room for it. */
    if (recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) > 0
        && is_from(&message, notify->pid) && ready && says_ready(text)) {
        notify->ready = NULL;
        ready(notify->user);
    }
    return G_SOURCE_CONTINUE;
}

/* Bound without a name, the kernel chooses one: a NUL and five hex digits. */
static char *bind_anywhere(int fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof(sa_family_t);
    int on = 1;

    if (bind(fd, (struct sockaddr *)&address, length) < 0
        || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
        return NULL;
    }
    length = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0
        || length <= offsetof(struct sockaddr_un, sun_path) + 1) {
        return NULL;
    }
    return g_strdup_printf("@%.*s", (int)(length - offsetof(struct sockaddr_un, sun_path) - 1),
                           address.sun_path + 1);
}

VmNotify *vm_notify_new(void (*ready)(gpointer user), gpointer user, GError **error)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    char *address = fd < 0 ? NULL : bind_anywhere(fd);
    VmNotify *notify;

    if (!address) {
        g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(errno),
                    "cannot make a socket: %s", g_strerror(errno));
        if (fd >= 0) {
            (void)close(fd);
        }
        return NULL;
    }
    notify = g_new0(VmNotify, 1);
    notify->fd = fd;
    notify->address = address;
    notify->ready = ready;
    notify->user = user;
    notify->source = g_unix_fd_add(fd, G_IO_IN, receive, notify);
    return notify;
}

void vm_notify_set_pid(VmNotify *notify, int pid)
{
    notify->pid = pid;
}

const char *vm_notify_address(VmNotify *notify)
{
    return notify->address;
}

void vm_notify_free(VmNotify *notify)
{
    if (!notify) {
        return;
    }
    (void)g_source_remove(notify->source);
    (void)close(notify->fd);
    g_free(notify->address);
    g_free(notify);
}
