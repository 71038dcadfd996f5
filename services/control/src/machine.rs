//! What this machine has: the bound of every limit.

use model::{HostConfig, Limits, limits::show_bytes};

/// Memory and CPUs that tenants can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Bytes, the reserve taken off.
    pub memory: u64,
    /// CPUs that are online.
    pub cpus: u32,
}

impl Machine {
    /// Reads what the kernel says. A VPS's own limits do not count here: /proc shows the host's.
    pub fn read(config: &HostConfig) -> std::io::Result<Self> {
        let memory = total_memory(&std::fs::read_to_string("/proc/meminfo")?);
        let memory = memory.unwrap_or(u64::MAX).saturating_sub(config.reserve.memory);
        let cpus = online_cpus(&std::fs::read_to_string("/proc/stat")?).max(1);
        Ok(Self { memory, cpus })
    }

    /// What is larger than the machine: the field, and why.
    pub fn exceeded(&self, limits: &Limits) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if let Some(memory) = limits.memory.filter(|m| *m > self.memory) {
            let (asked, there) = (show_bytes(memory), show_bytes(self.memory));
            found.push(("memory", format!("limits.memory is {asked}, and this machine has {there} for VPSs")));
        }
        if let Some(cpu) = limits.cpu_millis.filter(|c| *c > self.cpus.saturating_mul(1000)) {
            let asked = f64::from(cpu) / 1000.0;
            found.push(("cpu", format!("limits.cpu is {asked}, and this machine has {} CPUs", self.cpus)));
        }
        found
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn online_cpus(stat: &str) -> u32 {
    let numbered =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    stat.lines().filter(numbered).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_over_the_machine_are_named() {
        assert_eq!(total_memory("MemTotal:       24635220 kB\nMemFree: 1 kB"), Some(24_635_220 << 10));
        assert_eq!(online_cpus("cpu  1 2\ncpu0 1\ncpu1 1\nintr 5\n"), 2);
        let machine = Machine { memory: 1 << 30, cpus: 2 };
        let fits = Limits { memory: Some(1 << 30), cpu_millis: Some(2000), processes: None, disk: None };
        assert!(machine.exceeded(&fits).is_empty());
        let large = Limits { memory: Some((1 << 30) + 1), cpu_millis: Some(2001), processes: None, disk: None };
        let fields: Vec<_> = machine.exceeded(&large).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["memory", "cpu"]);
    }
}
