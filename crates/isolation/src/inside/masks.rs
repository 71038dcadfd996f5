//! Parts of `/proc` and `/sys` that say something about the host, or ask something of it. Hygiene: what they could do
//! is bounded by the user namespace. A VPS with `nesting` has none, since the kernel lets nobody mount a proc who does
//! not see a whole one.

/// Files that read as empty.
pub(super) const FILES: &[&str] = &[
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
];

/// Directories that look empty.
pub(super) const DIRECTORIES: &[&str] =
    &["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];

/// Parts that can be read only, and what below them belongs to the VPS's own namespaces and stays as it is.
pub(super) const READ_ONLY: &[(&str, &[&str])] =
    &[("/proc/bus", &[]), ("/proc/fs", &[]), ("/proc/irq", &[]), ("/proc/sys", &["/proc/sys/net"])];
