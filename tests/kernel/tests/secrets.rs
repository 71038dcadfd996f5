//! Secrets inside a VPS: who reads them, and what is left of them.

use std::collections::BTreeMap;

use bailiwick_kernel_tests::{Builder, Vps};
use model::ExitStatus;
use wire::{secrets::pack, shim::ShimState};

/// A VPS whose program runs as `user` and has secrets: name, path, what it says.
fn with(user: &str, secrets: &[(&str, &str, &str)], more: impl FnOnce(&mut Builder)) -> Builder {
    let mut builder = Builder::idle();
    builder.run.user = user.to_owned();
    let all: BTreeMap<_, _> = secrets.iter().map(|(name, path, says)| (*name, (*path, *says))).collect();
    let path = |(name, (path, _)): (&&str, &(&str, &str))| (name.parse().expect("a name"), (*path).to_owned());
    builder.run.secrets = all.iter().map(path).collect();
    builder.secrets = Some(pack(all.values().map(|(_, says)| says.as_bytes())).expect("a file"));
    more(&mut builder);
    builder
}

fn started(builder: Builder) -> Vps {
    let vps = builder.start();
    vps.reach(ShimState::Ready);
    vps
}

#[test]
fn only_the_programs_user_reads_a_secret_and_nobody_changes_it() {
    let two = [("db", "/run/secrets/db", "hunter2"), ("key", "/etc/a/key", "one\ntwo\n")];
    let mut vps = started(with("web", &two, |_| {}));
    assert_eq!(vps.exec_as("web", "cat /run/secrets/db /etc/a/key").output, "hunter2one\ntwo\n");
    assert_eq!(vps.sh("stat -c '%u:%g %a %s' /run/secrets/db /etc/a/key"), "33:33 400 7\n33:33 400 8");
    assert_ne!(vps.exec_as("1000:1000", "cat /run/secrets/db").status, ExitStatus::Code(0));
    for change in
        ["echo x > /run/secrets/db", "chmod 644 /run/secrets/db", "rm -f /run/secrets/db", "umount /etc/a/key"]
    {
        let done = vps.exec_as("root", change);
        assert_ne!(done.status, ExitStatus::Code(0), "{change}: {done:?}");
    }
    // In memory, and what is on disk in its place is empty. The place where it was put together is gone.
    assert_eq!(vps.sh("grep -c ' /etc/a/key .* - tmpfs ' /proc/self/mountinfo"), "1");
    assert_eq!(vps.sh("ls -A /sys/fs/cgroup | wc -l; grep -c ' /sys/fs/cgroup ' /proc/self/mountinfo"), "0\n1");
    let places = vps.find_on_disk("key");
    assert!(!places.is_empty() && places.iter().all(|file| file.metadata().is_ok_and(|file| file.len() == 0)));
    // No process holds what it came in.
    for pid in vps.processes().into_iter().chain([vps.shim_pid()]) {
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let target = std::fs::read_link(fd.path()).unwrap_or_default();
            assert!(!target.to_string_lossy().contains("memfd"), "process {pid} holds {}", target.display());
        }
    }
}

#[test]
fn a_group_reads_a_secret_where_the_user_names_one() {
    let mut vps = started(with("web:extra", &[("db", "/run/db", "hunter2")], |_| {}));
    assert_eq!(vps.sh("stat -c '%u:%g %a' /run/db"), "33:77 440");
    assert_eq!(vps.exec_as("1000:extra", "cat /run/db").output, "hunter2");
}

#[test]
fn a_secret_without_a_place_is_named_and_not_told() {
    let builder = with("root", &[("db", "/etc/passwd/db", "hunter2")], |_| {});
    let reason = builder.start().not_started();
    assert_eq!(reason, "putting secrets in place: `db` at /etc/passwd/db: Not a directory (os error 20)");
    let builder = with("nobody-here", &[("db", "/run/db", "hunter2")], |_| {});
    let reason = builder.start().not_started();
    assert!(reason.contains("\"nobody-here\" is not in /etc/passwd"), "{reason}");
}
