#!/bin/sh
# Installs packages over a base layer; what they add is in WORK/upper afterwards. Runs in a mount namespace of its own, so
# that everything mounted here goes with it. apt's status lines of the installation go to standard output, all else to standard error.
#
# usage: install.sh BASE WORK CACHE PACKAGE...
set -eu
base=$1 work=$2 cache=$3
shift 3
root=$work/root

mkdir -p "$work/upper" "$work/overlay" "$root" "$cache/archives/partial" "$cache/lists/partial"
mount -t overlay -o "userxattr,lowerdir=$base,upperdir=$work/upper,workdir=$work/overlay" overlay "$root"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
# a masked proc cannot be mounted anew
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$cache/archives" "$root/var/cache/apt/archives"
mount --bind "$cache/lists" "$root/var/lib/apt/lists"

# no server may start while it is being installed
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"

export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
proxy=
eval "$(apt-config shell proxy Acquire::http::Proxy 2>/dev/null || true)"
inside() {
    # the layer store syncs the whole layer once, so dpkg need not sync each file
    chroot "$root" "$@" -q -y -o APT::Status-Fd=3 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o APT::Sandbox::User=root \
        -o APT::Keep-Downloaded-Packages=true -o Dpkg::Options::=--force-unsafe-io \
        ${proxy:+-o "Acquire::http::Proxy=$proxy"} >&2
}
inside apt-get update 3>/dev/null

# apt would take an unknown name with a dot or plus as a pattern, and a final minus as a removal
chroot "$root" apt-cache pkgnames >"$work/names"
for package; do
    if ! grep -Fxq -e "$package" "$work/names"; then
        echo "E: Unable to locate package $package" >&2
        exit 100
    fi
done
inside apt-get install --no-install-recommends "$@" 3>&1
inside apt-get autoclean 3>/dev/null || true

chroot "$root" sh -c '
    rm -f usr/sbin/policy-rc.d etc/resolv.conf var/cache/apt/*.bin var/cache/ldconfig/aux-cache
    rm -f var/cache/debconf/*-old var/lib/dpkg/*-old var/lib/dbus/machine-id
    rm -rf var/log/dpkg.log var/log/alternatives.log var/log/apt/*
    if [ -s etc/machine-id ]; then : >etc/machine-id; fi
'
