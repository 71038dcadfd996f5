//! What a tenant sees, and what it can do.

use bailiwick_kernel_tests::{Builder, Vps};
use isolation::host::{HostBind, IdRange, make_namespaces};
use model::{
    ExitStatus,
    run::{Link, Root},
};
use wire::shim::ShimState;

fn idle() -> Vps {
    let vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    vps
}

fn nested() -> Vps {
    let mut builder = Builder::idle();
    builder.run.nesting = true;
    let vps = builder.start();
    vps.reach(ShimState::Ready);
    vps
}

#[test]
fn sees_itself_alone() {
    let mut vps = idle();
    assert_eq!(vps.sh("hostname"), "blog");
    assert_eq!(vps.sh("cat /etc/hostname"), "blog");
    assert_eq!(vps.sh("cat /proc/1/comm"), "bailiwick-shim");
    // init, the program, its sleep, this shell and this ps
    assert!(vps.sh("ps | wc -l").parse::<u32>().expect("a number") <= 7);
    assert_eq!(vps.sh("ls /sys/class/net"), "lo");
    assert_eq!(vps.sh("ip -o link show lo | grep -c LOWER_UP"), "1");
    assert_eq!(vps.sh("cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "/");
    assert_eq!(vps.sh("ls -A /sys/fs/cgroup | wc -l"), "0");
    assert_eq!(vps.sh("ls / | grep -cE 'layers|binds|state'; true"), "0");
}

#[test]
fn ids_are_its_own() {
    let mut vps = idle();
    let map = vps.sh("cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &vps.ids.first.to_string(), "65536"]);
    assert_eq!(vps.sh("stat -c %u:%g /bin/busybox"), "0:0");
    assert_eq!(vps.exec_as("web", "id").output, "uid=33(web) gid=33(web) groups=77(extra)\n");
    assert_eq!(vps.exec_as("1000:1001", "id -u; id -g; echo $HOME").output, "1000\n1001\n/\n");
    assert_eq!(vps.sh("touch /written; stat -c %u /written"), "0");
    for pid in vps.processes() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).map(|l| l.split_whitespace().next());
        assert!(uid.is_none_or(|uid| uid == Some(&vps.ids.first.to_string())), "process {pid} has {uid:?}");
    }
}

#[test]
fn masks_and_read_only_parts() {
    let mut vps = idle();
    for file in ["/proc/keys", "/proc/kallsyms", "/proc/timer_list"] {
        assert_eq!(vps.sh(&format!("wc -c < {file}")), "0", "{file}");
    }
    assert_eq!(vps.sh("ls -A /sys/firmware /proc/acpi 2>/dev/null | grep -v : | wc -w"), "0");
    let refused = |vps: &mut Vps, command: &str| vps.exec_as("root", command).status != ExitStatus::Code(0);
    assert!(refused(&mut vps, "echo 1 > /proc/sys/kernel/shm_rmid_forced"));
    assert!(refused(&mut vps, "echo b > /proc/sysrq-trigger && test -s /proc/sysrq-trigger"));
    assert!(refused(&mut vps, "mkdir /sys/fs/cgroup/x"));
    assert!(refused(&mut vps, "umount /proc/keys"), "without CAP_SYS_ADMIN");
    for spared in [-1, -500, -1000] {
        assert!(refused(&mut vps, &format!("echo {spared} > /proc/self/oom_score_adj")), "{spared}");
    }
}

#[test]
fn masks_hold_in_a_nested_user_namespace_too() {
    let mut vps = idle();
    for command in [
        "unshare -Urm umount /proc/keys",
        "unshare -Urm umount /proc/sys",
        "unshare -Urm sh -c 'mount -o remount,bind,rw /proc/sys && echo 1 > /proc/sys/kernel/shm_rmid_forced'",
        "unshare -Urmpf sh -c 'mount -t proc proc /proc && test -s /proc/kallsyms'",
        "unshare -Urm sh -c 'mount -t sysfs sysfs /sys'",
    ] {
        assert_ne!(vps.exec_as("root", command).status, ExitStatus::Code(0), "{command}");
    }
}

#[test]
fn nesting_can_mount_a_proc() {
    let mut vps = nested();
    assert_ne!(vps.sh("wc -c < /proc/kallsyms"), "0");
    vps.sh("mkdir /p && unshare -mpf sh -c 'mount -t proc proc /p && test -e /p/self'");
    vps.sh("mkdir /l /u /w /m && mount -t overlay -o lowerdir=/l,upperdir=/run/u,workdir=/run/w x /m || mount -t tmpfs x /m");
}

#[test]
fn devices_are_few_and_alive() {
    let mut vps = idle();
    assert_eq!(vps.sh("echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c"), "4\n4");
    assert_eq!(
        vps.sh("find /dev -type c | sort | xargs"),
        "/dev/full /dev/null /dev/ptmx /dev/pts/ptmx /dev/random /dev/tty /dev/urandom /dev/zero"
            .replace("/dev/ptmx ", "")
    );
    assert_eq!(vps.exec_as("web", "echo x > /dev/shm/a && echo x > /dev/full").status, ExitStatus::Code(1));
    assert!(vps.exec_as("root", "mknod /x c 1 3").status != ExitStatus::Code(0));
}

/// The overlay's superblock belongs to the VPS: its root may change the mount's flags, and nothing comes of it.
#[test]
fn device_nodes_stay_dead_after_a_remount() {
    let mut vps = nested();
    vps.sh("mount -o remount,dev,suid /");
    assert!(vps.sh("grep ' / ' /proc/mounts").contains("overlay rw,relatime"), "the remount had no effect");
    assert_eq!(vps.sh("test -c /null && echo there"), "there");
    let opened = vps.exec_as("root", "cat /null");
    assert!(opened.output.contains("Permission denied"), "{opened:?}");
}

#[test]
fn setuid_programs_work_unless_told_otherwise() {
    const GETEUID: &str = "rootprobe 107";
    let mut vps = idle();
    assert_eq!(vps.exec_as("web", GETEUID).output, "0\n");
    let mut builder = Builder::idle();
    builder.run.setuid = false;
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    assert_eq!(vps.exec_as("web", GETEUID).output, "33\n");
    assert_eq!(vps.sh("grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t1");
}

#[test]
fn a_later_layer_covers_an_earlier_one() {
    let mut builder = Builder::idle();
    builder.second_layer.insert("etc/group".to_owned(), "root:x:0:\nover:x:5:web\n".to_owned());
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    assert_eq!(vps.exec_as("web", "id -G").output, "33 5\n");
    assert_eq!(vps.sh("stat -c %u /etc/group /etc/passwd | xargs"), "0 0");
}

#[test]
fn capabilities_are_bounded() {
    let bounding = |vps: &mut Vps| {
        let line = vps.sh("grep CapBnd /proc/self/status");
        u64::from_str_radix(line.split_whitespace().nth(1).expect("a number"), 16).expect("a number")
    };
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_MODULE: u64 = 1 << 16;
    const SYS_ADMIN: u64 = 1 << 21;
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let plain = bounding(&mut idle());
    assert_eq!(plain & (NET_ADMIN | SYS_MODULE | SYS_ADMIN), 0);
    assert_ne!(plain & NET_BIND_SERVICE, 0);
    let more = bounding(&mut nested());
    assert_eq!(more & (NET_ADMIN | SYS_MODULE | SYS_ADMIN), NET_ADMIN | SYS_ADMIN);
    assert_eq!(idle().exec_as("web", "grep CapEff /proc/self/status").output, "CapEff:\t0000000000000000\n");
}

#[test]
fn seccomp_allows_and_refuses() {
    let mut vps = idle();
    // x86-64 numbers: io_uring_setup, kexec_load, bpf, userfaultfd, keyctl, open_by_handle_at, reboot, syslog
    for call in [425, 246, 321, 323, 250, 304, 169, 103] {
        assert_eq!(vps.sh(&format!("probe {call}")), "-1", "call {call}");
    }
    assert_eq!(vps.sh("probe 9999"), "-38");
    assert_eq!(vps.sh("probe 41 38 5 0"), "-97", "a socket of AF_ALG");
    assert_eq!(vps.sh("probe 41 40 1 0"), "-97", "a socket of AF_VSOCK");
    assert_eq!(vps.sh("probe 16 0 21522 0"), "-1", "TIOCSTI");
    // getppid, socket(AF_INET), memfd_create(null): EFAULT is the call's own answer, as EINVAL is clone3's
    assert_ne!(vps.sh("probe 110"), "-1");
    assert_eq!(vps.sh("probe 41 2 1 0"), "3");
    assert_eq!(vps.sh("probe 319 0 0"), "-14");
    assert_eq!(vps.sh("probe 435 0 0"), "-22");
    assert_eq!(vps.sh("grep Seccomp: /proc/self/status"), "Seccomp:\t2");
    vps.sh("unshare -U true");
}

#[test]
fn init_is_out_of_reach() {
    let mut vps = nested();
    vps.sh("kill -9 1; kill -TERM 1; true");
    assert!(vps.exec_as("root", "ls /proc/1/fd/").status != ExitStatus::Code(0));
    assert!(vps.exec_as("root", "cat /proc/1/mem").status != ExitStatus::Code(0));
    // ptrace(PTRACE_SEIZE, 1)
    assert_eq!(vps.sh("probe 101 16902 1 0 0"), "-1");
    assert_eq!(vps.sh("echo alive"), "alive");
}

#[test]
fn programs_get_no_descriptor_but_theirs() {
    let mut vps = Builder::shell("ls -l /proc/self/fd/ | tail -n +2; exec sleep 1000").start();
    vps.reach(ShimState::Ready);
    let seen = vps.sh("ls /proc/self/fd | xargs");
    assert_eq!(seen, "0 1 2 3", "3 is ls's own");
    assert_eq!(vps.sh("ls /proc/2/fd | xargs"), "0 1 2");
    assert_eq!(vps.sh("readlink /proc/2/fd/0"), "/dev/null");
}

#[test]
fn orphans_are_reaped() {
    let mut vps = idle();
    vps.sh("for i in 1 2 3 4 5 6 7 8; do sh -c 'true & true' & done; wait");
    vps.sh("while ps -o stat | grep -q Z; do :; done");
}

#[test]
fn a_bare_root_is_read_only_and_holds_what_is_bound() {
    let mut builder = Builder::shell("exec sleep 1000");
    builder.run.root = Root::Bare;
    let busybox = |name: &str| HostBind {
        source: "/bin/busybox".into(),
        target: format!("/bin/{name}"),
        writable: false,
        layer_map: false,
        volume: false,
        shown: None,
    };
    builder.binds = ["sh", "sleep", "ls", "touch", "cat", "ip"].map(busybox).into();
    builder.run.files.insert("/etc/a/b".into(), "hello".into());
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    assert_eq!(vps.sh("cat /etc/a/b"), "hello");
    assert!(vps.exec_as("root", "touch /x").status != ExitStatus::Code(0));
    assert!(vps.exec_as("root", "touch /bin/sh").status != ExitStatus::Code(0));
    vps.sh("touch /tmp/x /run/x");
    // An administrator of its own network namespace, though the rest of /proc/sys is read-only.
    assert_eq!(vps.sh("echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward"), "1");
    assert!(vps.exec_as("root", "echo x > /proc/sys/kernel/hostname").status != ExitStatus::Code(0));
    assert!(vps.sh("ls /").split_whitespace().eq(["bin", "dev", "etc", "proc", "run", "sys", "tmp"]));
}

#[test]
fn a_link_has_its_addresses_and_gateway() {
    let outer =
        make_namespaces(901_000_000, IdRange { first: 1_499_000_000, count: 65_536 }, true).expect("namespaces");
    let mut builder = Builder::idle();
    let address = "10.80.0.17".parse().expect("an address");
    builder.run.link = Some(Link::new(address, "fd00::a50:11".parse().expect("an address")));
    builder.outer = outer.network;
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    assert!(vps.sh("ip -4 addr show eth0").contains("inet 10.80.0.17/32"));
    let route = vps.sh("ip -4 route");
    assert!(route.starts_with("default via 169.254.1.1 dev eth0"), "{route}");
    assert!(vps.sh("ip neigh show 169.254.1.1").contains("02:ba:11:00:00:01"));
    assert!(vps.sh("cat /etc/hosts").contains("10.80.0.17 blog"));
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        assert!(vps.sh("ip -6 addr show eth0").contains("fd00::a50:11/128"));
        assert!(vps.sh("ip -6 route").contains("default via fe80::1 dev eth0"));
    }
    assert!(vps.exec_as("root", "ip link del eth0").status != ExitStatus::Code(0), "its link is not the tenant's");
}
