/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * owner.h - what libvirt does not keep of an object that was made through us: who
 * made it, and in which state the guest was then.
 *
 * A record for each in the state directory ("owners"), in memory from the start on.
 */
#pragma once

#include "backend/private.h"

/**
 * BeOwner: by value; of an object nobody made through us, uid is (uid_t)-1.
 */
typedef struct {
    uid_t uid;
    gboolean known;            /* consistency and frozen_us are */
    BeConsistency consistency;
    gint64 frozen_us;
} BeOwner;

BeOwners *be_owners_new(void);
void be_owners_free(BeOwners *owners);

/**
 * be_owners_load: reads the records.  Blocks on local files; before the first query.
 */
void be_owners_load(Be *be);

/**
 * be_owners_tidy: forgets those of domains that the host does not have any more.
 * be_owners_forget: those of one.  Blocks; query workers.
 */
void be_owners_tidy(Be *be);
void be_owners_forget(Be *be, const char *domain_uuid);

/**
 * be_owner_get: of the object with that identity.  Any thread; never blocks.
 */
BeOwner be_owner_get(Be *be, const char *object_id);

/**
 * be_owner_set: writes and syncs the record.  Blocks on local files; workers.
 * Returns: FALSE: as be_record_write().
 */
gboolean be_owner_set(Be *be, BeObjectKind kind, const char *domain_uuid, const char *object_id,
                      const BeOwner *owner, GError **error);

/**
 * be_owners_keep_only: forgets those of the domain and kind whose object is not in
 * @list.  Blocks on local files where there are such; workers.
 */
void be_owners_keep_only(Be *be, BeObjectKind kind, const char *domain_uuid,
                         const BeObjectList *list);
