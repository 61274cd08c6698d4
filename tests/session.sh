#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# session.sh VMSNAPFS DOMAIN-XML: a backup in the session of an ordinary user;
# run by test_backup.py as one.
set -eu
vmsnapfs=$1 domain_xml=$2
uri=qemu:///session mnt=$HOME/mnt

qemu-img create -q -f qcow2 "$HOME/vda.qcow2" 64M
qemu-io -f qcow2 -c 'write -P 42 1M 1M' "$HOME/vda.qcow2" >/dev/null
"$domain_xml" --name=user1 --no-agent --disk "target=vda,file=$HOME/vda.qcow2,format=qcow2" \
    > "$HOME/domain.xml"
virsh -c $uri create "$HOME/domain.xml"
"$vmsnapfs" --pid-file="$HOME/pid" $uri "$mnt"
mkdir "$mnt/domains/user1/backups/now"
cp "$mnt/domains/user1/backups/now/disks/vda.raw" "$HOME/copy.raw"
rmdir "$mnt/domains/user1/backups/now"
qemu-img compare -U -f qcow2 -F raw "$HOME/vda.qcow2" "$HOME/copy.raw"
test -z "$(find "$HOME/run/vmsnapfs" -mindepth 1 -name '[0-9a-f]*[0-9a-f]')"
pid=$(cat "$HOME/pid")
fusermount3 -u "$mnt"
while kill -0 "$pid" 2>/dev/null; do :; done
virsh -c $uri destroy user1
# The session's daemon ends by itself when nobody uses it; not soon enough here.
daemon=$(cat "$HOME/run/libvirt/libvirtd.pid")
kill "$daemon"
while kill -0 "$daemon" 2>/dev/null; do :; done
