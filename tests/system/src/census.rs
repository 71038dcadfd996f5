//! Counting what a host could leave behind: mounts, cgroups, processes, links, namespaces.

use std::{collections::BTreeSet, fs, path::Path};

/// What there is on this machine that a host could have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Census {
    /// Counts now. `root` is the host's; what belongs to other hosts is not counted.
    pub fn take(root: &Path) -> Self {
        let root = root.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            mounts: mounts.lines().filter(|line| line.contains(&root)).map(str::to_owned).collect(),
            cgroups: cgroups(&root),
            processes: processes(&root),
            links: names(Path::new("/sys/class/net")).collect(),
        }
    }
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// The host's cgroups: those whose name its `host.toml` says, or that are made from its root's path.
fn cgroups(root: &str) -> BTreeSet<String> {
    let config = fs::read_to_string(Path::new(root).join("host.toml")).unwrap_or_default();
    let named = config.lines().find_map(|line| line.strip_prefix("cgroup = "));
    let Some(name) = named.map(|name| name.trim_matches('"').to_owned()) else { return BTreeSet::new() };
    let mut found = BTreeSet::new();
    let base = Path::new("/sys/fs/cgroup");
    for hierarchy in names(base).map(|n| base.join(n)).chain([base.to_owned()]) {
        let path = hierarchy.join(&name);
        if path.is_dir() {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    found
}

/// Processes that run our programs and name the root, and shims in its cgroups.
fn processes(root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in names(Path::new("/proc")).filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("bailiwickd") && line.contains(root) {
            found.insert(format!("{pid} {line}{}", state(&pid)));
        }
    }
    found
}

/// Where a process stands, for whoever asks why it is still there.
fn state(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let told = |line: &&str| ["State:", "PPid:", "Threads:"].iter().any(|key| line.starts_with(key));
    let status = status.lines().filter(told).collect::<Vec<_>>().join(", ").replace('\t', " ");
    let stack = fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
    format!("({status}) {stack}")
}
