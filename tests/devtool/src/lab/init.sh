#!/bin/busybox sh
# The lab's first process: sets a small Debian host up, runs /lab/command and powers off.
#
# The virtio-serial ports carry what must not mix with the kernel's console: the command's output, its errors, the logs that it
# left behind, and what the lab itself reports ("up", "exit CODE").
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /tmp /run /var; do mount -t tmpfs -o size=90% tmpfs "$folder"; done
chmod 1777 /dev/shm /tmp
mkdir -p /var/lib /var/log /var/tmp /run/lock
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname lab
for module in failover net_failover virtio_net irqbypass kvm kvm-amd; do insmod "/lab/$module.ko"; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up

port() { # the device of the port named $1; the driver finds the ports shortly after the start of this script
  while :; do
    for name in /sys/class/virtio-ports/*/name; do
      if [ "$(cat "$name" 2>/dev/null)" = "$1" ]; then
        name=${name%/name}
        echo "/dev/${name##*/}"
        return
      fi
    done
    usleep 10000
  done
}
output=$(port output) errors=$(port errors) logs=$(port logs) control=$(port control)
exec 3<>"$control"
# Somebody has to take the heartbeats, or there would be no interrupt for the next one.
cat <&3 >/dev/null &
read -r uptime rest < /proc/uptime
echo "up $uptime" >&3
cd /root
sh /lab/command </dev/null >"$output" 2>"$errors" 3>&-
echo "exit $?" >&3
for log in $(find /tmp /run /var -name '*.log' -type f -size +0 2>/dev/null); do
  echo "== $log"
  tail -c 262144 "$log"
done >"$logs"
[ ! -e /lab/keep ] || while :; do sleep 3600; done
poweroff -f
