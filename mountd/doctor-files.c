/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * doctor-files.c - whether guests' files can be read here; see doctor.h.
 *
 * Main thread.
 */
#include <string.h>
#include <unistd.h>

#include "backend/backend.h"
#include "mountd/doctor-priv.h"

#define KERNEL_PREFIX "vmlinuz-"

/*
 * As supermin(1) looks for one to boot the appliance with: its modules have to be there,
 * and some distributions let nobody but root read it.
 * Returns: the version, or NULL.
 */
static char *appliance_kernel(void)
{
    g_autoptr(GDir) dir = g_dir_open("/boot", 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        const char *version;
        g_autofree char *kernel = g_build_filename("/boot", name, NULL);
        g_autofree char *modules = NULL;

        if (!g_str_has_prefix(name, KERNEL_PREFIX)) {
            continue;
        }
        version = name + strlen(KERNEL_PREFIX);
        modules = g_build_filename("/lib/modules", version, "modules.dep", NULL);
        if (access(kernel, R_OK) == 0 && access(modules, R_OK) == 0) {
            return g_strdup(version);
        }
    }
    return NULL;
}

void vm_doctor_check_files(VmDoctor *doctor)
{
    g_autofree char *program = be_files_program();
    g_autofree char *kernel = appliance_kernel();

    if (g_strcmp0(doctor->options->files, "off") == 0) {
        return;
    }
    if (!program) {
        vm_doctor_say(doctor, VM_VERDICT_WARN, "guest files",
                      "vmsnapfs was built without libguestfs: what is in the disks cannot be "
                      "looked at (files/)");
    } else if (!kernel) {
        vm_doctor_say(doctor, VM_VERDICT_WARN, "guest files",
                      "no kernel in /boot that can be read and has its modules: the appliance "
                      "that reads them (files/) does not start; install linux-image-cloud-amd64");
    } else {
        vm_doctor_say(doctor, VM_VERDICT_OK, "guest files", "read by an appliance with kernel %s%s",
                      kernel,
                      access("/dev/kvm", R_OK | W_OK) == 0
                          ? ""
                          : ", without KVM: some 15 s until it answers");
    }
}
