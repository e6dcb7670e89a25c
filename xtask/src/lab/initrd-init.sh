#!/busybox sh
# First program of a lab guest: loads the disk drivers, mounts the root file system, hands over to guest-init.
bb=/busybox

fail() {
    echo "lab: $*" >/dev/console
    $bb poweroff -f
    $bb sleep 60
}

$bb mount -t devtmpfs devtmpfs /dev
for module in /boot-modules/*.ko; do
    [ -e "$module" ] || continue
    $bb insmod "$module" || echo "lab: cannot load $module" >/dev/console
done

release=$($bb uname -r)
$bb mount -t ext4 /dev/vda /root || fail "cannot mount the root disk"
$bb mkdir -p "/root/usr/lib/modules/$release"
$bb mount -t ext4 -o ro /dev/vdb "/root/usr/lib/modules/$release" || fail "cannot mount the modules disk"
$bb mkdir -p /root/lab
$bb mount -t ext4 /dev/vdc /root/lab || fail "cannot mount the job disk"
$bb rmdir /root/lab/lost+found
$bb mount -t tmpfs -o mode=755 tmpfs /root/run
$bb mkdir /root/run/lab
$bb cp /busybox /guest-init /command /root/run/lab/ || fail "cannot copy the job's command"
$bb umount /dev
exec $bb switch_root /root /run/lab/guest-init
fail "cannot start guest-init"
