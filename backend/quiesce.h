/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * quiesce.h - a guest frozen around the one call that makes a point in time.
 */
#pragma once

#include "backend/private.h"

/**
 * BeWindow: from the freeze to the thaw.
 */
typedef struct {
    gboolean frozen;           /* by us: be_quiesce_end() thaws */
    gint64 begun_us;           /* monotonic */
    BeConsistency means;       /* the freeze, while it lasts */
    BeConsistency consistency; /* at the end: what was frozen all the time, and by what */
    gint64 frozen_us;          /* how long; 0: not at all */
} BeWindow;

/**
 * be_quiesce_begin:
 * @how: not BE_QUIESCE_DEFAULT
 * @agent: whether the guest's agent is there to be asked
 *
 * Freezes the guest where that is wanted and possible.  One that a command of ours
 * holds frozen already is as good.  Blocks as be_freeze_begin(); action workers.
 *
 * Returns: whether to go on: frozen, or not frozen and that is allowed.  FALSE with
 * BE_QUIESCE_REQUIRE: as be_freeze_begin(); with BE_QUIESCE_TRY, too: EHOSTDOWN, the
 * agent died of the freeze and has left the guest frozen, perhaps.
 */
gboolean be_quiesce_begin(Be *be, virDomainPtr domain, const char *uuid, BeQuiesce how,
                          gboolean agent, BeWindow *window, GError **error);

/**
 * be_quiesce_end: the call came back, with success or not: thaws.
 * @area: of the crash point "AREA:frozen:after"
 */
void be_quiesce_end(Be *be, virDomainPtr domain, const char *uuid, const char *area,
                    BeWindow *window);
