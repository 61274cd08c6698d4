/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-disk.c - the disks of a point in time for its appliance: a read-only
 * NBD server over streams (NBD doc/proto.md; fixed newstyle, simple replies).
 *
 * Over streams, and not over the server that they read from: so the QEMU of a
 * guest never speaks to one that has a hostile disk, every kind of source will
 * do, and whoever ends the object closes the streams and is done.
 *
 * The thread "files" alone, but for read_done(), which a stream calls on a
 * thread of its own.  A connection's lock guards its output.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/files-priv.h"
#include "backend/stream.h"

enum {
    OPTION_EXPORT_NAME = 1,
    OPTION_ABORT = 2,
    OPTION_INFO = 6,
    OPTION_GO = 7,
    REPLY_ACK = 1,
    REPLY_INFO = 3,
    INFO_EXPORT = 0,
    INFO_BLOCK_SIZE = 3,
    COMMAND_READ = 0,
    COMMAND_DISCONNECT = 2,
    NO_ZEROES = 1 << 1,
    /* HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN */
    EXPORT_FLAGS = 1 << 0 | 1 << 1 | 1 << 8,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_EINVAL = 22,
};

#define MAGIC G_GUINT64_CONSTANT(0x4e42444d41474943)
#define MAGIC_OPTION G_GUINT64_CONSTANT(0x49484156454f5054)
#define MAGIC_REPLY G_GUINT64_CONSTANT(0x0003e889045565a9)
#define MAGIC_REQUEST 0x25609513u
#define MAGIC_ANSWER 0x67446698u
#define ERROR_UNSUPPORTED (1u << 31 | 1)

#define ANSWER_SIZE 16
#define OPTION_MAX 4096
#define READ_MAX (2u * 1024 * 1024)
#define READS_MAX 32
#define OUTPUT_MAX (16u * 1024 * 1024)
#define CONNECTIONS_MAX 4

typedef enum {
    PHASE_FLAGS,
    PHASE_OPTIONS,
    PHASE_REQUESTS,
    PHASE_OVER,
} Phase;

typedef struct {
    gatomicrefcount refs;      /* the server's, and one of each read under way */
    int fd;
    int kick_fd;
    BeStream *stream;
    BeReader *reader;
    Phase phase;
    gboolean no_zeroes;
    GByteArray *input;

    GMutex lock;
    GQueue output;             /* of GBytes; guarded by lock, as all below */
    gsize output_size;
    gsize written;             /* of the first */
    guint reads;
    gboolean closed;
} Connection;

typedef struct {
    int fd;
    BeStream *stream;
    GPtrArray *connections;    /* of Connection */
} Disk;

struct DiskServer {
    int kick_fd;
    GArray *disks;             /* of Disk */
};

/* ---- Connections ---------------------------------------------------------------------------- */

static void connection_unref(Connection *connection)
{
    if (!g_atomic_ref_count_dec(&connection->refs)) {
        return;
    }
    be_reader_free(connection->reader);
    be_stream_unref(connection->stream);
    g_byte_array_unref(connection->input);
    g_queue_clear_full(&connection->output, (GDestroyNotify)g_bytes_unref);
    g_mutex_clear(&connection->lock);
    g_free(connection);
}

static void connection_close(gpointer data)
{
    Connection *connection = data;

    g_mutex_lock(&connection->lock);
    connection->closed = TRUE;
    g_mutex_unlock(&connection->lock);
    close(connection->fd);
    connection_unref(connection);
}

static void put(Connection *connection, GByteArray *bytes)
{
    GBytes *output = g_byte_array_free_to_bytes(bytes);

    g_mutex_lock(&connection->lock);
    connection->output_size += g_bytes_get_size(output);
    g_queue_push_tail(&connection->output, output);
    g_mutex_unlock(&connection->lock);
}

static void add_u16(GByteArray *bytes, guint16 value)
{
    value = GUINT16_TO_BE(value);
    g_byte_array_append(bytes, (const guint8 *)&value, sizeof(value));
}

static void add_u32(GByteArray *bytes, guint32 value)
{
    value = GUINT32_TO_BE(value);
    g_byte_array_append(bytes, (const guint8 *)&value, sizeof(value));
}

static void add_u64(GByteArray *bytes, guint64 value)
{
    value = GUINT64_TO_BE(value);
    g_byte_array_append(bytes, (const guint8 *)&value, sizeof(value));
}

