/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-xml.c - backend/xml.c on libvirt 9.0's own dumps and on hostile texts.
 *
 * The data files are found by G_TEST_SRCDIR, which must name tests/.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "xml.h"

#define SCHEMA "/usr/share/libvirt/schemas/domainbackup.rng"
#define SHUTOFF_IMAGE "/var/lib/libvirt/images/web1.qcow2"

static char *load(const char *name)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "data", name, NULL);
    g_autoptr(GError) error = NULL;
    char *text = NULL;

    g_file_get_contents(path, &text, NULL, &error);
    g_assert_no_error(error);
    return text;
}

static BeXmlDomain *load_domain(const char *name)
{
    g_autofree char *text = load(name);
    g_autoptr(GError) error = NULL;
    BeXmlDomain *domain = be_xml_domain_parse(text, &error);

    g_assert_no_error(error);
    g_assert_nonnull(domain);
    return domain;
}

static void assert_refused(const char *xml, int errnum)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(be_xml_domain_parse(xml, &error));
    g_assert_error(error, BE_ERROR, errnum);
    g_assert_cmpstr(error->message, !=, "");
}

static void assert_level(const BeXmlLevel *level, BeXmlSource source, const char *path,
                         const char *format, guint index)
{
    g_assert_cmpint(level->source, ==, source);
    g_assert_cmpstr(level->path, ==, path);
    g_assert_cmpstr(level->format, ==, format);
    g_assert_cmpuint(level->index, ==, index);
}

static void test_running(void)
{
    g_autoptr(BeXmlDomain) domain = load_domain("domain-running.xml");
    const BeXmlDisk *disk = NULL;

    g_assert_cmpstr(domain->name, ==, "web1");
    g_assert_cmpstr(domain->uuid, ==, "5e3b0f5a-3c0e-4f5c-9d3f-2b1f0c6a7e11");
    g_assert_cmpstr(domain->type, ==, "qemu");
    g_assert_cmpstr(domain->loader, ==, "/var/lib/libvirt/images/OVMF_CODE.fd");
    g_assert_cmpstr(domain->loader_type, ==, "pflash");
    g_assert_cmpstr(domain->nvram, ==, "/var/lib/libvirt/images/OVMF_VARS.fd");
    g_assert_cmpstr(domain->dac_label, ==, "+64055:+64055");
    g_assert_null(domain->kernel);
    g_assert_false(domain->has_hostdevs);
    g_assert_cmpuint(domain->disks->len, ==, 5);

    disk = be_xml_domain_disk(domain, "vda");
    g_assert_cmpstr(disk->bus, ==, "virtio");
    assert_level(&disk->top, BE_XML_SOURCE_FILE, SHUTOFF_IMAGE, "qcow2", 5);
    g_assert_cmpuint(disk->backing->len, ==, 2);
    assert_level(disk->backing->pdata[0], BE_XML_SOURCE_FILE, "/var/lib/libvirt/images/mid.qcow2",
                 "qcow2", 6);
    assert_level(disk->backing->pdata[1], BE_XML_SOURCE_FILE, "/var/lib/libvirt/images/base.raw",
                 "raw", 7);
    g_assert_true(disk->backing_complete);
    g_assert_null(disk->error_policy);
    g_assert_null(be_xml_domain_disk(domain, "vdz"));
}

static void test_running_other_disks(void)
{
    g_autoptr(BeXmlDomain) domain = load_domain("domain-running.xml");
    const BeXmlDisk *disk = be_xml_domain_disk(domain, "vdb");

    assert_level(&disk->top, BE_XML_SOURCE_BLOCK, "/dev/vg0/data", "raw", 4);
    g_assert_cmpstr(disk->error_policy, ==, "report");
    g_assert_true(disk->backing_complete);

    disk = be_xml_domain_disk(domain, "vdc");
    assert_level(&disk->top, BE_XML_SOURCE_NETWORK, NULL, "raw", 3);
    g_assert_cmpstr(disk->protocol, ==, "nbd");
    g_assert_true(disk->readonly);

    disk = be_xml_domain_disk(domain, "sda");
    g_assert_cmpint(disk->device, ==, BE_XML_DEVICE_CDROM);
    assert_level(&disk->top, BE_XML_SOURCE_NONE, NULL, NULL, 0);

    disk = be_xml_domain_disk(domain, "sdb");
    assert_level(&disk->top, BE_XML_SOURCE_FILE, "/var/lib/libvirt/images/cd.iso", "raw", 1);
}

