//! The host under torture: what is on it, and its layer store, which is its own so that leftovers in it are its own too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::host::layers_store;

/// Images that are taken over from the shared store, where `make torture` or an earlier run has built them.
const IMAGES: [&str; 3] = ["debian:", "debian:nginx-light", "debian:redis-server"];

/// VPSs that nothing is done to.
pub const BYSTANDERS: [&str; 4] = ["calm", "site", "frost", "dorm"];
/// Ports on loopback.
pub const CALM: u16 = 22_101;
/// The bystander that is under load.
pub const SITE: u16 = 22_102;
/// The web server that is started, stopped and changed.
pub const WEB: u16 = 22_103;
/// The database that acknowledges writes.
pub const STORE: u16 = 22_104;
/// Files of the volume `cargo`.
pub const CARGO_FILES: usize = 40;

/// A copy of the shared layer store, by hard links, with the images that are needed here.
pub fn layers(to: &Path) -> Result<PathBuf> {
    let from = layers_store();
    fs::create_dir_all(to.join("layers"))?;
    fs::create_dir_all(to.join("images"))?;
    let mut found = 0;
    for entry in fs::read_dir(from.join("images"))?.flatten() {
        let text = fs::read_to_string(entry.path())?;
        let image: Value = serde_json::from_str(&text)?;
        if !IMAGES.iter().any(|name| image["reference"] == *name) {
            continue;
        }
        found += 1;
        for layer in image["layers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let (layer, target) = (from.join("layers").join(layer), to.join("layers").join(layer));
            if !target.exists() {
                let copied = Command::new("cp").arg("-al").arg(&layer).arg(&target).output()?;
                ensure!(copied.status.success(), "cp: {}", String::from_utf8_lossy(&copied.stderr));
            }
        }
        fs::write(to.join("images").join(entry.file_name()), text)?;
    }
    ensure!(found == IMAGES.len(), "not all of {IMAGES:?} are in {}; `make torture` builds them", from.display());
    for path in ["images", "layers", "."].map(|name| to.join(name)) {
        let shown = path.display().to_string();
        let given = Command::new("chown").arg("700000:700000").arg(&path).output().context(shown)?;
        ensure!(given.status.success(), "chown: {}", String::from_utf8_lossy(&given.stderr));
    }
    Ok(to.to_owned())
}

/// The bystanders' specs.
pub fn bystanders() -> String {
    let echo = crate::spec::server("", crate::spec::ECHO);
    format!(
        r#"tenant = "beta"
[vps.calm]
image   = "debian:"
command = ["perl", "-e", {echo:?}]
routes  = {{ "tcp://127.0.0.1:{CALM}" = 7 }}
idle    = "never"
[vps.site]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = {{ "http://site.test:{SITE}" = 80 }}
files   = {{ "/var/www/html/index.html" = "hello from site\n" }}
idle    = "never"
[vps.frost]
image   = "debian:"
command = ["sleep", "infinity"]
[vps.dorm]
image   = "debian:"
command = ["sleep", "infinity"]
"#
    )
}

/// One of those that are tortured, with a mark by which its versions are told apart: in several places, so that half a change
/// shows.
pub fn subject(name: &str, mark: &str) -> String {
    match name {
        "web" => format!(
            r#"[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = {{ "http://web.test:{WEB}" = 80 }}
env     = {{ MARK = "{mark}" }}
files   = {{ "/var/www/html/index.html" = "{mark} of web\n", "/etc/mark" = "{mark}" }}
idle    = {{ after = "1s", then = "freeze" }}
stop    = {{ grace = "500ms" }}
"#
        ),
        "store" => format!(
            r#"[vps.store]
image   = "debian:redis-server"
command = ["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/var/lib/redis", "--appendonly", "yes", "--appendfsync", "always"]
user    = "redis"
volumes = {{ data = "/var/lib/redis" }}
routes  = {{ "tcp://127.0.0.1:{STORE}" = 6379 }}
ready   = {{ run = ["sh", "-c", "redis-cli ping | grep -q PONG"] }}
env     = {{ MARK = "{mark}" }}
files   = {{ "/etc/mark" = "{mark}" }}
idle    = {{ after = "1s", then = "stop" }}
"#
        ),
        "hold" => format!(
            r#"[vps.hold]
image   = "debian:"
command = ["sleep", "infinity"]
volumes = {{ cargo = "/srv" }}
env     = {{ MARK = "{mark}" }}
stop    = {{ grace = "100ms" }}
"#
        ),
        _ => format!(
            r#"[vps.{name}]
image   = "debian:"
command = ["sh", "-c", "date > /srv/began; exec sleep infinity"]
volumes = {{ {name}-data = "/srv" }}
env     = {{ MARK = "{mark}" }}
files   = {{ "/etc/mark" = "{mark}" }}
stop    = {{ grace = "100ms" }}
"#
        ),
    }
}

/// A directory with the volume's content of that mark.
pub fn cargo(directory: &Path, mark: &str) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    for n in 0..CARGO_FILES {
        let part = directory.join(format!("part{}", n % 4));
        fs::create_dir_all(&part)?;
        let name = format!("file{n}");
        fs::write(part.join(&name), cargo_file(&name, mark))?;
    }
    Ok(())
}

/// What is in one of its files.
pub fn cargo_file(name: &str, mark: &str) -> String {
    // Some of them take many pieces of a stream.
    let size = if name.ends_with('8') { 2_000_000 } else { 100 };
    format!("{mark} ").repeat(size / (mark.len() + 1))
}
