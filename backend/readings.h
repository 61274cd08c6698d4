/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * readings.h - what the servers of snapshots' images share: where their sockets are,
 * and that they are out of the way when images are about to be changed.
 */
#pragma once

#include "backend/private.h"

BeReadings *be_readings_new(void);

/**
 * be_readings_let_go: of all that is read; streams that nobody else has are closed then, on
 * workers, which may still ask be_readings_are_allowed().
 */
void be_readings_let_go(BeReadings *readings);

/**
 * be_readings_free: removes the directory of the sockets.
 */
void be_readings_free(BeReadings *readings);

/**
 * be_readings_tidy: removes what processes that were killed have left in RUN_DIR.
 * Blocks on local files; before the first reading.
 */
void be_readings_tidy(Be *be);

/**
 * be_readings_directory: Returns: of the sockets; made when it is first asked for.
 * Blocks on local files; workers.
 */
const char *be_readings_directory(Be *be, GError **error);

/**
 * be_readings_add: a server that reads images of a machine.
 * @owner: its UUID; copied
 * @data: (transfer full): until be_readings_remove()
 * @give_way: has the server end if nobody takes data from it; blocks; on a worker
 */
void be_readings_add(Be *be, const char *owner, gpointer data, void (*give_way)(gpointer data),
                     GDestroyNotify free_data);
void be_readings_remove(Be *be, gpointer data);

/**
 * be_readings_stop: until be_readings_go_on() no server of a machine's images starts.
 * Those that only an appliance uses end, and the appliance with them: their image locks
 * would be in the way of a merge.  Blocks, as a rule some milliseconds; workers.
 */
void be_readings_stop(Be *be, const char *uuid);
void be_readings_go_on(Be *be, const char *uuid);

/**
 * be_readings_are_allowed: FALSE, EBUSY: between these two.
 */
gboolean be_readings_are_allowed(Be *be, const char *uuid, GError **error);