static void test_shutoff(void)
{
    g_autoptr(BeXmlDomain) domain = load_domain("domain-shutoff.xml");
    const BeXmlDisk *disk = be_xml_domain_disk(domain, "vda");

    g_assert_cmpuint(domain->disks->len, ==, 5);
    assert_level(&disk->top, BE_XML_SOURCE_FILE, SHUTOFF_IMAGE, "qcow2", 0);
    g_assert_cmpuint(disk->backing->len, ==, 0);
    g_assert_false(disk->backing_complete);
    g_assert_null(domain->dac_label);
}

static void test_odd_domain(void)
{
    g_autoptr(BeXmlDomain) domain = load_domain("domain-odd.xml");

    g_assert_cmpstr(domain->type, ==, "kvm");
    g_assert_cmpstr(domain->nvram, ==, "/var/lib/libvirt/qemu/nvram/odd VARS.fd");
    g_assert_cmpstr(domain->kernel, ==, "/boot/vmlinuz");
    g_assert_cmpstr(domain->initrd, ==, "/boot/initrd.img ");
    g_assert_cmpstr(domain->dac_label, ==, "root:kvm");
    g_assert_true(domain->has_hostdevs);
}

static void test_host_devices(void)
{
    static const char *const types[] = {"interface type='hostdev'", "interface type='vdpa'",
                                        "hostdev", "interface type='network'", "sound"};

    for (gsize i = 0; i < G_N_ELEMENTS(types); i++) {
        g_autofree char *text = g_strdup_printf(
            "<domain type='kvm'><name>a</name><uuid>u</uuid><devices><%s/></devices></domain>",
            types[i]);
        g_autoptr(BeXmlDomain) domain = be_xml_domain_parse(text, NULL);

        g_assert_cmpint(domain->has_hostdevs, ==, i < 3);
    }
}

static void test_odd_disks(void)
{
    g_autoptr(BeXmlDomain) domain = load_domain("domain-odd.xml");
    const BeXmlDisk *disk = be_xml_domain_disk(domain, "sda");

    g_assert_true(disk->top.encrypted);
    g_assert_true(disk->shareable);
    g_assert_cmpstr(disk->error_policy, ==, "stop");
    disk = be_xml_domain_disk(domain, "sdb");
    assert_level(&disk->top, BE_XML_SOURCE_VOLUME, NULL, "raw", 0);
    g_assert_cmpstr(disk->pool, ==, "default");
    g_assert_cmpstr(disk->volume, ==, "odd.raw");
    g_assert_true(disk->transient);
    disk = be_xml_domain_disk(domain, "sdc");
    g_assert_true(disk->top.sliced);
    disk = be_xml_domain_disk(domain, "fda");
    g_assert_cmpint(disk->device, ==, BE_XML_DEVICE_FLOPPY);
    g_assert_cmpint(disk->top.source, ==, BE_XML_SOURCE_NONE);
    disk = be_xml_domain_disk(domain, "sdd");
    g_assert_cmpstr(be_xml_device_name(disk->device), ==, "lun");
    disk = be_xml_domain_disk(domain, "sde");
    assert_level(&disk->top, BE_XML_SOURCE_DIR, "/srv/share", "fat", 0);
    disk = be_xml_domain_disk(domain, "vda");
    assert_level(&disk->top, BE_XML_SOURCE_NVME, NULL, "raw", 0);
    disk = be_xml_domain_disk(domain, "vdb");
    assert_level(&disk->top, BE_XML_SOURCE_VHOSTUSER, NULL, "raw", 0);
    disk = be_xml_domain_disk(domain, "vdc");
    g_assert_cmpstr(be_xml_source_name(disk->top.source), ==, "other");
    disk = be_xml_domain_disk(domain, "vdd");
    g_assert_true(disk->mirrored);
    g_assert_false(disk->backing_complete);
    assert_level(disk->backing->pdata[0], BE_XML_SOURCE_FILE, "/images/below.img", NULL, 0);
}

