/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze-channel.c - thawing past libvirt; see freeze-channel.h.
 *
 * Workers and the watchdog's process; nothing is shared but the lock on the directory of
 * the channel's socket, which the kernel lets go of when its holder dies.  So is the
 * channel: a process that is killed here leaves nothing to be taken back.
 */
#include "backend/freeze-channel.h"

#include <errno.h>
#include <fcntl.h>
#include <json-glib/json-glib.h>
#include <libvirt/libvirt-qemu.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/freeze.h"
#include "backend/xml.h"

/* The agent sends it before its answer to guest-sync-delimited, and nowhere else. */
#define SENTINEL '\xff'

/* An agent whose channel is free answers at once. */
#define FREE_US G_USEC_PER_SEC
#define ANSWER_US (5 * G_USEC_PER_SEC)

/* No answer that is waited for here is longer; what is nested deeper than this cannot
 * exhaust the stack of the parser. */
#define LINE_MAX_BYTES 4096

/* ---- What the agent speaks ------------------------------------------------------------ */

static gboolean send_all(int fd, const char *text, GError **error)
{
    ssize_t sent = send(fd, text, strlen(text), MSG_NOSIGNAL);

    if (sent != (ssize_t)strlen(text)) {
        be_error_set_errno(error, sent < 0 ? errno : EIO, "cannot send to the guest agent");
        return FALSE;
    }
    return TRUE;
}

static gboolean wait_readable(int fd, gint64 until_us, GError **error)
{
    struct pollfd pollfd = {.fd = fd, .events = POLLIN};
    gint64 left_us = until_us - g_get_monotonic_time();
    int ready = left_us > 0 ? poll(&pollfd, 1, (int)(left_us / 1000) + 1) : 0;

    if (ready == 0) {
        g_set_error(error, BE_ERROR, ETIMEDOUT, "the guest agent does not answer");
    } else if (ready < 0 && errno != EINTR) {
        be_error_set_errno(error, errno, "cannot wait for the guest agent");
    }
    return ready > 0 || (ready < 0 && errno == EINTR);
}

/* Byte by byte: what comes after the line is the next one's, and lines are short. */
static char *read_line(int fd, gint64 until_us, GError **error)
{
    g_autoptr(GString) line = g_string_new(NULL);
    ssize_t size;
    char byte;

    while (line->len < LINE_MAX_BYTES && wait_readable(fd, until_us, error)) {
        size = recv(fd, &byte, 1, 0);
        if (size == 0) {
            g_set_error(error, BE_ERROR, EHOSTUNREACH, "the guest agent's channel was closed");
            return NULL;
        }
        if (size < 0 && errno != EINTR && errno != EAGAIN) {
            be_error_set_errno(error, errno, "cannot read from the guest agent");
            return NULL;
        }
        if (size == 1 && byte == '\n') {
            return g_string_free(g_steal_pointer(&line), FALSE);
        }
        if (size == 1) {
            g_string_append_c(line, byte);
        }
    }
    if (line->len >= LINE_MAX_BYTES) {
        g_set_error(error, BE_ERROR, EIO, "the guest agent says too much");
    }
    return NULL;
}

/* The number in {"return": NUMBER}; FALSE, EIO: with what else was said. */
static gboolean parse_answer(const char *text, gint64 *ret_number, GError **error)
{
    g_autoptr(JsonNode) node = json_from_string(text, NULL);
    JsonObject *said = node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    JsonNode *value = said ? json_object_get_member(said, "return") : NULL;

    if (!value || !JSON_NODE_HOLDS_VALUE(value)
        || json_node_get_value_type(value) != G_TYPE_INT64) {
        g_autofree char *shown = g_strescape(text, NULL);

        g_set_error(error, BE_ERROR, EIO, "the guest agent said: %.200s", shown);
        return FALSE;
    }
    *ret_number = json_node_get_int(value);
    return TRUE;
}

/* What the agent has read of an earlier command, of libvirt, ends at the sentinel. */
gboolean be_channel_send_sync(int fd, gint64 id, GError **error)
{
    g_autofree char *text =
        g_strdup_printf("%c{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": %"
                        G_GINT64_FORMAT "}}\n", SENTINEL, id);

    return send_all(fd, text, error);
}

gboolean be_channel_sync(int fd, gint64 id, gint64 until_us, GError **error)
{
    for (;;) {
        g_autofree char *line = read_line(fd, until_us, error);
        const char *answer = line ? strrchr(line, SENTINEL) : NULL;
        gint64 number;

        if (!line) {
            return FALSE;
        }
        /* Anything else is the answer to what somebody asked before. */
        if (answer && parse_answer(answer + 1, &number, NULL) && number == id) {
            return TRUE;
        }
    }
}

