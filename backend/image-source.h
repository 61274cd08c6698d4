/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-source.h - a source that reads a chain of images straight from the files, and
 * what is not plain there from a server.  For image-stream.c.
 */
#pragma once

#include "backend/image.h"
#include "backend/nbd.h"

/**
 * be_stream_new_image_source:
 * @chain: (element BeImage): gets a reference
 * @server: shows the same disk; is opened when something has to be read from it
 */
BeStream *be_stream_new_image_source(GPtrArray *chain, const BeNbdExport *server);
