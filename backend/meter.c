/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * meter.c - bytes a second; see meter.h.  Pure.
 */
#include "backend/meter.h"

void be_meter_add(BeMeter *meter, gint64 now_us, guint64 bytes)
{
    gint64 second = now_us / G_USEC_PER_SEC;
    gsize slot = (gsize)second % G_N_ELEMENTS(meter->slots);

    if (meter->slots[slot].second != second) {
        meter->slots[slot].second = second;
        meter->slots[slot].bytes = 0;
    }
    meter->slots[slot].bytes += bytes;
}

guint64 be_meter_rate(const BeMeter *meter, gint64 now_us)
{
    gint64 second = now_us / G_USEC_PER_SEC;
    guint64 bytes = 0;

    for (gsize i = 0; i < G_N_ELEMENTS(meter->slots); i++) {
        if (meter->slots[i].second < second
            && meter->slots[i].second >= second - BE_METER_SECONDS) {
            bytes += meter->slots[i].bytes;
        }
    }
    return bytes / BE_METER_SECONDS;
}
