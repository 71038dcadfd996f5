//! Programs that are used, and the host itself.

use std::os::unix::net::UnixStream;

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
