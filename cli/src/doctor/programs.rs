//! Programs that are used, the configuration, and the host itself.

use std::{
    fs,
    io::ErrorKind,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use model::host::Paths;

use super::Finding;

pub fn mmdebstrap() -> Finding {
    program("mmdebstrap", "`debian:` images are built with it", "apt-get install mmdebstrap")
}

pub fn nft() -> Finding {
    program("nft", "VPSs are kept apart with it: no host starts without", "apt-get install nftables")
}

fn program(what: &'static str, means: &'static str, next: &str) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(system).map(|at| at.join(what)).find(|file| file.is_file());
    match found {
        Some(file) => Finding::ok(what, file.display().to_string()),
        None => Finding::missing(what, "not in PATH", means, next),
    }
}

/// What is wrong with a host.toml, and what of it this machine lacks.
pub fn configuration(file: &Path) -> Vec<Finding> {
    const WHAT: &str = "configuration";
    const MEANS: &str = "a host does not start with it, or with the one it had at its last start";
    let name = file.display().to_string();
    let wrong = |seen: String| Finding::missing(WHAT, seen, MEANS, format!("edit {name}"));
    let config = match fs::read_to_string(file) {
        Ok(text) => match model::host::parse(&name, &text) {
            Ok(config) => config,
            Err(problems) => return problems.iter().map(|problem| wrong(problem.to_string())).collect(),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return vec![Finding::ok(WHAT, format!("no {name}: defaults"))];
        }
        Err(error) => return vec![wrong(format!("{name}: {error}"))],
    };
    let mut findings = vec![Finding::ok(WHAT, name.clone())];
    if let Some(uplink) = &config.network.uplink {
        findings.push(interface(uplink, Path::new("/sys/class/net"), &name));
    }
    findings
}

fn interface(uplink: &str, interfaces: &Path, file: &str) -> Finding {
    const WHAT: &str = "uplink";
    if interfaces.join(uplink).exists() {
        return Finding::ok(WHAT, uplink);
    }
    let there = fs::read_dir(interfaces).into_iter().flatten().flatten();
    let mut there: Vec<_> = there.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    there.sort();
    let seen = format!("there is no interface {uplink}; there are {}", there.join(", "));
    Finding::missing(
        WHAT,
        seen,
        "VPSs do not reach the outside",
        format!("write `uplink` of {file} otherwise, or leave it out"),
    )
}

pub fn host(paths: &Paths) -> Finding {
    const WHAT: &str = "host";
    let socket = paths.api();
    match UnixStream::connect(&socket) {
        Ok(_) => Finding::ok(WHAT, format!("listens at {}", socket.display())),
        Err(error) => Finding::note(
            WHAT,
            format!("none at {}: {error}", socket.display()),
            "no VPS is there, and none is woken",
            "start one as root: bailiwickd, or systemctl start bailiwick",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_bad_configuration_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("host.toml");
        let found = configuration(&file);
        assert!(found[0].seen.ends_with("host.toml: defaults"), "{found:?}");
        fs::write(&file, "ids = { frist = 1 }\nreserve = { memory = \"1GB\" }\n").expect("a file");
        let found = configuration(&file);
        assert!(found.iter().all(|finding| finding.state == Verdict::Missing) && found.len() == 2, "{found:?}");
        assert!(found[0].seen.contains("host.toml:1:9  unknown field `frist`"), "{found:?}");
        assert!(found[1].seen.contains("host.toml:2:"), "{found:?}");
        fs::write(&file, "").expect("a file");
        assert_eq!(configuration(&file)[0].state, Verdict::Ok);
    }

    #[test]
    fn an_uplink_that_is_not_there_is_told_with_those_that_are() {
        let interfaces = tempfile::tempdir().expect("a directory");
        fs::create_dir(interfaces.path().join("eth0")).expect("an interface");
        assert_eq!(interface("eth0", interfaces.path(), "host.toml").state, Verdict::Ok);
        let found = interface("wan0", interfaces.path(), "host.toml");
        assert_eq!(found.seen, "there is no interface wan0; there are eth0");
    }
}
