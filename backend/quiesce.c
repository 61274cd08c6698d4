/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * quiesce.c - freeze, one call, thaw; see quiesce.h.  Action workers.
 */
#include "backend/quiesce.h"

#include <errno.h>

#include "backend/freeze.h"
#include "backend/step.h"

/* A guest must not notice the freeze of a mkdir. */
#define FREEZE_MS 5000

gboolean be_quiesce_parse(const char *word, BeQuiesce *ret_quiesce)
{
    static const struct {
        const char *word;
        BeQuiesce quiesce;
    } rows[] = {
        {"try", BE_QUIESCE_TRY},
        {"require", BE_QUIESCE_REQUIRE},
        {"off", BE_QUIESCE_OFF},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        if (g_str_equal(rows[i].word, word)) {
            *ret_quiesce = rows[i].quiesce;
            return TRUE;
        }
    }
    return FALSE;
}

BeConsistency be_freeze_consistency_of(const char *os_id)
{
    return g_strcmp0(os_id, "mswindows") == 0 ? BE_CONSISTENCY_APPLICATION
                                              : BE_CONSISTENCY_FILESYSTEM;
}

/* Whoever had an agent wants to know why this point is crash consistent only. */
static void tell(Be *be, virDomainPtr domain, const char *uuid, const GError *error)
{
    g_autofree char *text = g_strdup_printf("the guest was not frozen: %s", error->message);
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = g_get_real_time(),
                     .domain_uuid = uuid, .domain_name = virDomainGetName(domain),
                     .errnum = error->code, .text = text};

    be_notify(be, &event);
}

gboolean be_quiesce_begin(Be *be, virDomainPtr domain, const char *uuid, BeQuiesce how,
                          gboolean agent, BeWindow *window, GError **error)
{
    g_autoptr(GError) freeze_error = NULL;

    *window = (BeWindow){.begun_us = g_get_monotonic_time(),
                         .consistency = BE_CONSISTENCY_CRASH};
    if (how == BE_QUIESCE_OFF) {
        return TRUE;
    }
    if (be_freeze_is_held(be, uuid)) {
        return TRUE;
    }
    window->frozen = agent && be_freeze_begin(be, domain, uuid, NULL, FREEZE_MS, &window->means,
                                              &freeze_error);
    window->begun_us = g_get_monotonic_time();
    if (freeze_error && freeze_error->code == BE_FREEZE_LOST) {
        g_set_error(error, BE_ERROR, EHOSTDOWN,
                    "the guest agent went away while it froze the guest: nothing is begun before "
                    "libvirt finds it again (%s)", freeze_error->message);
        return FALSE;
    }
    if (window->frozen || how == BE_QUIESCE_TRY) {
        if (freeze_error && freeze_error->code == EHOSTDOWN) {
            tell(be, domain, uuid, freeze_error);
        }
        return TRUE;
    }
    if (freeze_error) {
        g_propagate_prefixed_error(error, g_steal_pointer(&freeze_error), "quiesce=require: ");
    } else {
        g_set_error(error, BE_ERROR, EHOSTDOWN,
                    "quiesce=require: no guest agent is connected (install qemu-guest-agent)");
    }
    return FALSE;
}

/*
 * What the freeze was for holds only if it lasted until the call came back: past
 * the deadline the watchdog thaws under us.
 */
void be_quiesce_end(Be *be, virDomainPtr domain, const char *uuid, const char *area,
                    BeWindow *window)
{
    g_autoptr(GError) error = NULL;
    gint64 window_us = g_get_monotonic_time() - window->begun_us;

    if (!window->frozen) {
        window->consistency = be_freeze_held_consistency(be, uuid);
        return;
    }
    be_crash_point(area, "frozen", "after");
    if (!be_freeze_end(be, domain, uuid, &error)) {
        g_warning("%s", error->message);
    }
    window->frozen_us = MAX(g_get_monotonic_time() - window->begun_us, 1);
    if (window_us < FREEZE_MS * 1000) {
        window->consistency = window->means;
    }
}
