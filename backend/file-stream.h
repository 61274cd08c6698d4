/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * file-stream.h - the stream of a local file that is no disk image: a variable
 * store, a kernel, a saved memory image.
 */
#pragma once

#include "backend/stream.h"

/**
 * be_stream_new_file: the bytes of a file, to its last one: unlike a raw disk it
 * need not be a multiple of 512.
 * @path: absolute; must not change as long as the stream is there
 * @size: bytes; a file that has another size when it is opened is EIO
 *
 * Starts nothing; any thread.  The first read opens the file, on a worker.
 */
BeStream *be_stream_new_file(const char *path, guint64 size);