/* faults.md 22, 26: what libvirt has is read exactly, whatever it is. */
static void test_names(void)
{
    g_autoptr(BeXmlDomain) domain = load_domain("domain-names.xml");
    const BeXmlDisk *disk = be_xml_domain_disk(domain, "vda");

    g_assert_cmpstr(domain->name, ==, " -a<b>&c\"d'e]]>f/../%41 \xc3\xa9 ");
    g_assert_cmpstr(disk->top.path, ==, "/images/ <a> & \"b\" 'c' ]]>,d=e\nf.img");
}

/* faults.md 115 */
static void test_entities(void)
{
    g_autofree char *laughs = load("domain-laughs.xml");
    g_autofree char *entity = load("domain-entity.xml");
    gint64 start_us = g_get_monotonic_time();

    assert_refused(laughs, EIO);
    assert_refused(entity, EIO);
    assert_refused("<!DOCTYPE domain SYSTEM 'http://127.0.0.1/x.dtd'><domain/>", EIO);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, G_USEC_PER_SEC);
}

static void test_truncated(void)
{
    g_autofree char *text = load("domain-running.xml");
    size_t length = strlen(g_strchomp(text));

    for (size_t cut = length; cut-- > 0;) {
        text[cut] = 0;
        if (cut % 37 == 0 || cut + 1 == length) {
            assert_refused(text, EIO);
        }
    }
}

static void test_too_large(void)
{
    g_autoptr(GString) text = g_string_new("<domain type='qemu'><name>a</name><uuid>b</uuid><!--");
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlDomain) domain = NULL;

    while (text->len < BE_XML_MAX_BYTES - strlen("--></domain>")) {
        g_string_append_c(text, 'x');
    }
    g_string_append(text, "--></domain>");
    domain = be_xml_domain_parse(text->str, &error);
    g_assert_no_error(error);
    g_string_append_c(text, ' ');
    assert_refused(text->str, EFBIG);
    g_string_set_size(text, 9 * 1024 * 1024);
    memset(text->str, ' ', text->len);
    assert_refused(text->str, EFBIG);
}

/* A chain as long as QEMU allows is read, one without end is refused. */
static void test_deep(void)
{
    static const guint depths[] = {200, 10000};

    for (size_t i = 0; i < G_N_ELEMENTS(depths); i++) {
        g_autoptr(GString) text = g_string_new("<domain type='qemu'><name>a</name><uuid>b</uuid>"
                                               "<devices><disk type='file'>");
        g_autoptr(GError) error = NULL;
        g_autoptr(BeXmlDomain) domain = NULL;

        for (guint n = 0; n < depths[i]; n++) {
            g_string_append(text, "<backingStore type='file'><format type='qcow2'/>"
                                  "<source file='/x'/>");
        }
        for (guint n = 0; n < depths[i]; n++) {
            g_string_append(text, "</backingStore>");
        }
        g_string_append(text, "<target dev='vda'/></disk></devices></domain>");
        domain = be_xml_domain_parse(text->str, &error);
        if (i == 0) {
            g_assert_no_error(error);
            g_assert_cmpuint(be_xml_domain_disk(domain, "vda")->backing->len, ==, 200);
        } else {
            g_assert_error(error, BE_ERROR, EIO);
        }
    }
}

