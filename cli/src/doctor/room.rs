//! Room on the disk and in memory, and limits of this machine that a host meets.

use std::{fs, path::Path};

use model::limits::show_bytes;

use super::Finding;

/// What a first image and its VPSs take.
const DISK: u64 = 2 << 30;
const INODES: u64 = 100_000;
/// What the designated VPSs and a few servers take.
const MEMORY: u64 = 512 << 20;
/// A host has several descriptors per VPS.
const FILES: u64 = 4096;

/// Free space where VPSs are.
pub fn disk(state: &Path) -> Finding {
    const WHAT: &str = "disk";
    let place = state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let at = place.display();
    match rustix::fs::statvfs(place) {
        Ok(stat) => {
            // Some file systems make inodes as they need them, and say that there are none.
            let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
            disk_of(stat.f_bavail * stat.f_frsize, inodes, &at.to_string())
        }
        Err(error) => Finding::note(WHAT, format!("not known at {at}: {error}"), "images and VPSs are kept there", ""),
    }
}

fn disk_of(free: u64, inodes: u64, at: &str) -> Finding {
    const WHAT: &str = "disk";
    let seen = format!("{} free at {at}", show_bytes(free));
    if free < DISK {
        return Finding::note(
            WHAT,
            seen,
            "an image takes several hundred MiB",
            "make room, or name another place: `layers` in host.toml",
        );
    }
    if inodes < INODES {
        let seen = format!("{inodes} inodes free at {at}");
        return Finding::note(
            WHAT,
            seen,
            "an image has some ten thousand files",
            "make room, or name another place: `layers` in host.toml",
        );
    }
    Finding::ok(WHAT, seen)
}

/// Memory of the machine.
pub fn memory() -> Finding {
    memory_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn memory_of(meminfo: &str) -> Finding {
    const WHAT: &str = "memory";
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let (Some(total), Some(available)) = (field("MemTotal:"), field("MemAvailable:")) else {
        return Finding::note(WHAT, "not known", "servers that are awake need it", "mount /proc");
    };
    let seen = format!("{} of {} available", show_bytes(available), show_bytes(total));
    match available >= MEMORY {
        true => Finding::ok(WHAT, seen),
        false => {
            Finding::note(WHAT, seen, "the designated VPSs alone take about 64 MiB", "stop something, or add memory")
        }
    }
}

/// How many descriptors a host that is started from here may have.
pub fn files() -> Finding {
    const WHAT: &str = "descriptors";
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if most >= FILES {
        return Finding::ok(WHAT, format!("up to {most} per process"));
    }
    let next = "raise the hard limit: `ulimit -Hn 65536`, or LimitNOFILE= of the unit";
    Finding::note(WHAT, format!("up to {most} per process"), "a host has several per VPS and connection", next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_is_scarce_is_noted() {
        assert_eq!(disk_of(3 << 30, 1 << 20, "/").seen, "3.0 GiB free at /");
        assert_eq!(disk_of(1 << 30, 1 << 20, "/").state, Verdict::Note);
        assert_eq!(disk_of(3 << 30, 7, "/").seen, "7 inodes free at /");
        let found = memory_of("MemTotal:  2097152 kB\nMemFree: 1 kB\nMemAvailable:  1048576 kB\n");
        assert_eq!((found.state, found.seen.as_str()), (Verdict::Ok, "1.0 GiB of 2.0 GiB available"));
        assert_eq!(memory_of("MemTotal: 2097152 kB\nMemAvailable: 1024 kB\n").state, Verdict::Note);
        assert_eq!(memory_of("").state, Verdict::Note);
    }
}
