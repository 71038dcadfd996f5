//! What is there and belongs to nothing: files half made, cgroups, links and processes of VPSs that are not up.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    victims::{self, is_zombie},
    world::{World, json},
};
use crate::Host;

/// Links that may still be about to go.
const ENDING: usize = 64;

fn names(directory: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// All that should not be there; the rows are those of all VPSs.
pub fn find(host: &Host, world: &World, rows: &[Value]) -> Result<Vec<String>> {
    let mut left = files(host, world, rows)?;
    left.extend(cgroups(host, rows));
    left.extend(links(host, rows)?);
    left.extend(processes(host, rows));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = host.root.to_string_lossy().into_owned();
    left.extend(mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount {line}")));
    Ok(left)
}

/// Whether it has processes: it is up, or prepared for its next start.
fn is_up(row: &&Value) -> bool {
    row["pid"].is_i64() || row["prepared"] == true
}

/// What is prepared and nobody's yet.
fn is_spare(name: &str) -> bool {
    name.starts_with("spare_") || name.starts_with(".new-spare_")
}

fn all_names(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().map(|row| text(row, "name").to_owned()).collect()
}

fn files(host: &Host, world: &World, rows: &[Value]) -> Result<Vec<String>> {
    let root = &host.root;
    let vps = all_names(rows);
    let mut left = Vec::new();
    let mut only = |directory: PathBuf, known: &dyn Fn(&str) -> bool| {
        let strange = names(&directory).into_iter().filter(|name| !known(name));
        left.extend(strange.map(|name| format!("{}/{name}", directory.display())));
    };
    only(root.join("lib/vps"), &|name| vps.contains(name) || is_spare(name));
    only(root.join("run/vps"), &|name| vps.contains(name));
    only(root.join("run/stage"), &|_| false);
    for tenant in names(root.join("lib/volumes")) {
        let known = |name: &str| world.volumes.contains_key(&format!("{tenant}/{name}"));
        only(root.join("lib/volumes").join(&tenant), &known);
    }
    // Elsewhere it is the name that says that something is half made.
    let whole = |name: &str| !name.starts_with('.') && !name.ends_with(".new");
    for directory in ["lib", "run", "files"] {
        only(root.join(directory), &whole);
    }
    let data = root.join("lib/designated");
    for service in
        names(&data).into_iter().flat_map(|vps| names(data.join(&vps)).into_iter().map(move |s| (vps.clone(), s)))
    {
        only(data.join(service.0).join(service.1), &whole);
    }
    let store = root.join("layers");
    only(store.clone(), &|name| ["layers", "images", "uses", "hosts", ".lock"].contains(&name));
    only(store.join("images"), &|name| name.ends_with(".json"));
    only(store.join("uses"), &whole);
    for named in names(store.join("hosts")) {
        only(store.join("hosts").join(named), &|name| name == ".place" || vps.contains(name));
    }
    let mut layers = BTreeSet::new();
    for row in json(root, "/v1/images")? {
        layers.extend(row["layers"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    }
    only(store.join("layers"), &|name| layers.contains(name));
    Ok(left)
}

fn cgroups(host: &Host, rows: &[Value]) -> Vec<String> {
    let own = victims::cgroup(&host.root);
    let up: BTreeSet<_> = rows.iter().filter(is_up).map(|row| text(row, "name")).collect();
    let base = Path::new("/sys/fs/cgroup");
    let mut left = Vec::new();
    for hierarchy in names(base).into_iter().map(|name| base.join(name)).chain([base.to_owned()]) {
        let directory = hierarchy.join(&own);
        let groups = names(&directory).into_iter().filter(|name| directory.join(name).is_dir());
        left.extend(
            groups
                .filter(|name| !up.contains(name.as_str()) && !is_spare(name))
                .map(|name| format!("cgroup {}/{name}", directory.display())),
        );
    }
    left
}

/// The outer ends of VPSs' links are in the network VPS's namespace, each named after its address. Of designated VPSs, which
/// have the first sixteen, nobody says which have one.
fn links(host: &Host, rows: &[Value]) -> Result<Vec<String>> {
    let Some(network) = rows.iter().find(|row| row["name"] == "network").and_then(|row| row["pid"].as_i64()) else {
        return Ok(vec!["the network VPS is not up".to_owned()]);
    };
    let list = Command::new("nsenter").args(["--net", "-t", &network.to_string(), "ip", "-o", "link"]).output()?;
    ensure!(list.status.success(), "nsenter: {}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    let designated = |name: &str| name.len() == 9 && name.starts_with("v0a50000");
    // A run's namespace lives as long as the kernel sends what a closed connection still had to say, a minute or two where its
    // peer is gone. Its link goes with it.
    let (ending, found): (BTreeSet<String>, BTreeSet<String>) = list
        .lines()
        .filter_map(name)
        .filter(|name| name != "lo" && !designated(name))
        .partition(|name| name.starts_with("gone"));
    if ending.len() > ENDING {
        return Ok(vec![format!("links of namespaces that should have ended: {ending:?}")]);
    }
    let link = |row: &Value| text(row, "address").parse::<Ipv4Addr>().ok().map(|ip| format!("v{:08x}", u32::from(ip)));
    let expected: BTreeSet<String> = rows.iter().filter(is_up).filter_map(link).collect();
    // Nobody says which addresses spares have.
    let spares = names(host.root.join("lib/vps")).iter().filter(|name| is_spare(name)).count();
    if found.is_superset(&expected) && found.len() <= expected.len() + spares {
        return Ok(Vec::new());
    }
    Ok(vec![format!("links: there are {found:?}, and should be {expected:?}, and {spares} of spares")])
}

fn processes(host: &Host, rows: &[Value]) -> Vec<String> {
    let up: BTreeSet<_> = rows.iter().filter(is_up).map(|row| text(row, "name")).collect();
    let all = victims::all(host.keeper(), &victims::cgroup(&host.root));
    let strange = |process: &&victims::Process| match (&process.vps, process.role) {
        (Some(vps), _) if is_spare(vps) => false,
        (None, "keeper" | "daemon") => false,
        (Some(vps), "program") => !up.contains(vps.as_str()),
        (Some(vps), _) => !up.contains(vps.as_str()) || is_zombie(process.pid),
        (None, _) => true,
    };
    all.iter().filter(strange).map(|process| format!("process {process}")).collect()
}