static void test_bad_domains(void)
{
    static const char *const texts[] = {
        "",
        "x",
        "<network/>",
        "<domain/>",
        "<domain type='qemu'><name>a</name></domain>",
        "<domain type='qemu'><name></name><uuid>b</uuid></domain>",
        "<domain type='qemu'><name>a</name><uuid>b</uuid><devices><disk/></devices></domain>",
        "<domain type='qemu'><name>a</name><uuid>b</uuid><devices><disk><target dev='../x'/>"
        "</disk></devices></domain>",
        "<domain type='qemu'><name>a</name><uuid>b</uuid><devices><disk><target dev='vda'/>"
        "</disk><disk><target dev='vda'/></disk></devices></domain>",
        "<domain type='qemu'><name>\xff</name><uuid>b</uuid></domain>",
        "<domain type='qemu'><name>a&#1;</name><uuid>b</uuid></domain>",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        assert_refused(texts[i], EIO);
    }
    be_xml_domain_free(NULL);
}

static void test_capabilities(void)
{
    g_autofree char *text = load("capabilities.xml");
    g_auto(GStrv) parts = g_strsplit(text, "<disksnapshot default='on' toggle='no'/>", 2);
    g_autofree char *newer = g_strjoinv("<externalSnapshot/>", parts);
    g_autoptr(GError) error = NULL;
    BeXmlCapabilities caps = {.has_dac = FALSE};

    g_assert_true(be_xml_capabilities_parse(text, &caps, &error));
    g_assert_no_error(error);
    g_assert_true(caps.has_dac);
    g_assert_cmpuint(caps.uid, ==, 64055);
    g_assert_cmpuint(caps.gid, ==, 64055);
    g_assert_false(caps.external_snapshot);
    g_assert_true(be_xml_capabilities_parse(newer, &caps, &error));
    g_assert_true(caps.external_snapshot);
    g_assert_true(be_xml_capabilities_parse("<capabilities><host/></capabilities>", &caps, &error));
    g_assert_false(caps.has_dac);
    g_assert_false(be_xml_capabilities_parse("<domain/>", &caps, &error));
    g_assert_error(error, BE_ERROR, EIO);
}

static void test_dac(void)
{
    static const char *const bad[] = {
        "",      "+1",   "+1:",           "root:root", "+1:+2 ",          "++1:2",
        "-1:-1", "1:2:", "+4294967295:0", "1:0x1",     "99999999999:1", NULL,
    };
    uid_t uid = 0;
    gid_t gid = 0;

    g_assert_true(be_xml_dac_parse("+64055:+108", &uid, &gid, NULL));
    g_assert_cmpuint(uid, ==, 64055);
    g_assert_cmpuint(gid, ==, 108);
    g_assert_true(be_xml_dac_parse("0:4294967294", &uid, &gid, NULL));
    g_assert_cmpuint(gid, ==, 4294967294U);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_false(be_xml_dac_parse(bad[i], &uid, &gid, &error));
        g_assert_error(error, BE_ERROR, EINVAL);
    }
}

static void add_disk(GPtrArray *disks, const char *target, gboolean backup, const char *scratch)
{
    BeXmlBackupDisk *disk = g_new0(BeXmlBackupDisk, 1);

    disk->target = (char *)target;
    disk->backup = backup;
    disk->scratch = (char *)scratch;
    g_ptr_array_add(disks, disk);
}

/* libvirt's own schema accepts what we send. */
static void validate(const char *xml)
{
    g_autofree char *path = NULL;
    g_autofree char *output = NULL;
    g_autoptr(GError) error = NULL;
    const char *argv[] = {"xmllint", "--noout", "--relaxng", SCHEMA, NULL, NULL};
    int fd = g_file_open_tmp("test-xml-XXXXXX", &path, NULL);
    int status = -1;

    g_assert_cmpint(fd, >=, 0);
    g_close(fd, NULL);
    g_file_set_contents(path, xml, -1, &error);
    g_assert_no_error(error);
    argv[4] = path;
    if (g_file_test(SCHEMA, G_FILE_TEST_EXISTS)
        && g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, &output,
                        &status, NULL)) {
        g_test_message("%s", output);
        g_assert_cmpint(status, ==, 0);
    } else {
        g_test_message("no schema or no xmllint: not validated");
    }
    g_remove(path);
}

