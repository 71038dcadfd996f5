//! What a host has: all that an operation may change, as it is seen from outside. An operation that was killed leaves the world
//! as it was before, or as it is after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::site::{CARGO_FILES, cargo_file};
use crate::Host;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct World {
    /// VPSs, with the marks of their specs.
    pub vps: BTreeMap<String, String>,
    /// Volumes `TENANT/NAME`, with the marks of their content where it has some.
    pub volumes: BTreeMap<String, String>,
    /// Images by reference.
    pub images: BTreeSet<String>,
    /// Secrets `TENANT/NAME`.
    pub secrets: BTreeSet<String>,
    /// The directory of the programs that each part of the host runs.
    pub programs: BTreeSet<String>,
}

/// What `GET` of the API answers.
pub fn get(root: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(root.join("run/api.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "GET {path}: {answer}");
    ensure!(!head.to_lowercase().contains("transfer-encoding"), "GET {path}: an answer in pieces");
    Ok(body.to_owned())
}

/// The same as JSON.
pub fn json(root: &Path, path: &str) -> Result<Vec<Value>> {
    let body = get(root, path)?;
    serde_json::from_str(&body).with_context(|| format!("GET {path}: {body}"))
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// The one mark that a text has, wherever it stands.
fn mark(text: &str) -> Result<String> {
    let marks = text.match_indices("mark-").map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        rest[..end].to_owned()
    });
    let marks: BTreeSet<String> = marks.collect();
    ensure!(marks.len() <= 1, "it is neither the old nor the new one: {marks:?}");
    Ok(marks.into_iter().next().unwrap_or_default())
}

impl World {
    /// What it has and `other` has not, and the other way round.
    pub fn differs(&self, other: &Self) -> String {
        let lines =
            |world: &Self| -> BTreeSet<String> { format!("{world:#?}").lines().map(|l| l.trim().to_owned()).collect() };
        let (own, others) = (lines(self), lines(other));
        let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>().join(" ");
        format!("it has {} instead of {}", only(&own, &others), only(&others, &own))
    }

    /// As it is now.
    pub fn observe(host: &Host, rows: &[Value]) -> Result<Self> {
        let root = &host.root;
        let mut world = Self::default();
        for row in rows.iter().filter(|row| row["tenant"].is_string()) {
            let name = text(row, "name");
            let spec = get(root, &format!("/v1/vps/{name}/spec"))?;
            world.vps.insert(name.to_owned(), mark(&spec).with_context(|| format!("the spec of {name}"))?);
        }
        for row in json(root, "/v1/volumes")? {
            let (tenant, name) = (text(&row, "tenant"), text(&row, "name"));
            let data = root.join("lib/volumes").join(tenant).join(name).join("data");
            let content = if name == "cargo" { content(&data).context("the volume cargo")? } else { String::new() };
            world.volumes.insert(format!("{tenant}/{name}"), content);
        }
        for row in json(root, "/v1/images")? {
            // What was sent has a digest, which nobody here can foretell.
            let name = text(&row, "reference").split('@').next();
            world.images.extend(name.map(str::to_owned));
        }
        for row in json(root, "/v1/secrets")? {
            world.secrets.insert(format!("{}/{}", text(&row, "tenant"), text(&row, "name")));
        }
        let keeper = fs::read_link(format!("/proc/{}/exe", host.keeper()))?;
        let of = |file: &Path| file.parent().unwrap_or(file).to_string_lossy().into_owned();
        world.programs.insert(of(&keeper));
        for row in rows.iter().filter(|row| row["tenant"].is_null()) {
            let record = fs::read(root.join("run/vps").join(text(row, "name")))?;
            let record: Value = serde_json::from_slice(&record)?;
            world.programs.insert(text(&record["programs"], "directory").to_owned());
        }
        Ok(world)
    }
}

/// The mark of a volume's files; all of them must be there, and whole.
fn content(data: &Path) -> Result<String> {
    let mut marks = BTreeSet::new();
    let mut count = 0;
    for part in fs::read_dir(data).into_iter().flatten().flatten() {
        for file in fs::read_dir(part.path())?.flatten() {
            let (text, name) = (fs::read_to_string(file.path())?, file.file_name());
            let mark = text.split(' ').next().unwrap_or_default();
            ensure!(text == cargo_file(&name.to_string_lossy(), mark), "{} is damaged", file.path().display());
            count += 1;
            marks.insert(mark.to_owned());
        }
    }
    ensure!(marks.len() <= 1, "it is neither the old nor the new one: {marks:?}");
    ensure!(count == 0 || count == CARGO_FILES, "{count} of {CARGO_FILES} files are there");
    Ok(marks.into_iter().next().unwrap_or_default())
}
