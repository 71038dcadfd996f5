//! Step 1: cgroups, on pure v2 and on hybrid v1 (`memory`, `cpu`, `pids` as v1, everything else through `unified`).
//!
//! Freezing, killing, CPU time and "is anyone left" go through the v2 hierarchy, which offers them without controllers.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::chown},
    path::{Path, PathBuf},
};

use model::Limits;
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, fstat, open, stat},
    io::Errno,
    system::sysinfo,
};

use super::HostError;

/// The leaf of a delegated unit that the daemon itself lives in; no VPS can have this name.
const OWN_LEAF: &str = "host_";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Where a VPS's shim is, below the VPS's group.
const SHIM_LEAF: &str = "shim";
/// Where the VPS is.
const VPS_LEAF: &str = "vps";
/// Microseconds over which a CPU limit is counted.
const CPU_PERIOD: u64 = 100_000;

/// Bytes that all VPSs together may always have.
const LEAST_MEMORY: u64 = 64 << 20;
/// Per cent of the machine's processes that all VPSs together may have.
const ALL_PROCESSES: u64 = 85;
/// Per cent of them that one VPS may have whose limits do not say.
const OWN_PROCESSES: u64 = 15;

/// Where this host's cgroups are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// The base in the v2 hierarchy.
    unified: PathBuf,
    /// Where that hierarchy is mounted.
    mount: PathBuf,
    /// Bases in v1 hierarchies, in the order of `CONTROLLERS`; none on pure v2.
    v1: Option<[PathBuf; 3]>,
    /// Whether systemd delegated the base to this process.
    delegated: bool,
}

/// What a VPS uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes charged.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
    /// CPU time, microseconds.
    pub cpu_us: Option<u64>,
}

fn fault(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path = path.to_owned();
    move |source| HostError::Cgroup { action, path, source }
}

fn write(path: &Path, text: &str) -> Result<(), HostError> {
    fs::write(path, text).map_err(fault("writing", path))
}

fn for_writing(path: &Path) -> Result<OwnedFd, HostError> {
    open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| fault("opening", path)(e.into()))
}

fn directory(path: &Path) -> Result<OwnedFd, HostError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|e| fault("opening", path)(e.into()))
}

fn make(path: &Path) -> Result<(), HostError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.map_err(fault("making", path)),
    }
}

fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(fault("removing", path)),
    }
}

