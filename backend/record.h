/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * record.h - what must survive us: one JSON document a file, below the state
 * directory of the host, in a directory for each kind ("journal", "checkpoints").
 *
 * A record is written whole, synced and renamed into place, file and directory,
 * so that whoever reads it after a crash finds the old one or the new one.  Any
 * worker; blocks on the local file system.  Two threads may write two records at
 * once; who writes the same one twice at once gets either.
 */
#pragma once

#include <json-glib/json-glib.h>

#include "backend/private.h"

/* No record comes near it: a domain's XML is at most a few hundred KiB. */
#define BE_RECORD_MAX_BYTES (16u * 1024 * 1024)

/* json-glib parses by recursion: a deeper document is no record of ours. */
#define BE_RECORD_MAX_DEPTH 32u

/**
 * BeRecord: one of those that be_record_load() found.
 */
typedef struct {
    char *id;
    JsonObject *object;        /* a reference */
} BeRecord;

/**
 * be_record_id_is_valid: whether @id can be part of a file name as it is: letters,
 * digits, '-', '_' and '.', not first; at most 128 bytes.  A name that comes from
 * outside is no id: take a UUID or a checksum.
 */
gboolean be_record_id_is_valid(const char *id);

/**
 * be_record_write: writes and syncs; makes the directory of the kind.
 * @kind: a valid id, too
 * @object: the document; borrowed
 *
 * Returns: FALSE: EINVAL for a bad id, EROFS on a read-only mount, EFBIG for a
 * document of more than BE_RECORD_MAX_BYTES, ENOSPC when the file cannot be
 * written, or the errno of making or syncing the directory.
 */
gboolean be_record_write(Be *be, const char *kind, const char *id, JsonObject *object,
                         GError **error);

/**
 * be_record_remove: harmless where there is none; what cannot be removed is logged.
 */
void be_record_remove(Be *be, const char *kind, const char *id);

/**
 * be_record_read: one record.
 * Returns: (transfer full): the document; NULL: ENOENT, EINVAL for a bad id,
 * EBADMSG for one that is broken (it is set aside, and logged), or another errno
 * of reading the file (it stays).
 */
JsonObject *be_record_read(Be *be, const char *kind, const char *id, GError **error);

/**
 * be_record_load: all records of a kind, in the order of their ids.  Broken ones
 * are set aside and logged.
 * Returns: (element BeRecord): never NULL.
 */
GPtrArray *be_record_load(Be *be, const char *kind);

/**
 * be_record_load_some: the same of those whose id begins with @prefix (NULL: all).
 */
GPtrArray *be_record_load_some(Be *be, const char *kind, const char *prefix);

/**
 * be_record_set_aside: for a record that is sound JSON and makes no sense all the
 * same: renamed to ID.broken, so that it is looked at once and not again at each
 * start.
 * @why: a sentence for the log
 */
void be_record_set_aside(Be *be, const char *kind, const char *id, const char *why);

/**
 * be_record_tidy: removes what a crash left of records that were being written.
 * Before the first write of this process; no thread of ours runs yet.
 */
void be_record_tidy(Be *be);

/**
 * be_record_dir: the directory of a kind; it need not exist.  Free with g_free().
 */
char *be_record_dir(Be *be, const char *kind);

/**
 * be_record_parse: a document from its text; pure, and for any input.
 * Returns: (transfer full): NULL: EBADMSG: not UTF-8, no JSON object, too long or
 * too deep.
 */
JsonObject *be_record_parse(const char *text, gsize length, GError **error);

/* ---- Members, wherever the document comes from --------------------------------- */

/**
 * be_record_get_string: borrowed; NULL where there is none of that type.
 * be_record_get_int: 0 where there is none.
 * be_record_get_object, be_record_get_array: borrowed, or NULL.
 * be_record_element: the object at @index of an array, or NULL; @array may be NULL.
 */
const char *be_record_get_string(JsonObject *object, const char *key);
gint64 be_record_get_int(JsonObject *object, const char *key);
gboolean be_record_get_bool(JsonObject *object, const char *key);
JsonObject *be_record_get_object(JsonObject *object, const char *key);
JsonArray *be_record_get_array(JsonObject *object, const char *key);
JsonObject *be_record_element(JsonArray *array, guint index);

/**
 * be_record_set_string: nothing where @value is NULL.
 */
void be_record_set_string(JsonObject *object, const char *key, const char *value);
