/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream-tool.h - a server to read from, and calls that wait; for test-stream*.
 *
 * The pattern plugin of nbdkit serves the offset of each 8 bytes, big-endian, so
 * every byte says where it came from.
 */
#pragma once

#include "backend/disk.h"
#include "backend/nbd.h"

#define KIB 1024
#define MIB (1024 * 1024)

/* Where the server listens; in a directory that stream_tool_end() removes. */
extern char *socket_path;

/* Returns: FALSE when nbdkit is not installed. */
gboolean stream_tool_begin(void);
void stream_tool_end(void);

/* Returns: the path of a file in the directory of the test; free with g_free(). */
char *stream_tool_path(const char *name);

/* @arguments: of nbdkit, quoted as for a shell; it is listening on return. */
GPid server_start(const char *arguments);

/* The same for another program; it makes the file socket_path + ".pid" when it
 * listens. */
GPid server_start_line(const char *line);
void server_stop(GPid pid);

/**
 * Call: a read or a seek, and its end.
 */
typedef struct {
    GMutex lock;
    GCond changed;
    guint ended;               /* guarded by lock, as all below */
    int errnum;
    gint64 result;
    guint8 bytes[BE_READ_MAX];
} Call;

Call *call_new(void);
void call_free(Call *call);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Call, call_free)

/* A BeReadDone; @user is a Call. */
void read_done(const struct iovec *iov, int count, int errnum, gpointer user);

/* Both return the errno; call_wait() asserts that there was one end. */
int call_wait(Call *call);
int read_into(BeReader *reader, Call *call, guint64 offset, gsize length);

/* A BeDone and a BeTextDone; @user is a Call, which gets the text as a string. */
void call_done(const GError *error, gpointer user);
void call_text_done(const char *text, const GError *error, gpointer user);

void assert_pattern(const guint8 *bytes, guint64 offset, gint64 length);
void assert_read(BeReader *reader, Call *call, guint64 offset, gsize length);

/* Returns: the offset or -1. */
gint64 seek(BeStream *stream, guint64 offset, gboolean data, int *ret_errnum);
void stream_end(BeStream *stream);

/* As the end of a backup does. */
void disk_end(BeDisk *disk);