/// The number after `key` in a file of `key number` lines.
fn field(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Hierarchies {
    /// Finds the hierarchies; `name` is the host's own group in each, except where systemd delegated one.
    pub fn find(name: &str) -> Result<Self, HostError> {
        let read = |path: &str| fs::read_to_string(path).map_err(fault("reading", Path::new(path)));
        Self::choose(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, name)
    }

    /// `find` without I/O: `mountinfo` is proc(5)'s, `own` is `/proc/self/cgroup`.
    fn choose(mountinfo: &str, own: &str, name: &str) -> Result<Self, HostError> {
        let mounts: Vec<_> = mountinfo.lines().filter_map(cgroup_mount).collect();
        let v2 = mounts.iter().find(|m| m.0 == "cgroup2").ok_or(HostError::NoHierarchy("cgroup2"))?;
        let v1_of = |controller: &str| {
            let has = |options: &str| options.split(',').any(|o| o == controller);
            mounts.iter().find(|(kind, _, options)| *kind == "cgroup" && has(options)).map(|m| m.1.join(name))
        };
        let mount = v2.1.clone();
        let v1 = match (v1_of("cpu"), v1_of("memory"), v1_of("pids")) {
            (None, None, None) => None,
            (Some(cpu), Some(memory), Some(pids)) => Some([cpu, memory, pids]),
            (None, ..) => return Err(HostError::NoHierarchy("the cgroup v1 controller cpu")),
            (_, None, _) => return Err(HostError::NoHierarchy("the cgroup v1 controller memory")),
            (.., None) => return Err(HostError::NoHierarchy("the cgroup v1 controller pids")),
        };
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
        let own = own.strip_suffix(OWN_LEAF).map_or(own, |unit| unit.trim_end_matches('/'));
        let delegated = v1.is_none() && own.ends_with("/bailiwick.service");
        let unified = mount.join(if delegated { own } else { name });
        Ok(Self { unified, mount, v1, delegated })
    }

    fn bases(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(self.v1.iter().flatten())
    }

    /// Makes this host's own groups, and on v2 turns the controllers on.
    pub fn prepare(&self) -> Result<(), HostError> {
        for base in self.bases() {
            make(base)?;
        }
        if self.v1.is_some() {
            return Ok(());
        }
        if self.delegated {
            // A group with processes of its own can't give controllers to those below it.
            let leaf = self.unified.join(OWN_LEAF);
            make(&leaf)?;
            let procs = self.unified.join("cgroup.procs");
            for pid in fs::read_to_string(&procs).map_err(fault("reading", &procs))?.lines() {
                match fs::write(leaf.join("cgroup.procs"), pid) {
                    Err(error) if error.raw_os_error() != Some(Errno::SRCH.raw_os_error()) => {
                        return Err(fault("moving into", &leaf)(error));
                    }
                    _ => {}
                }
            }
            return enable(&self.unified);
        }
        enable(&self.mount)?;
        enable(&self.unified)
    }

    /// Bounds what all VPSs together may have: all memory but `reserve` bytes, and as many processes as leave the machine
    /// some.
    pub fn bound(&self, reserve: u64) -> Result<(), HostError> {
        let machine = sysinfo();
        let total = machine.totalram as u64 * u64::from(machine.mem_unit);
        let memory = total.saturating_sub(reserve).max(LEAST_MEMORY).to_string();
        let processes = (machine_processes() / 100 * ALL_PROCESSES).to_string();
        let (memory_file, processes_file) = match &self.v1 {
            Some([_, memory, pids]) => (memory.join("memory.limit_in_bytes"), pids.join("pids.max")),
            None => (self.unified.join("memory.max"), self.unified.join("pids.max")),
        };
        write(&memory_file, &memory)?;
        write(&processes_file, &processes)
    }

    /// Claims the host's own group for as long as the descriptor, or a copy of it, is open.
    pub fn lock(&self) -> Result<OwnedFd, HostError> {
        let fault = |action, error: Errno| fault(action, &self.unified)(error.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let group = match open(&self.unified, flags, Mode::empty()) {
            // A host that just ended removed it since it was made.
            Err(Errno::NOENT) => return Err(HostError::CgroupTaken(self.unified.clone())),
            opened => opened.map_err(|e| fault("opening", e))?,
        };
        match flock(&group, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(HostError::CgroupTaken(self.unified.clone())),
            done => done.map_err(|e| fault("locking", e))?,
        }
        // A host that just ended may have removed the group between our open and our lock.
        let ours = fstat(&group).map_err(|e| fault("looking at", e))?;
        match stat(&self.unified) {
            Ok(there) if there.st_ino == ours.st_ino => Ok(group),
            _ => Err(HostError::CgroupTaken(self.unified.clone())),
        }
    }

    /// Names of the VPSs that have a group, such as those a crashed host left.
    pub fn names(&self) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for entry in self.bases().filter_map(|base| fs::read_dir(base).ok()).flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) && entry.file_name() != OWN_LEAF {
                names.extend(entry.file_name().into_string());
            }
        }
        names.into_iter().collect()
    }

    /// The group of a VPS, whether it exists or not.
    pub fn of(&self, name: &str) -> Cgroup {
        Cgroup {
            outer: self.unified.join(name),
            unified: self.unified.join(name).join(VPS_LEAF),
            v1: self.v1.as_ref().map(|v1| v1.each_ref().map(|base| base.join(name))),
        }
    }

    /// Makes the group of a VPS, with its limits. `shim` may have its children born in it.
    pub fn create(&self, name: &str, limits: &Limits, shim: u32) -> Result<Cgroup, HostError> {
        let cgroup = self.of(name);
        if cgroup.outer.exists() {
            // Whoever is born into a group that was killed is killed as well, since Linux 6.14.
            cgroup.remove()?;
        }
        make(&cgroup.outer)?;
        make(&cgroup.outer.join(SHIM_LEAF))?;
        if self.v1.is_none() {
            enable(&cgroup.outer)?;
        }
        for directory in cgroup.directories() {
            make(directory)?;
        }
        // Where a birth begins and ends is asked of both the group and the one above that they share.
        for group in [&cgroup.outer, &cgroup.unified] {
            let procs = group.join("cgroup.procs");
            chown(&procs, Some(shim), None).map_err(fault("giving to the shim", &procs))?;
        }
        cgroup.set_limits(limits)?;
        Ok(cgroup)
    }

    /// Removes this host's own groups; those of its VPSs must be gone.
    pub fn remove(&self) -> Result<(), HostError> {
        if self.delegated {
            return Ok(());
        }
        // The one that is locked last: the next host makes its own as soon as that is gone.
        let v1 = self.v1.iter().flatten();
        v1.chain([&self.unified]).try_for_each(|base| remove(base))
    }
}

