//! The programs of a version: what this one is, and whether those in a directory could follow it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, process::Stdio, time::Duration};

use anyhow::Context as _;
use model::{api::ErrorKind, host::Paths};
use tokio::process::Command;
use wire::{Fault, admin::Programs};

use crate::uplink::CHILD;

/// All of them.
const NAMES: [&str; 3] = ["bailiwickd", "bailiwick-shim", "bailiwick"];
/// How long one may take to say its version.
const ANSWER: Duration = Duration::from_secs(10);
/// Write permission for the group or for others.
const WRITABLE: u32 = 0o022;

/// The ones that this process is of.
pub fn own() -> anyhow::Result<Programs> {
    let program = crate::config::own_program()?;
    let directory = program.parent().unwrap_or(Path::new("/")).to_owned();
    let build = build(Path::new("/proc/self/exe")).context("looking at this program")?;
    Ok(Programs { directory, version: model::version().to_owned(), build })
}

fn build(program: &Path) -> io::Result<String> {
    let meta = fs::metadata(program)?;
    Ok(format!("{}:{}:{}.{}", meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

/// Those in `directory`, if this machine can run them and they could take over the host at `paths`.
pub async fn examine(directory: &Path, paths: &Paths) -> Result<Programs, Fault> {
    let unfit = |message: String| Fault::new(ErrorKind::Invalid, format!("{}: {message}", directory.display()));
    let directory = fs::canonicalize(directory).map_err(|error| unfit(error.to_string()))?;
    for path in NAMES.map(|name| directory.join(name)).iter().chain([&directory]) {
        let meta = fs::metadata(path).map_err(|error| unfit(format!("{}: {error}", path.display())))?;
        if meta.uid() != 0 || meta.mode() & WRITABLE != 0 {
            let path = path.display();
            return Err(unfit(format!("{path} can be changed by others than root; chown root, chmod go-w")));
        }
    }
    let daemon = directory.join("bailiwickd");
    let version = version(&daemon).await.map_err(&unfit)?;
    let client = self::version(&directory.join("bailiwick")).await.map_err(&unfit)?;
    if client != version {
        return Err(unfit(format!("bailiwickd is {version}, but bailiwick is {client}")));
    }
    let mut check = Command::new(&daemon);
    check.arg("check");
    if *paths != Paths::new(None) {
        check.arg("--root").arg(paths.config.parent().unwrap_or(Path::new("/")));
    }
    run(check).await.map_err(|said| unfit(format!("{version} can't take this host over: {said}")))?;
    let build = build(&daemon).map_err(|error| unfit(error.to_string()))?;
    Ok(Programs { directory, version, build })
}

/// What a program says it is: the last word of the line that `--version` prints.
async fn version(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg("--version");
    let said = run(command).await.map_err(|error| format!("{} does not run: {error}", program.display()))?;
    let version = said.split_whitespace().last().unwrap_or_default();
    let legal = !version.is_empty() && version.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.~".contains(&b));
    if legal { Ok(version.to_owned()) } else { Err(format!("{} does not say its version", program.display())) }
}

async fn run(mut command: Command) -> Result<String, String> {
    let _child = CHILD.lock().await;
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER, command.output()).await.map_err(|_| "no answer in time".to_owned())?;
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.is_empty() { output.status.to_string() } else { said })
}