static void test_backup_build(void)
{
    g_autoptr(GPtrArray) disks = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(BeXmlBackup) backup = NULL;
    g_autoptr(GError) error = NULL;
    g_autofree char *xml = NULL;
    const BeXmlBackupDisk *disk = NULL;

    add_disk(disks, "vda", TRUE, "/var/lib/vmsnapfs/s/vda.qcow2");
    add_disk(disks, "sda", FALSE, NULL);
    xml = be_xml_backup_build("/run/vmsnapfs/j/nbd.sock", disks, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(xml, ==,
                    "<domainbackup mode=\"pull\">\n"
                    "  <server transport=\"unix\" socket=\"/run/vmsnapfs/j/nbd.sock\"/>\n"
                    "  <disks>\n"
                    "    <disk name=\"vda\" backup=\"yes\" type=\"file\" exportname=\"vda\">\n"
                    "      <driver type=\"qcow2\"/>\n"
                    "      <scratch file=\"/var/lib/vmsnapfs/s/vda.qcow2\"/>\n"
                    "    </disk>\n"
                    "    <disk name=\"sda\" backup=\"no\"/>\n"
                    "  </disks>\n"
                    "</domainbackup>\n");
    validate(xml);
    backup = be_xml_backup_parse(xml, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(backup->disks->len, ==, 2);
    disk = backup->disks->pdata[0];
    g_assert_cmpstr(disk->export_name, ==, "vda");
    g_assert_cmpstr(disk->scratch, ==, "/var/lib/vmsnapfs/s/vda.qcow2");
}

/* faults.md 22: XML specials survive, what XML cannot hold is refused. */
static void test_backup_build_names(void)
{
    g_autoptr(GPtrArray) disks = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(BeXmlBackup) backup = NULL;
    g_autofree char *xml = NULL;
    const char *socket = "/run/ <a>&amp;\"b'c]]>/-\xc3\xa9";
    static const char *const bad[] = {"/a\nb", "/a\x7f", "/\xff", "a", "", "/\xef\xbf\xbf", NULL};

    xml = be_xml_backup_build(socket, disks, NULL);
    backup = be_xml_backup_parse(xml, NULL);
    g_assert_cmpstr(backup->socket, ==, socket);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GError) scratch_error = NULL;

        g_assert_null(be_xml_backup_build(bad[i], disks, &error));
        g_assert_error(error, BE_ERROR, EINVAL);
        add_disk(disks, "vda", TRUE, bad[i]);
        g_assert_null(be_xml_backup_build("/s", disks, &scratch_error));
        g_assert_error(scratch_error, BE_ERROR, EINVAL);
        g_ptr_array_set_size(disks, 0);
    }
    add_disk(disks, "../vda", FALSE, NULL);
    g_assert_null(be_xml_backup_build("/s", disks, NULL));
}

static void test_backup_parse(void)
{
    g_autofree char *text = load("backup-running.xml");
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlBackup) backup = be_xml_backup_parse(text, &error);
    const BeXmlBackupDisk *disk = NULL;

    g_assert_no_error(error);
    g_assert_true(backup->pull);
    g_assert_cmpstr(backup->socket, ==, "/run/b/nbd.sock");
    g_assert_null(backup->incremental);
    g_assert_cmpuint(backup->disks->len, ==, 5);
    disk = backup->disks->pdata[1];
    g_assert_cmpstr(disk->target, ==, "vdb");
    g_assert_true(disk->backup);
    g_assert_cmpstr(disk->export_name, ==, "vdb");
    g_assert_cmpstr(disk->scratch, ==, "/run/b/vdb.qcow2");
    g_assert_cmpuint(disk->scratch_index, ==, 9);
    disk = backup->disks->pdata[2];
    g_assert_cmpstr(disk->target, ==, "vdc");
    g_assert_false(disk->backup);
    g_assert_null(be_xml_backup_parse("<domainbackup><disks><disk/></disks></domainbackup>",
                                      &error));
    g_assert_error(error, BE_ERROR, EIO);
    be_xml_backup_free(NULL);
}