/// Processes and threads that the machine can have (proc_sys_kernel(5)).
fn machine_processes() -> u64 {
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].into_iter().filter_map(number);
    limits.min().unwrap_or(32_768)
}

fn enable(group: &Path) -> Result<(), HostError> {
    let file = group.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file).map_err(fault("reading", &file))?;
    let missing: Vec<_> = CONTROLLERS.iter().filter(|c| !on.split_whitespace().any(|o| o == **c)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    write(&file, &missing.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" "))
}

/// Kind, mount point and options of a cgroup mount's line in mountinfo.
fn cgroup_mount(line: &str) -> Option<(&str, PathBuf, &str)> {
    let (front, back) = line.split_once(" - ")?;
    let mut back = back.split(' ');
    let kind = back.next().filter(|k| k.starts_with("cgroup"))?;
    Some((kind, PathBuf::from(front.split(' ').nth(4)?), back.nth(1)?))
}

/// The group of one VPS in each hierarchy. In v2 it has two leaves, one for its shim and one for the VPS, so that nobody has
/// to be moved, which the kernel does only when it has seen that nobody forks: each is born where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    outer: PathBuf,
    unified: PathBuf,
    v1: Option<[PathBuf; 3]>,
}

impl Cgroup {
    /// What `Hierarchies::of` was asked for.
    pub fn name(&self) -> Option<&str> {
        self.outer.file_name().and_then(|name| name.to_str())
    }

    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(self.v1.iter().flatten())
    }

    /// Sets limits; what `limits` does not say stays, but a VPS never has more than its share of the machine's processes.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), HostError> {
        let own = || u32::try_from(machine_processes() / 100 * OWN_PROCESSES).ok();
        self.limit(&Limits { processes: limits.processes.or_else(own), ..limits.clone() })
    }

    fn limit(&self, limits: &Limits) -> Result<(), HostError> {
        let quota = limits.cpu_millis.map(|millis| (u64::from(millis) * CPU_PERIOD / 1000).max(1000));
        match &self.v1 {
            Some([cpu, memory, pids]) => {
                if let Some(bytes) = limits.memory {
                    write(&memory.join("memory.limit_in_bytes"), &bytes.to_string())?;
                }
                if let Some(quota) = quota {
                    write(&cpu.join("cpu.cfs_period_us"), &CPU_PERIOD.to_string())?;
                    write(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())?;
                }
                limits.processes.map_or(Ok(()), |n| write(&pids.join("pids.max"), &n.to_string()))
            }
            None => {
                if let Some(bytes) = limits.memory {
                    write(&self.unified.join("memory.max"), &bytes.to_string())?;
                }
                if let Some(quota) = quota {
                    write(&self.unified.join("cpu.max"), &format!("{quota} {CPU_PERIOD}"))?;
                }
                limits.processes.map_or(Ok(()), |n| write(&self.unified.join("pids.max"), &n.to_string()))
            }
        }
    }

    /// The VPS's directory in the v2 hierarchy, for init to be born in.
    pub fn directory(&self) -> Result<OwnedFd, HostError> {
        directory(&self.unified)
    }

    /// The shim's directory in the v2 hierarchy.
    pub fn shim_directory(&self) -> Result<OwnedFd, HostError> {
        directory(&self.outer.join(SHIM_LEAF))
    }

    /// The `tasks` files of the v1 hierarchies, open for writing: a thread that holds them may move itself in, whatever its
    /// own rights. Unlike a move of a whole process this does not wait until nobody on the machine forks.
    pub fn tasks(&self) -> Result<Vec<OwnedFd>, HostError> {
        self.v1.iter().flatten().map(|directory| for_writing(&directory.join("tasks"))).collect()
    }

    /// To be polled for priority events; each is a change of `is_frozen`.
    pub fn freezes(&self) -> Result<OwnedFd, HostError> {
        Self::events(&self.unified)
    }

    /// To be polled for priority events; each is a change of `is_empty`.
    pub fn ends(&self) -> Result<OwnedFd, HostError> {
        Self::events(&self.outer)
    }

    fn events(group: &Path) -> Result<OwnedFd, HostError> {
        let path = group.join("cgroup.events");
        open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| fault("opening", &path)(e.into()))
    }

    /// Asks for all processes to stand still, or to go on.
    pub fn freeze(&self, frozen: bool) -> Result<(), HostError> {
        write(&self.unified.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Whether all processes stand still.
    pub fn is_frozen(&self) -> bool {
        field(&self.unified.join("cgroup.events"), "frozen") == Some(1)
    }

    /// Whether no process is left, the shim neither, or the group is not there.
    pub fn is_empty(&self) -> bool {
        field(&self.outer.join("cgroup.events"), "populated") != Some(1)
    }

    /// Sends SIGKILL to all processes, frozen ones and the shim too. They may still be there when this returns.
    pub fn kill(&self) -> Result<(), HostError> {
        match write(&self.outer.join("cgroup.kill"), "1") {
            Err(HostError::Cgroup { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// What is used now.
    pub fn usage(&self) -> Usage {
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let (memory, pids) = match &self.v1 {
            Some([_, memory, pids]) => (memory.join("memory.usage_in_bytes"), pids.join("pids.current")),
            None => (self.unified.join("memory.current"), self.unified.join("pids.current")),
        };
        Usage {
            memory: number(memory),
            processes: number(pids).and_then(|n| n.try_into().ok()),
            cpu_us: field(&self.unified.join("cpu.stat"), "usage_usec"),
        }
    }

    /// Bytes that its processes have had written, those that have ended included (proc_pid_io(5)).
    pub fn written(&self) -> u64 {
        let procs = fs::read_to_string(self.unified.join("cgroup.procs")).unwrap_or_default();
        let written = |pid: &str| {
            let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
            io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse::<u64>().ok()
        };
        procs.lines().filter_map(written).fold(0, u64::saturating_add)
    }

    /// How many processes the memory limit has killed.
    pub fn oom_kills(&self) -> u64 {
        let path = match &self.v1 {
            Some([_, memory, _]) => memory.join("memory.oom_control"),
            None => self.unified.join("memory.events"),
        };
        field(&path, "oom_kill").unwrap_or(0)
    }

    /// Removes the group; it must be empty.
    pub fn remove(&self) -> Result<(), HostError> {
        self.directories().try_for_each(|directory| remove(directory))?;
        remove(&self.outer.join(SHIM_LEAF))?;
        remove(&self.outer)
    }
}

#[cfg(test)]
mod tests;
