#!/bin/sh
# Runs on a stock Debian 13 host (systemd, pure cgroup v2) with the programs in ./bin and layers in ./layers: the packaged
# unit starts a host, which serves a woken nginx within its limits, survives SIGKILLs, and leaves nothing behind.
set -u
failed=0 passed=0
check() { # WHAT COMMAND...
  what=$1; shift
  if "$@" >/tmp/said 2>&1; then passed=$((passed + 1)); echo "ok    $what"
  else failed=$((failed + 1)); echo "FAIL  $what"; sed 's/^/      /' /tmp/said; fi
}
bw() { /usr/lib/bailiwick/bailiwick "$@"; }
get() { curl -sS --max-time 60 -H "Host: $1.test" http://127.0.0.1:8080/; }
says() { get "$1" | grep -qx "hello from $1"; }
sleeps() { # NAME SECONDS
  for _ in $(seq "$2"); do bw ps | grep -q "^$1 .*asleep" && return 0; sleep 1; done; bw why "$1"; return 1
}
value() { # FILE EXPECTED
  got=$(cat "$1"); [ "$got" = "$2" ] || { echo "$1: $got, not $2"; return 1; }
}

uname -r; cat /sys/fs/cgroup/cgroup.controllers
mkdir -p /usr/lib/bailiwick /etc/bailiwick
cp bin/bailiwick bin/bailiwickd bin/bailiwick-shim /usr/lib/bailiwick/
{ echo 'layers = "/in/layers"'; sed -n '/^\[designated/,$p' host.toml; } > /etc/bailiwick/host.toml
cp bailiwick.service /etc/systemd/system/
systemctl daemon-reload
cgroups_before=$(find /sys/fs/cgroup -name '*bailiwick*' | wc -l)
# systemd's own come and go for each unit that starts.
mounts() { grep -v /run/credentials /proc/mounts | sort; }
mounts > /tmp/mounts
check "the unit starts and says it is ready" systemctl start bailiwick
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
check "exec" sh -c '[ "$(/usr/lib/bailiwick/bailiwick exec blog -- hostname)" = blog ]'
check "freeze" bw freeze blog
check "it is frozen" value "$unit/cgroup.freeze" 1
check "a request thaws it" says blog
for victim in control gateway network apps; do
  kill -9 "$(bw inspect $victim | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' | head -n 1)"
  check "answers after SIGKILL of $victim" says shop
done
keeper=$(systemctl show -p MainPID --value bailiwick)
daemon=$(pgrep -P "$keeper" -f 'daemon' | head -n 1)
kill -9 "$daemon"
check "answers after SIGKILL of bailiwickd" says shop
check "blog falls asleep" sleeps blog 60
check "shop falls asleep" sleeps shop 60
check "and is woken again" says blog
bw why blog
check "the unit stops" systemctl stop bailiwick
check "no process is left" sh -c '! pgrep -f "bailiwick[d-]"'
check "no cgroup is left" [ "$(find /sys/fs/cgroup -name '*bailiwick*' | wc -l)" = "$cgroups_before" ]
mounts > /tmp/mounts-after
check "no mount is left" diff /tmp/mounts /tmp/mounts-after
[ "$failed" = 0 ] || journalctl -u bailiwick --no-pager | tail -n 60
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