static guint16 get_u16(const guint8 *data)
{
    guint16 value;

    memcpy(&value, data, sizeof(value));
    return GUINT16_FROM_BE(value);
}

static guint32 get_u32(const guint8 *data)
{
    guint32 value;

    memcpy(&value, data, sizeof(value));
    return GUINT32_FROM_BE(value);
}

static guint64 get_u64(const guint8 *data)
{
    guint64 value;

    memcpy(&value, data, sizeof(value));
    return GUINT64_FROM_BE(value);
}

static Connection *connection_new(int fd, BeStream *stream, int kick_fd)
{
    Connection *connection = g_new0(Connection, 1);
    GByteArray *greeting = g_byte_array_new();

    g_atomic_ref_count_init(&connection->refs);
    g_mutex_init(&connection->lock);
    connection->fd = fd;
    connection->kick_fd = kick_fd;
    connection->stream = be_stream_ref(stream);
    connection->reader = be_reader_new_quiet(stream);
    connection->input = g_byte_array_new();
    add_u64(greeting, MAGIC);
    add_u64(greeting, MAGIC_OPTION);
    add_u16(greeting, 1 | NO_ZEROES);
    put(connection, greeting);
    return connection;
}

/* ---- Options ----------------------------------------------------------------- */

static void answer_option(Connection *connection, guint32 option, guint32 reply,
                          const GByteArray *payload)
{
    GByteArray *bytes = g_byte_array_new();

    add_u64(bytes, MAGIC_REPLY);
    add_u32(bytes, option);
    add_u32(bytes, reply);
    add_u32(bytes, payload ? payload->len : 0);
    if (payload) {
        g_byte_array_append(bytes, payload->data, payload->len);
    }
    put(connection, bytes);
}

/* Whatever name is asked for: there is one export on each socket. */
static void answer_info(Connection *connection, guint32 option)
{
    g_autoptr(GByteArray) export = g_byte_array_new();
    g_autoptr(GByteArray) block = g_byte_array_new();

    add_u16(export, INFO_EXPORT);
    add_u64(export, be_stream_size(connection->stream));
    add_u16(export, EXPORT_FLAGS);
    answer_option(connection, option, REPLY_INFO, export);
    add_u16(block, INFO_BLOCK_SIZE);
    add_u32(block, 1);
    add_u32(block, 4096);
    add_u32(block, READ_MAX);
    answer_option(connection, option, REPLY_INFO, block);
    answer_option(connection, option, REPLY_ACK, NULL);
}

static void answer_export_name(Connection *connection)
{
    static const guint8 zeroes[124];
    GByteArray *bytes = g_byte_array_new();

    add_u64(bytes, be_stream_size(connection->stream));
    add_u16(bytes, EXPORT_FLAGS);
    if (!connection->no_zeroes) {
        g_byte_array_append(bytes, zeroes, sizeof(zeroes));
    }
    put(connection, bytes);
}

static void serve_option(Connection *connection, guint32 option)
{
    switch (option) {
    case OPTION_EXPORT_NAME:
        answer_export_name(connection);
        connection->phase = PHASE_REQUESTS;
        break;
    case OPTION_ABORT:
        answer_option(connection, option, REPLY_ACK, NULL);
        connection->phase = PHASE_OVER;
        break;
    case OPTION_INFO:
        answer_info(connection, option);
        break;
    case OPTION_GO:
        answer_info(connection, option);
        connection->phase = PHASE_REQUESTS;
        break;
    default:
        answer_option(connection, option, ERROR_UNSUPPORTED, NULL);
        break;
    }
}

/* ---- Requests ---------------------------------------------------------------- */

typedef struct {
    Connection *connection;
    guint64 handle;
    guint32 length;
} Read;

static GByteArray *answer_new(guint64 handle, guint32 errnum, gsize payload)
{
    GByteArray *bytes = g_byte_array_sized_new((guint)(ANSWER_SIZE + payload));

    add_u32(bytes, MAGIC_ANSWER);
    add_u32(bytes, errnum);
    add_u64(bytes, handle);
    return bytes;
}

