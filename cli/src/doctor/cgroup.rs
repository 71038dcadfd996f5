//! Which cgroup hierarchies there are, and whether they have the controllers that limits need.

use std::{collections::BTreeMap, fs};

use super::Finding;

const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchies of this machine (proc_pid_mountinfo(5)).
#[derive(Debug, Default, PartialEq)]
struct Hierarchies {
    /// Where the v2 hierarchy is.
    unified: Option<String>,
    /// Controller of v1 to where it is.
    v1: BTreeMap<String, String>,
    /// Mount points that are read-only.
    read_only: Vec<String>,
}

/// Both findings.
pub fn all() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = parse(&mounts);
    let file = hierarchies.unified.as_ref().map(|at| fs::read_to_string(format!("{at}/cgroup.controllers")));
    let unified = file.and_then(Result::ok).unwrap_or_default();
    vec![layout(&hierarchies), controllers(&hierarchies, &unified)]
}

fn parse(mounts: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' ').skip(4), right.split(' '));
        let (Some(point), Some(options), Some(kind)) = (left.next(), left.next(), right.next()) else { continue };
        let superblock = right.nth(1).unwrap_or_default();
        match kind {
            "cgroup2" => found.unified = found.unified.or_else(|| Some(point.to_owned())),
            "cgroup" => {
                let controllers = superblock.split(',').filter(|option| NEEDED.contains(option));
                found.v1.extend(controllers.map(|controller| (controller.to_owned(), point.to_owned())));
            }
            _ => continue,
        }
        if options.split(',').any(|option| option == "ro") {
            found.read_only.push(point.to_owned());
        }
    }
    found
}

fn layout(found: &Hierarchies) -> Finding {
    const WHAT: &str = "cgroup layout";
    let means = "VPSs are limited, frozen and killed by their cgroups";
    let Some(at) = &found.unified else {
        return Finding::missing(WHAT, "no v2 hierarchy", means, "boot with systemd.unified_cgroup_hierarchy=1");
    };
    let used: Vec<_> = found.v1.values().chain([at]).filter(|point| found.read_only.contains(point)).cloned().collect();
    if !used.is_empty() {
        let next = "run it outside of the container, or give the container a writable cgroup filesystem";
        return Finding::missing(WHAT, format!("read-only: {}", used.join(", ")), means, next);
    }
    match found.v1.is_empty() {
        true => Finding::ok(WHAT, format!("v2 at {at}")),
        false => Finding::ok(WHAT, format!("hybrid: v2 at {at}, v1 beside it")),
    }
}

fn controllers(found: &Hierarchies, unified: &str) -> Finding {
    const WHAT: &str = "cgroup controllers";
    let v2: Vec<_> = unified.split_whitespace().collect();
    let lacking: Vec<_> = NEEDED.into_iter().filter(|c| !v2.contains(c) && !found.v1.contains_key(*c)).collect();
    if lacking.is_empty() {
        let from = |c: &&str| if v2.contains(c) { format!("{c} (v2)") } else { format!("{c} (v1)") };
        return Finding::ok(WHAT, NEEDED.iter().map(from).collect::<Vec<_>>().join(", "));
    }
    let next = format!("boot with cgroup_enable={}, or delegate it to this container", lacking.join(","));
    Finding::missing(WHAT, format!("no {}", lacking.join(", ")), "limits of a VPS cannot be held", next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const HYBRID: &str = "\
31 23 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 23 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";

    #[test]
    fn both_layouts_are_known() {
        let hybrid = parse(HYBRID);
        assert_eq!(layout(&hybrid).seen, "hybrid: v2 at /sys/fs/cgroup/unified, v1 beside it");
        assert_eq!(controllers(&hybrid, "hugetlb").seen, "cpu (v1), memory (v1), pids (v1)");
        let v2 = parse("31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(layout(&v2), Finding::ok("cgroup layout", "v2 at /sys/fs/cgroup"));
        assert_eq!(controllers(&v2, "cpuset cpu io memory pids").state, Verdict::Ok);
    }

    #[test]
    fn what_is_lacking_is_named() {
        assert_eq!(layout(&parse("")).seen, "no v2 hierarchy");
        let v2 = parse("31 23 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw\n");
        assert_eq!(layout(&v2).seen, "read-only: /sys/fs/cgroup");
        assert_eq!(controllers(&v2, "cpu io").seen, "no memory, pids");
    }
}