static BeXmlSnapshot *load_snapshot(const char *name)
{
    g_autofree char *text = load(name);
    g_autoptr(GError) error = NULL;
    BeXmlSnapshot *snapshot = be_xml_snapshot_parse(text, &error);

    g_assert_no_error(error);
    g_assert_nonnull(snapshot);
    return snapshot;
}

static void test_snapshot_memory(void)
{
    g_autoptr(BeXmlSnapshot) snapshot = load_snapshot("snapshot-live-mem.xml");
    const BeXmlSnapshotDisk *disk = be_xml_snapshot_disk(snapshot, "vdb");

    g_assert_cmpstr(snapshot->name, ==, "live-mem");
    g_assert_cmpstr(snapshot->parent, ==, "live-disk");
    g_assert_cmpstr(snapshot->state, ==, "running");
    g_assert_null(snapshot->description);
    g_assert_cmpint(snapshot->created_s, ==, 1795263381);
    g_assert_cmpint(snapshot->memory, ==, BE_PART_EXTERNAL);
    g_assert_cmpstr(snapshot->memory_file, ==, "/var/lib/libvirt/images/m.save");
    g_assert_cmpuint(snapshot->disks->len, ==, 2);
    g_assert_cmpint(disk->part, ==, BE_PART_EXTERNAL);
    assert_level(&disk->overlay, BE_XML_SOURCE_FILE, "/var/lib/libvirt/images/vdb.live-mem",
                 "qcow2", 0);
    assert_level(&be_xml_domain_disk(snapshot->domain, "vdb")->top, BE_XML_SOURCE_FILE,
                 "/var/lib/libvirt/images/vdb.live-disk", "qcow2", 0);
    g_assert_null(be_xml_snapshot_disk(snapshot, "vdc"));
}

static void test_snapshot_disk_only(void)
{
    g_autoptr(BeXmlSnapshot) snapshot = load_snapshot("snapshot-live-disk.xml");

    g_assert_cmpstr(snapshot->description, ==, "two\nlines <&>");
    g_assert_cmpstr(snapshot->state, ==, "disk-snapshot");
    g_assert_cmpint(snapshot->memory, ==, BE_PART_NONE);
    g_assert_null(snapshot->memory_file);
    g_assert_cmpint(be_xml_snapshot_disk(snapshot, "vda")->part, ==, BE_PART_EXTERNAL);
}

static void test_snapshot_internal(void)
{
    g_autoptr(BeXmlSnapshot) snapshot = load_snapshot("snapshot-off-int.xml");
    g_autofree char *xml = load("snapshot-off-int.xml");
    g_autoptr(GError) error = NULL;
    g_autofree char *text = be_xml_snapshot_domain_text(xml, &error);
    g_autoptr(BeXmlDomain) domain = be_xml_domain_parse(text, &error);

    g_assert_no_error(error);
    g_assert_null(snapshot->parent);
    g_assert_cmpstr(snapshot->state, ==, "shutoff");
    g_assert_cmpint(snapshot->memory, ==, BE_PART_NONE);
    g_assert_cmpint(be_xml_snapshot_disk(snapshot, "vda")->part, ==, BE_PART_INTERNAL);
    g_assert_null(be_xml_snapshot_disk(snapshot, "vda")->overlay.path);
    assert_level(&be_xml_domain_disk(domain, "vda")->top, BE_XML_SOURCE_FILE,
                 "/var/lib/libvirt/images/vda.qcow2", "qcow2", 0);
}

#define DOMAIN_OF_TWO \
    "<domain type='qemu'><name>n</name><uuid>u</uuid><devices>" \
    "<disk type='file' device='disk'><source file='/a'/><target dev='vda'/></disk>" \
    "<disk type='file' device='cdrom'><source file='/c'/><target dev='sda'/><readonly/></disk>" \
    "</devices></domain>"

