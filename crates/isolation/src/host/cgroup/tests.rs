use super::*;

const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
35 30 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const PURE: &str =
    "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

fn base(mountinfo: &str, own: &str) -> Hierarchies {
    Hierarchies::choose(mountinfo, own, "bailiwick-x").unwrap()
}

#[test]
fn hybrid_has_a_base_in_each_hierarchy() {
    let found = base(HYBRID, "4:memory:/somewhere\n0::/\n");
    assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified/bailiwick-x"));
    let v1 = found.v1.unwrap();
    assert_eq!(v1[0], Path::new("/sys/fs/cgroup/cpu/bailiwick-x"));
    assert_eq!(v1[1], Path::new("/sys/fs/cgroup/memory/bailiwick-x"));
    assert_eq!(v1[2], Path::new("/sys/fs/cgroup/pids/bailiwick-x"));
}

#[test]
fn pure_v2_outside_a_unit_has_one_base_under_the_root() {
    let found = base(PURE, "0::/user.slice/session-1.scope\n");
    assert_eq!((found.unified, found.v1, found.delegated), ("/sys/fs/cgroup/bailiwick-x".into(), None, false));
}

#[test]
fn a_delegated_unit_is_the_base_before_and_after_the_daemon_moved_into_its_leaf() {
    let first = base(PURE, "0::/system.slice/bailiwick.service\n");
    assert_eq!(first.unified, Path::new("/sys/fs/cgroup/system.slice/bailiwick.service"));
    assert!(first.delegated);
    assert_eq!(base(PURE, "0::/system.slice/bailiwick.service/host_\n"), first);
}

#[test]
fn a_missing_controller_is_named() {
    let without: String = HYBRID.lines().filter(|l| !l.contains("pids")).map(|l| format!("{l}\n")).collect();
    let error = Hierarchies::choose(&without, "0::/\n", "x").unwrap_err();
    assert!(error.to_string().contains("pids"), "{error}");
    assert!(Hierarchies::choose("", "", "x").is_err());
}
