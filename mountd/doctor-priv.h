/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * doctor-priv.h - what the two halves of the doctor share.
 */
#pragma once

#include "mountd/hostxml.h"
#include "mountd/options.h"

typedef enum {
    VM_VERDICT_OK,
    VM_VERDICT_WARN,           /* works, or not in every case */
    VM_VERDICT_BAD,            /* does not work */
} VmVerdict;

typedef struct {
    const VmOptions *options;
    gboolean local;            /* the host of the URI is this one */
    VmHostInfo *host;          /* NULL: libvirt could not be asked */
    gboolean bad;              /* something was */
} VmDoctor;

/**
 * vm_doctor_say: prints the line of a check: a verdict, what was looked at, and
 * what was found or is to be done.
 */
void vm_doctor_say(VmDoctor *doctor, VmVerdict verdict, const char *what, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/**
 * vm_doctor_ask_libvirt: connects through the backend, with directories of its
 * own, and checks what libvirt tells; sets doctor->host.
 */
void vm_doctor_ask_libvirt(VmDoctor *doctor);

/**
 * vm_doctor_check_files: whether there is what an appliance is made of, and KVM.
 */
void vm_doctor_check_files(VmDoctor *doctor);