/* What other tools leave out is what libvirt takes it for. */
static void test_snapshot_unsaid(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlSnapshot) off = be_xml_snapshot_parse(
        "<domainsnapshot><name>a</name><state>shutoff</state>" DOMAIN_OF_TWO "</domainsnapshot>",
        &error);
    g_autoptr(BeXmlSnapshot) live = be_xml_snapshot_parse(
        "<domainsnapshot><name>a</name><state>running</state><creationTime>-5</creationTime>"
        DOMAIN_OF_TWO "</domainsnapshot>", &error);
    g_autoptr(BeXmlSnapshot) only = be_xml_snapshot_parse(
        "<domainsnapshot><name>a</name><state>disk-snapshot</state>" DOMAIN_OF_TWO
        "</domainsnapshot>", &error);
    g_autoptr(BeXmlSnapshot) old = be_xml_snapshot_parse(
        "<domainsnapshot><name>a</name><state>martian</state><domain><uuid>u</uuid></domain>"
        "</domainsnapshot>", &error);

    g_assert_no_error(error);
    g_assert_cmpint(off->memory, ==, BE_PART_NONE);
    g_assert_cmpint(be_xml_snapshot_disk(off, "vda")->part, ==, BE_PART_INTERNAL);
    g_assert_cmpint(be_xml_snapshot_disk(off, "sda")->part, ==, BE_PART_NONE);
    g_assert_cmpint(live->memory, ==, BE_PART_INTERNAL);
    g_assert_cmpint(live->created_s, ==, 0);
    g_assert_cmpint(be_xml_snapshot_disk(only, "vda")->part, ==, BE_PART_NONE);
    g_assert_null(old->domain);
    g_assert_cmpstr(old->state, ==, "nostate");
}

static void test_snapshot_bad(void)
{
    static const char *const bad[] = {
        "<domain/>",
        "<domainsnapshot/>",
        "<domainsnapshot><name>a</name><disks><disk/></disks></domainsnapshot>",
        "<domainsnapshot><name>a</name><disks><disk name='../a'/></disks></domainsnapshot>",
        ("<domainsnapshot><name>a</name><disks><disk name='a'/><disk name='a'/></disks>"
         "</domainsnapshot>"),
        "<domainsnapshot><name>a</name><domain><devices/></domain></domainsnapshot>",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(be_xml_snapshot_parse(bad[i], &error));
        g_assert_error(error, BE_ERROR, EIO);
    }
    g_assert_null(be_xml_snapshot_domain_text(bad[0], NULL));
    g_assert_null(be_xml_snapshot_domain_text(bad[1], NULL));
    be_xml_snapshot_free(NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/xml/domain/running", test_running);
    g_test_add_func("/xml/domain/running-other-disks", test_running_other_disks);
    g_test_add_func("/xml/domain/shutoff", test_shutoff);
    g_test_add_func("/xml/domain/odd", test_odd_domain);
    g_test_add_func("/xml/domain/host-devices", test_host_devices);
    g_test_add_func("/xml/domain/odd-disks", test_odd_disks);
    g_test_add_func("/xml/domain/names", test_names);
    g_test_add_func("/xml/domain/entities", test_entities);
    g_test_add_func("/xml/domain/truncated", test_truncated);
    g_test_add_func("/xml/domain/too-large", test_too_large);
    g_test_add_func("/xml/domain/deep", test_deep);
    g_test_add_func("/xml/domain/bad", test_bad_domains);
    g_test_add_func("/xml/capabilities", test_capabilities);
    g_test_add_func("/xml/dac", test_dac);
    g_test_add_func("/xml/backup/build", test_backup_build);
    g_test_add_func("/xml/backup/build-names", test_backup_build_names);
    g_test_add_func("/xml/backup/parse", test_backup_parse);
    g_test_add_func("/xml/snapshot/memory", test_snapshot_memory);
    g_test_add_func("/xml/snapshot/disk-only", test_snapshot_disk_only);
    g_test_add_func("/xml/snapshot/internal", test_snapshot_internal);
    g_test_add_func("/xml/snapshot/unsaid", test_snapshot_unsaid);
    g_test_add_func("/xml/snapshot/bad", test_snapshot_bad);
    return g_test_run();
}
