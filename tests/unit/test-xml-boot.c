/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-xml-boot.c - backend/xml-boot.c: what a throw-away machine keeps of the
 * original, and above all what it does not.
 *
 * The data files are found by G_TEST_SRCDIR, which must name tests/.
 */
#include <errno.h>
#include <string.h>

#include "backend/xml.h"

#define UUID "11111111-2222-4333-8444-555555555555"
#define NVRAM "/scratch/x/nvram"

static char *load(const char *name)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "data", name, NULL);
    g_autoptr(GError) error = NULL;
    char *text = NULL;

    g_file_get_contents(path, &text, NULL, &error);
    g_assert_no_error(error);
    return text;
}

static char *build(const char *xml, const char *target, const char *nvram, GError **error)
{
    g_autofree char *overlay = g_strdup_printf("/scratch/x/%s.qcow2", target);
    BeXmlBootDisk disk = {(char *)target, overlay};
    g_autoptr(GPtrArray) disks = g_ptr_array_new();

    g_ptr_array_add(disks, &disk);
    return be_xml_boot_build(xml, "web1-boot", UUID, disks, nvram, error);
}

static char *build_file(const char *file, const char *target, const char *nvram)
{
    g_autofree char *original = load(file);
    g_autoptr(GError) error = NULL;
    char *xml = build(original, target, nvram, &error);

    g_assert_no_error(error);
    g_assert_nonnull(xml);
    return xml;
}

static void assert_has(const char *xml, const char *text)
{
    if (!strstr(xml, text)) {
        g_error("'%s' is not in %s", text, xml);
    }
}

static void assert_lacks(const char *xml, const char *text)
{
    if (strstr(xml, text)) {
        g_error("'%s' is in %s", text, xml);
    }
}

static void test_running(void)
{
    g_autofree char *xml = build_file("domain-running.xml", "vda", NVRAM);
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlDomain) domain = be_xml_domain_parse(xml, &error);
    const BeXmlDisk *disk;

    g_assert_no_error(error);
    g_assert_cmpstr(domain->name, ==, "web1-boot");
    g_assert_cmpstr(domain->uuid, ==, UUID);
    g_assert_cmpstr(domain->nvram, ==, NVRAM);
    disk = be_xml_domain_disk(domain, "vda");
    g_assert_cmpstr(disk->top.path, ==, "/scratch/x/vda.qcow2");
    g_assert_cmpstr(disk->top.format, ==, "qcow2");
    g_assert_cmpuint(disk->backing->len, ==, 0);
    /* What is in no backup is left out, a drive stays and is empty. */
    g_assert_null(be_xml_domain_disk(domain, "vdb"));
    g_assert_null(be_xml_domain_disk(domain, "vdc"));
    g_assert_cmpint(be_xml_domain_disk(domain, "sdb")->top.source, ==, BE_XML_SOURCE_NONE);
    assert_has(xml, "<link state=\"down\"/>");
    assert_has(xml, "bus=\"0x04\"");
    assert_lacks(xml, "52:54:00:ca:6d:6f");
    assert_lacks(xml, "/dev/vg0/data");
    assert_lacks(xml, "cd.iso");
    assert_lacks(xml, "web1.qcow2");
    assert_lacks(xml, "id='1'");
    assert_lacks(xml, "<alias");
    assert_lacks(xml, "/var/lib/libvirt/images/OVMF_VARS.fd");
    assert_has(xml, "/var/lib/libvirt/images/OVMF_CODE.fd");
}

/* Without a copy of the variable store libvirt makes a new one. */
static void test_no_nvram(void)
{
    g_autofree char *xml = build_file("domain-running.xml", "vda", NULL);

    assert_lacks(xml, "<nvram");
}

static void test_odd(void)
{
    g_autofree char *xml = build_file("domain-odd.xml", "sda", NULL);

    assert_has(xml, "/scratch/x/sda.qcow2");
    assert_lacks(xml, "hostdev");
    assert_lacks(xml, "seclabel");
    assert_lacks(xml, "encryption");
    assert_lacks(xml, "vhost");
    assert_lacks(xml, "/srv/share");
    assert_lacks(xml, "shareable");
    assert_lacks(xml, "error_policy");
}

/* Kinds that this version does not know, and ways around libvirt, are left out. */
static void test_host_devices(void)
{
    static const char xml[] =
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<name>a</name><uuid>0b6f5c1e-53a5-4d8e-8f0b-8e2f7f0a9d10</uuid>"
        "<vcpu placement='static' cpuset='1-3'>2</vcpu><genid>x</genid>"
        "<cputune><vcpupin vcpu='0' cpuset='1'/></cputune><resource/>"
        "<memoryBacking><hugepages/></memoryBacking>"
        "<devices><!-- a remark --><filesystem type='mount'/><shmem name='s'/><vsock/>"
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/>"
        "<target dev='vnet0'/><model type='e1000'/><script path='/etc/up'/></interface>"
        "<serial type='unix'><source mode='bind' path='/tmp/s'/><target port='0'/></serial>"
        "<channel type='unix'><source mode='bind' path='/tmp/agent'/>"
        "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>"
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
        "<rng model='virtio'><backend model='egd' type='udp'><source mode='bind' service='1'/>"
        "</backend></rng><input type='evdev'><source dev='/dev/input/event1'/></input>"
        "<tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend>"
        "</tpm><graphics type='vnc' port='5900'/><newthing host='yes'/></devices>"
        "<qemu:commandline><qemu:arg value='-device'/></qemu:commandline></domain>";
    static const char *const gone[] = {
        "cpuset", "cputune", "memoryBacking", "remark", "filesystem", "shmem", "vsock", "br0",
        "vnet0", "52:54", "/etc/up", "/tmp/", "state=\"connected\"", "spice", "egd", "evdev",
        "/dev/input", "/dev/tpm0", "graphics", "newthing", "commandline", "-device",
    };
    g_autoptr(GError) error = NULL;
    g_autofree char *boot = build(xml, "vda", NULL, &error);

    g_assert_no_error(error);
    for (gsize i = 0; i < G_N_ELEMENTS(gone); i++) {
        assert_lacks(boot, gone[i]);
    }
    assert_has(boot, "<model type=\"e1000\"/>");
    assert_has(boot, "org.qemu.guest_agent.0");
    assert_has(boot, "<backend model=\"random\">/dev/urandom</backend>");
    assert_has(boot, "<genid/>");
}

static void assert_refused(const char *xml, const char *target, const char *nvram, int errnum)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(build(xml, target, nvram, &error));
    g_assert_error(error, BE_ERROR, errnum);
}

static void test_refused(void)
{
    assert_refused("<domain><name>a</name></domain>", "v\x01", NULL, EINVAL);
    assert_refused("<domain><name>a</name></domain>", "vda", "relative", EINVAL);
    assert_refused("<network/>", "vda", NULL, EIO);
    assert_refused("<domain>", "vda", NULL, EIO);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/xml-boot/running", test_running);
    g_test_add_func("/xml-boot/no-nvram", test_no_nvram);
    g_test_add_func("/xml-boot/odd", test_odd);
    g_test_add_func("/xml-boot/host-devices", test_host_devices);
    g_test_add_func("/xml-boot/refused", test_refused);
    return g_test_run();
}
