/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-stream.c - the stream of a disk that is held by local images; see
 * image-stream.h.
 *
 * Made on any thread; serve() runs on a thread of the stream's source, never on two
 * at once.
 */
#include "backend/image-stream.h"

#include <errno.h>

#include "backend/child.h"
#include "backend/error.h"
#include "backend/image-source.h"

/* What serve() needs; the stream's. */
typedef struct {
    GPtrArray *chain;          /* of BeImage */
    BeImageSnapshot snapshot;  /* its id is NULL when there is none */
    char *bitmap;              /* or NULL */
    gboolean in_use;
    char *socket;
    BeChild *server;           /* NULL until the first read */
} ImageServer;

static void image_server_free(gpointer data)
{
    ImageServer *server = data;

    be_child_free(server->server);
    g_ptr_array_unref(server->chain);
    be_image_snapshot_clear(&server->snapshot);
    g_free(server->bitmap);
    g_free(server->socket);
    g_free(server);
}

/* The stream is about to connect for the first time, or again after it lost it. */
static char *serve(gpointer user, GError **error)
{
    ImageServer *server = user;
    g_autofree char *json = server->in_use ? be_image_chain_json_unlocked(server->chain, error)
                                           : be_image_chain_json(server->chain, error);
    BeQemuNbd nbd = {.socket_path = server->socket, .image_json = json, .export_name = "",
                     .snapshot_id = server->snapshot.id,
                     .snapshot_name = server->snapshot.name, .bitmap = server->bitmap};

    if (!json) {
        return NULL;
    }
    g_clear_pointer(&server->server, be_child_free);
    server->server = be_child_start_qemu_nbd(&nbd, error);
    return server->server ? g_strdup(server->socket) : NULL;
}

/* Several streams may share a directory. */
static char *new_socket(const char *directory)
{
    static gint count;
    g_autofree char *file = g_strdup_printf("%x.sock", (guint)g_atomic_int_add(&count, 1));

    return g_build_filename(directory, file, NULL);
}

/*
 * QEMU 7.2 shows a snapshot with the size that the image has now (tried; its
 * qcow2_snapshot_load_tmp() leaves the size alone).  What is larger is cut off.
 */
static gboolean find_snapshot(const BeImageSource *source, BeImageSnapshot *ret, GError **error)
{
    const BeImage *top = g_ptr_array_index(source->chain, 0);

    if (!be_image_snapshot_find(top, source->snapshot, ret, error)) {
        return FALSE;
    }
    if (ret->size > top->size) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the disk was larger when the snapshot '%s' was made (%" G_GUINT64_FORMAT
                    " bytes, now %" G_GUINT64_FORMAT "); revert to the snapshot to read it",
                    source->snapshot, ret->size, top->size);
        be_image_snapshot_clear(ret);
        return FALSE;
    }
    return TRUE;
}

BeStream *be_stream_new_image(const BeImageSource *source, GError **error)
{
    BeImageSnapshot snapshot = {.id = NULL};
    BeNbdExport nbd = {.name = "", .prepare = serve, .prepare_destroy = image_server_free};
    ImageServer *server;

    if (source->snapshot && !find_snapshot(source, &snapshot, error)) {
        return NULL;
    }
    server = g_new0(ImageServer, 1);
    server->chain = g_ptr_array_ref(source->chain);
    server->snapshot = snapshot;
    server->bitmap = g_strdup(source->bitmap);
    server->in_use = source->in_use;
    server->socket = new_socket(source->directory);
    nbd.prepare_user = server;
    nbd.dirty_bitmap = source->bitmap;
    nbd.size = source->snapshot ? snapshot.size : be_image_chain_size(source->chain);
    nbd.larger = source->snapshot != NULL;
    nbd.allocated = be_image_chain_allocated(source->chain);
    /* What a machine has open may change its tables under us; and only QEMU knows the
     * tables of a snapshot. */
    return source->in_use || source->snapshot
               ? be_stream_new_nbd_export(&nbd)
               : be_stream_new_image_source(source->chain, &nbd);
}
