/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-xml-checkpoint.c - checkpoints and incremental backups in XML, as libvirt
 * 9.0 writes them, as we do, and hostile.
 *
 * The data files are found by G_TEST_SRCDIR, which must name tests/.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "xml.h"

#define SCHEMAS "/usr/share/libvirt/schemas/"

static char *load(const char *name)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "data", name, NULL);
    g_autoptr(GError) error = NULL;
    char *text = NULL;

    g_file_get_contents(path, &text, NULL, &error);
    g_assert_no_error(error);
    return text;
}

/* libvirt's own schema accepts what we send. */
static void validate(const char *schema, const char *xml)
{
    g_autofree char *path = NULL;
    g_autoptr(GError) error = NULL;
    const char *argv[] = {"xmllint", "--noout", "--relaxng", schema, NULL, NULL};
    int fd = g_file_open_tmp("test-xml-XXXXXX", &path, NULL);
    int status = -1;

    g_assert_cmpint(fd, >=, 0);
    g_close(fd, NULL);
    g_file_set_contents(path, xml, -1, &error);
    g_assert_no_error(error);
    argv[4] = path;
    if (g_file_test(schema, G_FILE_TEST_EXISTS)
        && g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL,
                        &status, NULL)) {
        g_assert_cmpint(status, ==, 0);
    } else {
        g_test_message("no schema or no xmllint: not validated");
    }
    g_remove(path);
}

static void test_parse(void)
{
    g_autofree char *text = load("checkpoint.xml");
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlCheckpoint) checkpoint = be_xml_checkpoint_parse(text, &error);
    g_autoptr(BeXmlDomain) domain = NULL;
    const BeXmlCheckpointDisk *disk;

    g_assert_no_error(error);
    g_assert_cmpstr(checkpoint->name, ==, "mon & tue");
    g_assert_cmpstr(checkpoint->description, ==, "before the upgrade");
    g_assert_cmpstr(checkpoint->parent, ==, "sun");
    g_assert_cmpint(checkpoint->created_s, ==, 1795262655);
    g_assert_cmpuint(checkpoint->disks->len, ==, 4);
    disk = be_xml_checkpoint_disk(checkpoint, "vda");
    g_assert_cmpstr(disk->bitmap, ==, "mon & tue");
    g_assert_true(disk->has_size);
    g_assert_cmpuint(disk->size, ==, 196608);
    disk = be_xml_checkpoint_disk(checkpoint, "vdb");
    g_assert_true(disk->has_size);
    g_assert_cmpuint(disk->size, ==, 0);
    g_assert_null(be_xml_checkpoint_disk(checkpoint, "vdc"));
    g_assert_null(be_xml_checkpoint_disk(checkpoint, "vdz"));
    g_assert_cmpstr(checkpoint->domain_uuid, ==, "55127f7d-dabe-4c76-8457-609c6ce14af6");
    domain = be_xml_domain_parse(checkpoint->domain_xml, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(domain->name, ==, "web1");
    g_assert_nonnull(be_xml_domain_disk(domain, "vda"));
}

static void test_parse_little(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlCheckpoint) checkpoint = be_xml_checkpoint_parse(
        "<domaincheckpoint><name>a</name><creationTime>-5</creationTime>"
        "<disks><disk name='vda'/><disk name='vdb' checkpoint='bitmap' bitmap='b' size='x'/>"
        "</disks></domaincheckpoint>", &error);

    g_assert_no_error(error);
    g_assert_null(checkpoint->description);
    g_assert_null(checkpoint->parent);
    g_assert_null(checkpoint->domain_xml);
    g_assert_null(checkpoint->domain_uuid);
    g_assert_cmpint(checkpoint->created_s, ==, 0);
    g_assert_cmpstr(be_xml_checkpoint_disk(checkpoint, "vda")->bitmap, ==, "a");
    g_assert_cmpstr(be_xml_checkpoint_disk(checkpoint, "vdb")->bitmap, ==, "b");
    g_assert_false(be_xml_checkpoint_disk(checkpoint, "vdb")->has_size);
}

