//! Whom to kill: processes that descend from this host's keeper, and no other.

use std::{fs, path::Path};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::dice::Dice;

/// One process of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// As the host numbers it.
    pub pid: i32,
    /// What it is: `keeper`, `daemon`, `daemon's child`, `shim`, `init`, `program`.
    pub role: &'static str,
    /// Whose, where it belongs to a VPS.
    pub vps: Option<String>,
    /// Its program.
    pub comm: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.vps {
            Some(vps) => write!(to, "{vps}'s {} ({}, {})", self.role, self.comm, self.pid),
            None => write!(to, "{} ({}, {})", self.role, self.comm, self.pid),
        }
    }
}

fn read(pid: i32, file: &str) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()).into_owned()
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(of).flat_map(|line| line.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// `NAME/shim` or `NAME/vps` of the host's cgroup that a process is in.
fn place(pid: i32, cgroup: &str) -> Option<(String, String)> {
    let text = read(pid, "cgroup");
    let own = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut parts = own.split('/').skip_while(|part| *part != cgroup).skip(1);
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

/// Whether it has ended and waits for its parent to hear of it.
pub fn is_zombie(pid: i32) -> bool {
    read(pid, "stat").rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// All processes of the host whose keeper and cgroup these are.
pub fn all(keeper: i32, cgroup: &str) -> Vec<Process> {
    let mut found = Vec::new();
    walk(keeper, None, cgroup, &mut found);
    found
}

fn walk(pid: i32, parent: Option<&Process>, cgroup: &str, found: &mut Vec<Process>) {
    let (vps, group) = place(pid, cgroup).unzip();
    let daemon = || read(pid, "cmdline").split('\0').nth(1) == Some("daemon");
    let role = match (group.as_deref(), parent.map(|parent| parent.role)) {
        (Some("shim"), _) => "shim",
        (Some(_), Some("shim" | "keeper")) => "init",
        (Some(_), _) => "program",
        (None, None) => "keeper",
        (None, Some("keeper")) if daemon() => "daemon",
        (None, _) => "daemon's child",
    };
    let process = Process { pid, role, vps, comm: read(pid, "comm").trim().to_owned() };
    found.push(process.clone());
    for child in children(pid) {
        walk(child, Some(&process), cgroup, found);
    }
}

/// One of those of the host, each kind as likely as the other, but for the daemon's short-lived helpers, which are preferred;
/// none of a VPS for which `spared` holds.
pub fn choose(dice: &mut Dice, all: &[Process], spared: impl Fn(&str) -> bool) -> Option<Process> {
    let kind = |process: &Process| (process.role, process.vps.clone());
    let may = |process: &&Process| {
        process.role != "keeper" && !process.vps.as_deref().is_some_and(&spared) && !is_zombie(process.pid)
    };
    let possible: Vec<_> = all.iter().filter(may).collect();
    let helper = possible.iter().find(|process| process.role == "daemon's child");
    if let Some(helper) = helper.filter(|_| dice.one_in(3)) {
        return Some((*helper).clone());
    }
    let mut kinds: Vec<_> = possible.iter().map(|process| kind(process)).collect();
    kinds.sort();
    kinds.dedup();
    let chosen = dice.one_of(&kinds)?;
    let of: Vec<_> = possible.into_iter().filter(|process| kind(process) == *chosen).collect();
    dice.one_of(&of).map(|process| (*process).clone())
}

/// Kills it if it is still that process of the host; whether it was.
pub fn kill(victim: &Process, keeper: i32, cgroup: &str) -> bool {
    let Some(pid) = Pid::from_raw(victim.pid) else { return false };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    // Only now: from here on the descriptor is of that process, whoever gets its number.
    let still = all(keeper, cgroup).iter().any(|process| process.pid == victim.pid && process.vps == victim.vps);
    still && pidfd_send_signal(&process, Signal::KILL).is_ok()
}

/// The name of the cgroup of the host at `root`.
pub fn cgroup(root: &Path) -> String {
    let config = fs::read_to_string(root.join("host.toml")).unwrap_or_default();
    let named = config.lines().find_map(|line| line.strip_prefix("cgroup = "));
    named.unwrap_or_default().trim_matches('"').to_owned()
}
