//! Programs that are used, the configuration, and the host itself.

use std::{fs, io::ErrorKind, os::unix::net::UnixStream, path::Path};

use model::host::Paths;

use super::Finding;

pub fn mmdebstrap() -> Finding {
    const WHAT: &str = "mmdebstrap";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(WHAT)).find(|file| file.is_file());
    match found {
        Some(file) => Finding::ok(WHAT, file.display().to_string()),
        None => {
            Finding::missing(WHAT, "not in PATH", "`debian:` images are built with it", "apt-get install mmdebstrap")
        }
    }
}

pub fn configuration(file: &Path) -> Finding {
    const WHAT: &str = "configuration";
    let name = file.display().to_string();
    let wrong = |seen: String| Finding::missing(WHAT, seen, "a host does not start with it", format!("edit {name}"));
    match fs::read_to_string(file) {
        Ok(text) => match model::host::parse(&name, &text) {
            Ok(_) => Finding::ok(WHAT, name),
            // The daemon tells all of them; here one is enough to say that there are some.
            Err(problems) => wrong(problems.first().map(ToString::to_string).unwrap_or_default()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::ok(WHAT, format!("no {name}: defaults")),
        Err(error) => wrong(format!("{name}: {error}")),
    }
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
        assert!(configuration(&file).seen.ends_with("host.toml: defaults"));
        fs::write(&file, "ids = { frist = 1 }\n").expect("a file");
        let found = configuration(&file);
        assert!(
            found.state == Verdict::Missing && found.seen.contains("host.toml:1:9  unknown field `frist`"),
            "{found:?}"
        );
        fs::write(&file, "").expect("a file");
        assert_eq!(configuration(&file).state, Verdict::Ok);
    }
}