static void read_done(const struct iovec *iov, int count, int errnum, gpointer user)
{
    Read *read = user;
    Connection *connection = read->connection;
    GByteArray *bytes;
    gboolean whole;
    gsize got = 0;

    for (int i = 0; errnum == 0 && i < count; i++) {
        got += iov[i].iov_len;
    }
    whole = errnum == 0 && got == read->length;
    bytes = answer_new(read->handle, whole ? 0 : NBD_EIO, whole ? got : 0);
    for (int i = 0; whole && i < count; i++) {
        g_byte_array_append(bytes, iov[i].iov_base, (guint)iov[i].iov_len);
    }
    put(connection, bytes);
    g_mutex_lock(&connection->lock);
    connection->reads--;
    if (!connection->closed) {
        (void)eventfd_write(connection->kick_fd, 1);
    }
    g_mutex_unlock(&connection->lock);
    connection_unref(connection);
    g_free(read);
}

static void serve_read(Connection *connection, guint64 handle, guint64 offset, guint32 length)
{
    guint64 size = be_stream_size(connection->stream);
    Read *read;

    if (length == 0 || length > READ_MAX || offset > size || length > size - offset) {
        put(connection, answer_new(handle, NBD_EINVAL, 0));
        return;
    }
    read = g_new0(Read, 1);
    g_atomic_ref_count_inc(&connection->refs);
    read->connection = connection;
    read->handle = handle;
    read->length = length;
    g_mutex_lock(&connection->lock);
    connection->reads++;
    g_mutex_unlock(&connection->lock);
    be_read_unref(be_reader_read(connection->reader, offset, length, read_done, read));
}

static void serve_request(Connection *connection, const guint8 *request)
{
    guint16 command = get_u16(request + 6);
    guint64 handle = get_u64(request + 8);

    if (get_u32(request) != MAGIC_REQUEST || command == COMMAND_DISCONNECT) {
        connection->phase = PHASE_OVER;
    } else if (command == COMMAND_READ) {
        serve_read(connection, handle, get_u64(request + 16), get_u32(request + 24));
    } else {
        put(connection, answer_new(handle, NBD_EPERM, 0));
        /* The bytes of a write would follow, and be taken for requests. */
        if (command == 1) {
            connection->phase = PHASE_OVER;
        }
    }
}

/* ---- Input and output -------------------------------------------------------- */

/* Takes one message off the input.  Returns: its size; 0: it is not there yet. */
static gsize serve_message(Connection *connection, const guint8 *data, gsize length)
{
    guint32 size;

    switch (connection->phase) {
    case PHASE_FLAGS:
        if (length < 4) {
            return 0;
        }
        connection->no_zeroes = (get_u32(data) & NO_ZEROES) != 0;
        connection->phase = PHASE_OPTIONS;
        return 4;
    case PHASE_OPTIONS:
        if (length < 16) {
            return 0;
        }
        size = get_u32(data + 12);
        if (get_u64(data) != MAGIC_OPTION || size > OPTION_MAX) {
            connection->phase = PHASE_OVER;
            return 0;
        }
        if (length < 16 + (gsize)size) {
            return 0;
        }
        serve_option(connection, get_u32(data + 8));
        return 16 + (gsize)size;
    case PHASE_REQUESTS:
        if (length < 28) {
            return 0;
        }
        serve_request(connection, data);
        return 28;
    case PHASE_OVER:
        return 0;
    }
    return 0;
}

static gboolean is_full(Connection *connection)
{
    gboolean full;

    g_mutex_lock(&connection->lock);
    full = connection->reads >= READS_MAX || connection->output_size > OUTPUT_MAX;
    g_mutex_unlock(&connection->lock);
    return full;
}

static void serve_messages(Connection *connection)
{
    gsize at = 0, used;

    while (!is_full(connection)
           && (used = serve_message(connection, connection->input->data + at,
                                    connection->input->len - at))
                  > 0) {
        at += used;
    }
    if (at > 0) {
        g_byte_array_remove_range(connection->input, 0, (guint)at);
    }
}

