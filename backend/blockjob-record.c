/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * blockjob-record.c - block jobs on our disk, and those of an earlier process.
 *
 * Action workers write; be_start() loads, a query worker submits what was found.
 */
#include "backend/blockjob.h"
#include "backend/record.h"

#define RECORD_KIND "blockjob"

static const char *const kind_words[] = {
    [BE_BLOCK_COPY] = "copy",
    [BE_BLOCK_PULL] = "pull",
    [BE_BLOCK_COMMIT] = "commit",
};

char *block_job_name(const BlockJob *block)
{
    return g_strdup_printf("%s %s", kind_words[block->kind], block->target);
}

/* One for each domain: more than one action of ours never runs on it. */
gboolean block_job_record(const BlockJob *block, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();

    be_record_set_string(object, "kind", kind_words[block->kind]);
    be_record_set_string(object, "domain-uuid", block->uuid);
    be_record_set_string(object, "domain-name", block->name);
    be_record_set_string(object, "target", block->target);
    be_record_set_string(object, "to", block->to);
    be_record_set_string(object, "format", block->format);
    be_record_set_string(object, "base", block->base);
    be_record_set_string(object, "top", block->top);
    json_object_set_boolean_member(object, "active", block->active);
    json_object_set_boolean_member(object, "started", block->started);
    return be_record_write(block->be, RECORD_KIND, block->uuid, object, error);
}

void block_job_forget(const BlockJob *block)
{
    be_record_remove(block->be, RECORD_KIND, block->uuid);
}

/* NULL where it lacks what every record has. */
static BlockJob *record_read(Be *be, JsonObject *object)
{
    const char *word = be_record_get_string(object, "kind");
    const char *uuid = be_record_get_string(object, "domain-uuid");
    BeBlockRequest request = {.target = be_record_get_string(object, "target"),
                              .to = be_record_get_string(object, "to"),
                              .format = be_record_get_string(object, "format"),
                              .base = be_record_get_string(object, "base"),
                              .top = be_record_get_string(object, "top")};
    BlockJob *block;
    gsize kind = 0;

    while (kind < G_N_ELEMENTS(kind_words) && g_strcmp0(kind_words[kind], word) != 0) {
        kind++;
    }
    request.kind = (BeBlockKind)kind;
    if (kind == G_N_ELEMENTS(kind_words) || !uuid || !request.target
        || (request.kind == BE_BLOCK_COPY && !request.to)
        || (request.kind == BE_BLOCK_COMMIT && (!request.base || !request.top))) {
        return NULL;
    }
    block = block_job_new(be, uuid, &request);
    block->name = g_strdup(be_record_get_string(object, "domain-name"));
    block->active = be_record_get_bool(object, "active");
    block->started = be_record_get_bool(object, "started");
    return block;
}

void be_block_jobs_load(Be *be)
{
    g_autoptr(GPtrArray) records = NULL;

    if (be->read_only) {
        return;
    }
    records = be_record_load(be, RECORD_KIND);
    for (guint i = 0; i < records->len; i++) {
        const BeRecord *record = g_ptr_array_index(records, i);
        BlockJob *block = record_read(be, record->object);

        if (block) {
            block_job_keep(block);
        } else {
            be_record_set_aside(be, RECORD_KIND, record->id, "it is no block job");
        }
    }
}
