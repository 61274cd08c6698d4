/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * hold.h - what is open while somebody uses it, and can be let go of in between: a file, a
 * chain of images with its locks.
 */
#pragma once

#include <glib.h>

typedef struct BeHold BeHold;

/**
 * BeHoldOps: what is held.  open() may block; calls of one hold follow one another, on the
 * threads that call be_hold_take().  close() gets what open() returned, on any thread.
 */
typedef struct {
    gpointer (*open)(gpointer user, GError **error); /* Returns: not NULL, or fails */
    void (*close)(gpointer held);
} BeHoldOps;

/**
 * be_hold_new: opens nothing.
 * @user: of open(); outlives every other call
 *
 * Returns: to free with be_hold_free(), which closes what is open.
 */
BeHold *be_hold_new(const BeHoldOps *ops, gpointer user);
void be_hold_free(BeHold *hold);

/**
 * be_hold_take: what is held, which stays until be_hold_give().  Opens it where nobody has
 * it, and then blocks: workers.
 * Returns: NULL: as open() failed
 */
gpointer be_hold_take(BeHold *hold, GError **error);

/**
 * be_hold_take_open: the same without blocking: NULL where it is not open.
 */
gpointer be_hold_take_open(BeHold *hold);
void be_hold_give(BeHold *hold);

/**
 * be_hold_rest: closes it, as soon as nobody has it, until the next who takes it.  Blocks
 * as close() does; workers.
 */
void be_hold_rest(BeHold *hold);