static void test_parse_bad(void)
{
    static const char *const bad[] = {
        "<domaincheckpoint/>",
        "<domaincheckpoint><name/></domaincheckpoint>",
        "<domainsnapshot><name>a</name></domainsnapshot>",
        "<domaincheckpoint><name>a</name><disks><disk/></disks></domaincheckpoint>",
        "<domaincheckpoint><name>a</name><disks><disk name='../a'/></disks></domaincheckpoint>",
        "<!DOCTYPE d [<!ENTITY a 'b'>]><domaincheckpoint><name>&a;</name></domaincheckpoint>",
        "<domaincheckpoint><name>a</name>",
        "",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(be_xml_checkpoint_parse(bad[i], &error));
        g_assert_error(error, BE_ERROR, EIO);
        g_assert_cmpstr(error->message, !=, "");
    }
    be_xml_checkpoint_free(NULL);
}

static void test_build(void)
{
    BeXmlCheckpointDisk vda = {.target = (char *)"vda", .bitmap = (char *)"any"};
    BeXmlCheckpointDisk vdb = {.target = (char *)"vdb"};
    BeXmlCheckpointDisk bad = {.target = (char *)"../vdb"};
    g_autoptr(GPtrArray) disks = g_ptr_array_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlCheckpoint) checkpoint = NULL;
    g_autofree char *xml = NULL;

    g_ptr_array_add(disks, &vda);
    g_ptr_array_add(disks, &vdb);
    xml = be_xml_checkpoint_build("a<b>&\"'", "text & more", disks, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(xml, ==,
                    "<domaincheckpoint>\n"
                    "  <name>a&lt;b&gt;&amp;\"'</name>\n"
                    "  <description>text &amp; more</description>\n"
                    "  <disks>\n"
                    "    <disk name=\"vda\" checkpoint=\"bitmap\"/>\n"
                    "    <disk name=\"vdb\" checkpoint=\"no\"/>\n"
                    "  </disks>\n"
                    "</domaincheckpoint>\n");
    checkpoint = be_xml_checkpoint_parse(xml, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(checkpoint->name, ==, "a<b>&\"'");
    g_assert_cmpstr(checkpoint->description, ==, "text & more");
    g_clear_pointer(&xml, g_free);
    xml = be_xml_checkpoint_build("2026-11-23", NULL, disks, &error);
    g_assert_no_error(error);
    validate(SCHEMAS "domaincheckpoint.rng", xml);
    g_assert_null(be_xml_checkpoint_build("a\nb", NULL, disks, &error));
    g_assert_error(error, BE_ERROR, EINVAL);
    g_clear_error(&error);
    g_assert_null(be_xml_checkpoint_build("a", "\x01", disks, &error));
    g_assert_error(error, BE_ERROR, EINVAL);
    g_clear_error(&error);
    g_ptr_array_add(disks, &bad);
    g_assert_null(be_xml_checkpoint_build("a", NULL, disks, &error));
    g_assert_error(error, BE_ERROR, EINVAL);
}

static void test_without(void)
{
    g_autofree char *text = load("checkpoint.xml");
    g_autoptr(GError) error = NULL;
    g_autofree char *less = be_xml_checkpoint_without(text, "vda", &error);
    g_autoptr(BeXmlCheckpoint) checkpoint = NULL;

    g_assert_no_error(error);
    checkpoint = be_xml_checkpoint_parse(less, &error);
    g_assert_no_error(error);
    g_assert_null(be_xml_checkpoint_disk(checkpoint, "vda"));
    g_assert_nonnull(be_xml_checkpoint_disk(checkpoint, "vdb"));
    g_assert_cmpstr(checkpoint->parent, ==, "sun");
    g_assert_nonnull(checkpoint->domain_xml);
    g_assert_null(be_xml_checkpoint_without(less, "vda", &error));
    g_assert_error(error, BE_ERROR, ENOENT);
    g_clear_error(&error);
    g_assert_null(be_xml_checkpoint_without("<x/>", "vda", &error));
    g_assert_error(error, BE_ERROR, EIO);
}

static char *parent_after(const char *xml, const char *parent)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *other = be_xml_checkpoint_with_parent(xml, parent, &error);
    g_autoptr(BeXmlCheckpoint) checkpoint = NULL;

    g_assert_no_error(error);
    checkpoint = be_xml_checkpoint_parse(other, &error);
    g_assert_no_error(error);
    g_assert_nonnull(be_xml_checkpoint_disk(checkpoint, "vda"));
    return g_steal_pointer(&checkpoint->parent);
}