gboolean be_channel_thaw(int fd, gint64 until_us, GError **error)
{
    g_autofree char *line = NULL;
    gint64 number;

    if (!send_all(fd, "{\"execute\": \"guest-fsfreeze-thaw\"}\n", error)) {
        return FALSE;
    }
    line = read_line(fd, until_us, error);
    return line && parse_answer(line, &number, error);
}

/* ---- The channel ------------------------------------------------------------------------ */

/* The path of another host's socket may be one of ours. */
static gboolean is_local(virDomainPtr domain)
{
    char *uri = virConnectGetURI(virDomainGetConnect(domain));
    gboolean local = uri && be_host_uri_is_local(uri);

    free(uri);
    return local;
}

static BeXmlDomain *look_at(virDomainPtr domain, GError **error)
{
    char *text = virDomainGetXMLDesc(domain, 0);
    BeXmlDomain *xml = NULL;

    if (text) {
        xml = be_xml_domain_parse(text, error);
    } else {
        be_error_from_libvirt(error, "cannot look at the domain");
    }
    free(text);
    if (xml && (!xml->agent_socket || !is_local(domain))) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "the guest agent's channel is no socket here");
        g_clear_pointer(&xml, be_xml_domain_free);
    }
    return xml;
}

/* Returns: the lock, to be closed; -1, EBUSY: another process is at it. */
static int lock_channel(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int errnum = fd >= 0 && errno == EWOULDBLOCK ? EBUSY : errno;

        be_error_set_errno(error, errnum, "cannot lock '%s'", dir);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

/* Of two that connect the second is in the queue until QEMU has dropped the first. */
static int connect_channel(const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        g_set_error(error, BE_ERROR, ENAMETOOLONG, "the path '%s' is too long", path);
        return -1;
    }
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        be_error_set_errno(error, errno, "cannot connect to the guest agent's channel");
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

/* (QEMU: qapi/yank.json; the identifier is libvirt's, "char" before the alias) */
static gboolean drop_connection(virDomainPtr domain, const char *alias, GError **error)
{
    g_autofree char *command =
        g_strdup_printf("{\"execute\": \"yank\", \"arguments\": {\"instances\": "
                        "[{\"type\": \"chardev\", \"id\": \"char%s\"}]}}", alias);
    char *answer = NULL;
    gboolean dropped;

    if (virDomainQemuMonitorCommand(domain, command, &answer, 0) < 0) {
        be_error_from_libvirt(error, "cannot free the guest agent's channel");
        return FALSE;
    }
    dropped = strstr(answer, "\"error\"") == NULL;
    if (!dropped) {
        g_set_error(error, BE_ERROR, EIO, "cannot free the guest agent's channel: %s", answer);
    }
    free(answer);
    return dropped;
}

/* @wait_us: for the agent to be found */
static gboolean ask(int fd, gint64 wait_us, GError **error)
{
    gint64 id = g_random_int_range(1, G_MAXINT32);

    return be_channel_send_sync(fd, id, error)
           && be_channel_sync(fd, id, g_get_monotonic_time() + wait_us, error)
           && be_channel_thaw(fd, g_get_monotonic_time() + ANSWER_US, error);
}

static gboolean connect_and_ask(const char *path, gint64 wait_us, GError **error)
{
    int fd = connect_channel(path, error);
    gboolean thawed = fd >= 0 && ask(fd, wait_us, error);

    if (fd >= 0) {
        close(fd);
    }
    return thawed;
}

/*
 * The first try's connection is closed before QEMU drops what it has: where that is nobody's,
 * the agent is only slow, and the second try waits for longer.  What is left of the first in
 * the queue is answered, too, and not taken for the second's (be_channel_sync()).
 */
static gboolean thaw_locked(virDomainPtr domain, const BeXmlDomain *xml, GError **error)
{
    g_autoptr(GError) silent = NULL;

    if (connect_and_ask(xml->agent_socket, FREE_US, &silent)) {
        return TRUE;
    }
    if (silent->code != ETIMEDOUT) {
        g_propagate_error(error, g_steal_pointer(&silent));
        return FALSE;
    }
    /* It was libvirt that had the channel, and has found the agent. */
    if (be_freeze_thaw_once(domain, NULL)) {
        return TRUE;
    }
    return drop_connection(domain, xml->agent_alias, error)
           && connect_and_ask(xml->agent_socket, ANSWER_US, error);
}

gboolean be_channel_thaw_past_libvirt(virDomainPtr domain, GError **error)
{
    g_autoptr(BeXmlDomain) xml = look_at(domain, error);
    gboolean thawed;
    int lock;

    if (!xml) {
        return FALSE;
    }
    lock = lock_channel(xml->agent_socket, error);
    thawed = lock >= 0 && thaw_locked(domain, xml, error);
    if (lock >= 0) {
        close(lock);
    }
    return thawed;
}
