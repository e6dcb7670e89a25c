#!/run/lab/busybox sh
# PID 1 of a lab guest: mounts what a distribution would have mounted, runs /run/lab/command in /lab, reports
# its exit status on the virtio port `lab.status` and powers off. Tolerant: what a kernel lacks, it lacks.
# Static busybox where it will do: starting a dynamic program costs an emulated guest about 0.1 s.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=dumb
export WHY502_LAB_CACHE=/opt/why502-lab # what of the lab's cache a guest has: the current nginx
bb=/run/lab/busybox

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/console 2>&1 # what the kernel opened belongs to the initrd
$bb mkdir -p /dev/pts /dev/shm /run/lock /run/nginx /var/log/nginx
$bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$bb mount -t tmpfs tmpfs /dev/shm
$bb mount -t tmpfs -o mode=1777 tmpfs /tmp
$bb mount -t securityfs securityfs /sys/kernel/security
$bb mount -t debugfs debugfs /sys/kernel/debug
$bb mount -t tracefs tracefs /sys/kernel/tracing
$bb mount -t bpf bpf /sys/fs/bpf
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
$bb ln -sf /proc/self/fd /dev/fd
$bb ln -sf /proc/self/fd/0 /dev/stdin
$bb ln -sf /proc/self/fd/1 /dev/stdout
$bb ln -sf /proc/self/fd/2 /dev/stderr

modprobe -qa veth dummy tun nf_conntrack nf_tables nft_ct nft_reject_inet nft_chain_nat ip_tables
$bb ip link set lo up
$bb hostname lab

# Kernels that start with lsm=…,selinux have no policy yet: everything runs as kernel_t and is allowed.
if [ -d /sys/fs/selinux ] && $bb grep -qw selinux /sys/kernel/security/lsm; then
    $bb mount -t selinuxfs selinuxfs /sys/fs/selinux
    load_policy -i || echo "lab: load_policy failed" >/dev/console
    restorecon -R /dev /run # these file systems came before the policy
fi

# Sets stdout, stderr and status to the devices of the ports with these names.
find_ports() {
    for class in /sys/class/virtio-ports/*; do
        name=
        read -r name <"$class/name"
        case $name in
        lab.stdout) stdout=/dev/${class##*/} ;;
        lab.stderr) stderr=/dev/${class##*/} ;;
        lab.status) status=/dev/${class##*/} ;;
        esac
    done
}
tries=0
until find_ports 2>/dev/null && [ -c "$stdout" ] && [ -c "$stderr" ] && [ -c "$status" ] || [ $tries -ge 100 ]; do
    tries=$((tries + 1))
    $bb sleep 0.1
done
exec 3>"$status"

# A port can be opened once only, and programs reopen /dev/stdout: they get pipes, `cat` owns the ports.
$bb mkfifo /run/lab/out /run/lab/err
$bb cat </run/lab/out >"$stdout" 3>&- &
out=$!
$bb cat </run/lab/err >"$stderr" 3>&- &
err=$!

cd /lab || echo "lab: no job disk" >/dev/console
echo start >&3
# A shell of the root file system: busybox's own prefers its applets to real programs.
$bb setsid /bin/sh /run/lab/command </dev/null >/run/lab/out 2>/run/lab/err 3>&-
result=$?

# Whatever the command left running would keep the pipes open.
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    case $pid in
    1 | $out | $err) ;;
    *) kill -KILL "$pid" 2>/dev/null ;;
    esac
done
wait $out $err
cd /
$bb umount /lab || $bb sync
echo "exit $result" >&3
echo o >/proc/sysrq-trigger
$bb sleep 60