static void test_with_parent(void)
{
    g_autofree char *text = load("checkpoint.xml");
    g_autofree char *bare = be_xml_checkpoint_with_parent(text, NULL, NULL);
    g_autofree char *none = parent_after(text, NULL);
    g_autofree char *other = parent_after(text, "sat & <all>");
    g_autofree char *first = parent_after(bare, "sat");
    g_autoptr(GError) error = NULL;

    g_assert_null(none);
    g_assert_cmpstr(other, ==, "sat & <all>");
    g_assert_cmpstr(first, ==, "sat");
    g_assert_null(be_xml_checkpoint_with_parent("<x/>", "sat", &error));
    g_assert_error(error, BE_ERROR, EIO);
}

static void test_incremental_parse(void)
{
    g_autofree char *text = load("backup-incremental.xml");
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlBackup) backup = be_xml_backup_parse(text, &error);
    const BeXmlBackupDisk *disk;

    g_assert_no_error(error);
    g_assert_cmpstr(backup->incremental, ==, "mon");
    disk = backup->disks->pdata[0];
    g_assert_cmpstr(disk->incremental, ==, "mon");
    g_assert_cmpstr(disk->export_bitmap, ==, "changes");
    disk = backup->disks->pdata[1];
    g_assert_null(disk->incremental);
    g_assert_null(disk->export_bitmap);
}

static void test_incremental_build(void)
{
    BeXmlBackupDisk vda = {.target = (char *)"vda", .backup = TRUE, .incremental = (char *)"mon",
                           .export_bitmap = (char *)"changes", .scratch = (char *)"/s/vda"};
    BeXmlBackupDisk vdb = {.target = (char *)"vdb", .backup = TRUE, .scratch = (char *)"/s/vdb"};
    g_autoptr(GPtrArray) disks = g_ptr_array_new();
    g_autoptr(GError) error = NULL;
    g_autofree char *xml = NULL;

    g_ptr_array_add(disks, &vda);
    g_ptr_array_add(disks, &vdb);
    xml = be_xml_backup_build("/r/nbd.sock", disks, &error);
    g_assert_no_error(error);
    g_assert_nonnull(strstr(xml, " exportname=\"vda\" backupmode=\"incremental\""
                                 " incremental=\"mon\" exportbitmap=\"changes\">"));
    g_assert_nonnull(strstr(xml, " type=\"file\" exportname=\"vdb\">"));
    validate(SCHEMAS "domainbackup.rng", xml);
    vda.incremental = (char *)"m\nn";
    g_assert_null(be_xml_backup_build("/r/nbd.sock", disks, &error));
    g_assert_error(error, BE_ERROR, EINVAL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/xml/checkpoint/parse", test_parse);
    g_test_add_func("/xml/checkpoint/parse-little", test_parse_little);
    g_test_add_func("/xml/checkpoint/parse-bad", test_parse_bad);
    g_test_add_func("/xml/checkpoint/build", test_build);
    g_test_add_func("/xml/checkpoint/without", test_without);
    g_test_add_func("/xml/checkpoint/with-parent", test_with_parent);
    g_test_add_func("/xml/incremental/parse", test_incremental_parse);
    g_test_add_func("/xml/incremental/build", test_incremental_build);
    return g_test_run();
}
