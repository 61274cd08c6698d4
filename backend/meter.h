/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * meter.h - how many bytes a second went by lately.
 *
 * No locks of its own; the owner serialises.
 */
#pragma once

#include <glib.h>

/* Whole seconds that the mean is taken over. */
#define BE_METER_SECONDS 5

/**
 * BeMeter: all zeroes at the beginning.
 */
typedef struct {
    struct {
        gint64 second;
        guint64 bytes;
    } slots[BE_METER_SECONDS + 1]; /* by the second modulo their number */
} BeMeter;

/**
 * be_meter_add: @bytes went by at @now_us of the monotonic clock.
 */
void be_meter_add(BeMeter *meter, gint64 now_us, guint64 bytes);

/**
 * be_meter_rate: bytes per second, the mean of the last BE_METER_SECONDS that are
 * over.
 */
guint64 be_meter_rate(const BeMeter *meter, gint64 now_us);
