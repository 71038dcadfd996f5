#!/bin/sh
# Runs on a stock Debian 13 host (systemd, pure cgroup v2) with the package in . and layers in ./layers: its installation starts
# a host, which serves a woken nginx within its limits and survives SIGKILLs. Then the machine is booted again (kexec: a new
# kernel and a new systemd on the same disk), this script goes on after it, the package is upgraded while a server runs, and
# is removed, leaving nothing behind.
set -u
failed=0 passed=0
[ ! -f /in/passed ] || read -r passed failed < /in/passed
check() { # WHAT COMMAND...
  what=$1; shift
  if "$@" >/tmp/said 2>&1; then passed=$((passed + 1)); echo "ok    $what"
  else failed=$((failed + 1)); echo "FAIL  $what"; sed 's/^/      /' /tmp/said; fi
}
bw() { bailiwick "$@"; }
get() { curl -sS --max-time 60 -H "Host: $1.test" http://127.0.0.1:8080/; }
says() { get "$1" | grep -qx "hello from $1"; }
sleeps() { # NAME SECONDS
  for _ in $(seq "$2"); do bw ps | grep -q "^$1 .*asleep" && return 0; sleep 1; done; bw why "$1"; return 1
}
value() { # FILE EXPECTED
  got=$(cat "$1"); [ "$got" = "$2" ] || { echo "$1: $got, not $2"; return 1; }
}

uname -r; cat /sys/fs/cgroup/cgroup.controllers
if [ ! -f /in/passed ]; then
cgroups_before=$(find /sys/fs/cgroup -name '*bailiwick*' | wc -l)
# systemd's own come and go for each unit that starts; options differ between two boots.
mounts() { grep -v /run/credentials /proc/mounts | cut -d' ' -f1-3 | sort; }
mounts > /tmp/mounts
check "the package is installed" dpkg -i bailiwick.deb
# Its own store: at the boot nothing is mounted under /in yet.
check "its host is up" systemctl is-active bailiwick
cp -a layers/layers/. /var/lib/bailiwick/layers/layers/ && mkdir -p /var/lib/bailiwick/layers/images &&
  cp -a layers/images/. /var/lib/bailiwick/layers/images/
printf '\n[logs]\nship = ["journald", "syslog+unix:/dev/log"]\n' >> /etc/bailiwick/host.toml
check "the host is started again" systemctl restart bailiwick
systemctl --no-pager status bailiwick 2>&1 | head -20
check "doctor finds everything it needs" bw doctor
check "apply" bw apply blog.toml shop.toml
bw ps
check "a woken nginx answers" says blog
check "the other one answers" says shop
check "again, warm" says blog
bw ps --all
unit=$(find /sys/fs/cgroup -type d -name blog | head -n 1)/vps
check "its memory limit is in force" value "$unit/memory.max" 134217728
check "its CPU limit is in force" value "$unit/cpu.max" "100000 100000"
check "its process limit is in force" value "$unit/pids.max" 100
# Its lines are in the journal, by journald's own protocol and by syslog, with fields that are not the tenant's.
journal() { # MATCH...
  for _ in $(seq 30); do journalctl -q --no-pager -o json "$@" | grep -q . && return 0; sleep 1; done
  journalctl -q --no-pager -n 20; bw logs logs; return 1
}
check "a message is logged inside" bw exec blog -- logger -p daemon.err -t probe 'to the journal'
check "journald has it" journal BAILIWICK_VPS=blog BAILIWICK_TENANT=acme BAILIWICK_TAG=probe PRIORITY=3 "MESSAGE=to the journal"
check "under its VPS's name" journal SYSLOG_IDENTIFIER=blog _TRANSPORT=journal
check "and by syslog" sh -c 'journalctl -q --no-pager _TRANSPORT=syslog | grep -q "bailiwick@32473 vps=.blog. tenant=.acme."'
check "exec" sh -c '[ "$(bailiwick exec blog -- hostname)" = blog ]'
check "freeze" bw freeze blog
check "it is frozen" value "$unit/cgroup.freeze" 1
check "a request thaws it" says blog
for victim in control gateway network apps logs; do
  kill -9 "$(bw inspect $victim | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)"
  check "answers after SIGKILL of $victim" says shop
done
keeper=$(systemctl show -p MainPID --value bailiwick)
daemon=$(pgrep -P "$keeper" -f 'daemon' | head -n 1)
kill -9 "$daemon"
check "answers after SIGKILL of bailiwickd" says shop
# Sizes: this kernel has project quotas, on which the system test runs here.
disk=/var/tmp/bailiwick-quota
mkdir -p $disk/lib && truncate -s 300M $disk.img && mkfs.ext4 -q -O quota,project $disk.img && mount -o loop,prjquota $disk.img $disk/lib
check "doctor finds project quotas" sh -c "bailiwick --root $disk doctor | grep -q 'project quotas at'"
umount $disk/lib && rm -r $disk $disk.img
mkdir -p cache/bailiwick && mv layers cache/bailiwick/layers
check "project quotas of ext4 and xfs enforce sizes" env BAILIWICK_PROJECT_QUOTAS=1 BAILIWICK_PROJECT=/in XDG_CACHE_HOME=/in/cache \
  BAILIWICK_BIN=/usr/lib/bailiwick/current ./sizes --test-threads=1 project_quotas
check "an export on xfs lets its VPS go on at once" env BAILIWICK_PROJECT_QUOTAS=1 BAILIWICK_PROJECT=/in XDG_CACHE_HOME=/in/cache \
  BAILIWICK_BIN=/usr/lib/bailiwick/current ./copies --test-threads=1 xfs
check "connections to an owned address go past the gateway" env BAILIWICK_PROJECT=/in XDG_CACHE_HOME=/in/cache \
  BAILIWICK_BIN=/usr/lib/bailiwick/current ./owned --test-threads=1 once_it_is_up a_route_by_an_owned
check "the firewall lets VPSs connect to what it says" env BAILIWICK_PROJECT=/in XDG_CACHE_HOME=/in/cache \
  BAILIWICK_BIN=/usr/lib/bailiwick/current ./egress --test-threads=1 a_vps_connects a_tenant_chooses
check "and among each other" env BAILIWICK_PROJECT=/in XDG_CACHE_HOME=/in/cache \
  BAILIWICK_BIN=/usr/lib/bailiwick/current ./neighbours --test-threads=1 who_has_no_rule a_rule_by_label
rm -r cache
check "blog falls asleep" sleeps blog 60
check "shop falls asleep" sleeps shop 60
check "and is woken again" says blog
bw why blog
sed 's/^idle .*/idle = "never"/; s/blog/steady/g' blog.toml > steady.toml
check "a server that never sleeps is applied" bw apply steady.toml
check "it answers" says steady
echo "broken = " >> /etc/bailiwick/host.toml
echo "$passed $failed" > /in/passed; cat /proc/sys/kernel/random/boot_id > /in/boot
cp /tmp/mounts /in/; echo "$cgroups_before" > /in/cgroups; sync
kexec -l /boot/vmlinuz-* --initrd="$(ls /boot/initrd.img-*)" --reuse-cmdline && systemctl kexec && sleep 1000
echo "FAIL  the machine is not booted again"; exit 1
fi

mounts() { grep -v /run/credentials /proc/mounts | cut -d' ' -f1-3 | sort; }
cgroups_before=$(cat /in/cgroups)
differ() { [ "$(cat /proc/sys/kernel/random/boot_id)" != "$(cat /in/boot)" ]; }
check "the machine was booted anew" differ
check "the host came up with it, with a broken host.toml" systemctl is-active bailiwick
check "which is told" sh -c 'bailiwick ps 2>&1 | grep -q "host.toml:.*is in force"'
runs() { for _ in $(seq 60); do bw ps | grep -q "^$1 .*running" && return 0; sleep 1; done; bw why "$1"; return 1; }
check "what never sleeps is up again" runs steady
check "a sleeper is woken" says blog
sed -i '$d' /etc/bailiwick/host.toml
keeper=$(systemctl show -p MainPID --value bailiwick)
pid() { bw inspect "$1" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1; }
server=$(pid steady)
# Requests without a pause, for as long as the upgrade takes.
: > /tmp/asked
while [ ! -f /tmp/upgraded ]; do if says steady; then echo ok; else echo refused; fi >> /tmp/asked 2>&1; done &
load=$!
check "the package is upgraded" dpkg -i later.deb
touch /tmp/upgraded; wait "$load"
sort /tmp/asked | uniq -c
check "nobody was refused meanwhile" sh -c 'grep -q ok /tmp/asked && ! grep -v ok /tmp/asked'
check "the host runs the later version" sh -c 'bailiwick upgrade --check | grep -q "nothing to do: the host runs $(cat /in/later) "'
check "the keeper is the same process" [ "$(systemctl show -p MainPID --value bailiwick)" = "$keeper" ]
check "the server is the same process" [ "$(pid steady)" = "$server" ]
check "a sleeper is woken by the later version" says shop
check "nothing of the version before is kept" sh -c '[ "$(ls -A /usr/lib/bailiwick | wc -l)" = 2 ]'
check "the manual is there" ls /usr/share/man/man1/bailiwick-upgrade.1.gz
check "the package is removed" dpkg -r bailiwick
check "no process is left" sh -c '! pgrep -f "bailiwick[d-]"'
check "no cgroup is left" [ "$(find /sys/fs/cgroup -name '*bailiwick*' | wc -l)" = "$cgroups_before" ]
mounts > /tmp/mounts-after
check "no mount is left" diff /in/mounts /tmp/mounts-after
[ "$failed" = 0 ] || journalctl -u bailiwick --no-pager | tail -n 60
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