/* FALSE: the other side has gone. */
static gboolean receive(Connection *connection)
{
    guint8 buffer[OPTION_MAX + 64];
    ssize_t got = recv(connection->fd, buffer, sizeof(buffer), MSG_DONTWAIT);

    if (got > 0) {
        g_byte_array_append(connection->input, buffer, (guint)got);
    }
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

/* FALSE: the other side has gone. */
static gboolean transmit(Connection *connection)
{
    gboolean good = TRUE;

    g_mutex_lock(&connection->lock);
    while (good && connection->output.head) {
        GBytes *bytes = connection->output.head->data;
        gsize size;
        const guint8 *data = g_bytes_get_data(bytes, &size);
        ssize_t sent = send(connection->fd, data + connection->written,
                            size - connection->written, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0) {
            good = errno == EAGAIN || errno == EINTR;
            break;
        }
        connection->written += (gsize)sent;
        connection->output_size -= (gsize)sent;
        if (connection->written == size) {
            g_bytes_unref(g_queue_pop_head(&connection->output));
            connection->written = 0;
        }
    }
    g_mutex_unlock(&connection->lock);
    return good;
}

static gboolean has_output(Connection *connection)
{
    gboolean has;

    g_mutex_lock(&connection->lock);
    has = connection->output.head != NULL;
    g_mutex_unlock(&connection->lock);
    return has;
}

/* ---- The server -------------------------------------------------------------- */

DiskServer *disk_server_new(GArray *sockets, GPtrArray *disks, int kick_fd)
{
    DiskServer *server = g_new0(DiskServer, 1);

    server->kick_fd = kick_fd;
    server->disks = g_array_new(FALSE, TRUE, sizeof(Disk));
    for (guint i = 0; i < sockets->len && i < disks->len; i++) {
        const BeDisk *from = g_ptr_array_index(disks, i);
        Disk disk = {.fd = g_array_index(sockets, int, i), .stream = be_stream_ref(from->stream)};

        disk.connections = g_ptr_array_new_with_free_func(connection_close);
        g_array_append_val(server->disks, disk);
    }
    return server;
}

void disk_server_free(DiskServer *server)
{
    if (!server) {
        return;
    }
    for (guint i = 0; i < server->disks->len; i++) {
        Disk *disk = &g_array_index(server->disks, Disk, i);

        g_ptr_array_unref(disk->connections);
        be_stream_unref(disk->stream);
        close(disk->fd);
    }
    g_array_unref(server->disks);
    g_free(server);
}

void disk_server_poll(DiskServer *server, GArray *fds)
{
    for (guint i = 0; i < server->disks->len; i++) {
        const Disk *disk = &g_array_index(server->disks, Disk, i);
        struct pollfd entry = {.fd = disk->fd, .events = POLLIN};

        g_array_append_val(fds, entry);
        for (guint j = 0; j < disk->connections->len; j++) {
            Connection *connection = g_ptr_array_index(disk->connections, j);

            entry.fd = connection->fd;
            entry.events = (short)((is_full(connection) ? 0 : POLLIN)
                                   | (has_output(connection) ? POLLOUT : 0));
            g_array_append_val(fds, entry);
        }
    }
}

static void accept_one(DiskServer *server, Disk *disk)
{
    int fd = accept4(disk->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0 && disk->connections->len < CONNECTIONS_MAX) {
        g_ptr_array_add(disk->connections, connection_new(fd, disk->stream, server->kick_fd));
    } else if (fd >= 0) {
        close(fd);
    }
}

static gboolean serve_connection(Connection *connection, short revents)
{
    if ((revents & POLLIN) && !receive(connection)) {
        return FALSE;
    }
    if (revents & (POLLERR | POLLNVAL)) {
        return FALSE;
    }
    serve_messages(connection);
    if (!transmit(connection)) {
        return FALSE;
    }
    return connection->phase != PHASE_OVER && (!(revents & POLLHUP) || (revents & POLLIN));
}

void disk_server_serve(DiskServer *server, const struct pollfd *fds, guint count)
{
    guint at = 0;

    for (guint i = 0; i < server->disks->len; i++) {
        Disk *disk = &g_array_index(server->disks, Disk, i);
        gboolean came = at < count && (fds[at++].revents & POLLIN);
        guint polled = MIN(disk->connections->len, count - at);

        /* Backwards, for those that go; those that come are looked at next time. */
        for (guint j = polled; j-- > 0;) {
            if (!serve_connection(g_ptr_array_index(disk->connections, j), fds[at + j].revents)) {
                g_ptr_array_remove_index(disk->connections, j);
            }
        }
        at += polled;
        if (came) {
            accept_one(server, disk);
        }
    }
}
