#!/bin/busybox sh
# dom0's first process: what a Xen host needs and nothing else, then the launcher's agent.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mkdir -p /run/xen /run/xenstored /run/lock /var/log/xen /var/lib/xen /var/lib/xenstored /tmp
ln -s /run /var/run
ln -s /run/lock /var/lock
echo "test bed: dom0 userland"
peer insmod $(cat /modules/list) || exit 1
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /run/xenstored.pid
xen-init-dom0
xenconsoled --log=all --log-dir=/var/log/xen --pid-file=/run/xenconsoled.pid
ip link set lo up
echo "test bed: dom0 ready"
peer agent --tty /dev/ttyS1
poweroff -f
