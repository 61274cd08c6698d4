/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * prune.h - checkpoints of ours that are old enough to go.
 */
#pragma once

#include "backend/private.h"
#include "backend/retention.h"

/**
 * be_prune_chain: after a backup of the chain was taken: keeps the newest
 * be->keep_checkpoints (0: all), and always the base.  What cannot be removed stays
 * until the next time, and is logged.  Blocks; workers.
 */
void be_prune_chain(Be *be, virDomainPtr domain, const char *uuid, const char *chain);
