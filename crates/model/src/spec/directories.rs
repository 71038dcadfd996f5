//! `directories` of a VPS: what it sees of the host. Which there are, and who may see them, host.toml says.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::{parse::texts_of, render::quoted};
use crate::{
    DirectoryName,
    document::{Get, Problems, Value},
    run::Directory,
};

/// What a start puts there itself.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// `33:34`, or `33` for both.
pub(super) fn owner(text: &str) -> Option<(u32, u32)> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let id = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    Some((id(user)?, id(group)?))
}

/// What is wrong with the directories of one VPS beyond their types.
pub(super) fn within(problems: &mut Problems<'_>, vps: &DeTable<'_>) {
    let others = |field: &str| -> Vec<String> {
        let table = vps.table(field).into_iter().flat_map(|table| texts_of(table));
        table.map(|(_, path)| path.trim_end_matches('/').to_owned()).collect()
    };
    let (volumes, secrets) = (others("volumes"), others("secrets"));
    let ids = vps.integer("ids").unwrap_or(super::fields::BLOCK);
    let mut seen = BTreeMap::<String, &str>::new();
    for (key, value) in vps.table("directories").into_iter().flatten() {
        let (name, Some(Directory { path, owner, .. })) = (key.get_ref().as_ref(), one(value)) else { continue };
        let below = |top: &&&str| path.strip_prefix(**top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let message = if path.is_empty() {
            format!("directory `{name}` cannot be the whole root")
        } else if let Some(top) = TAKEN.iter().find(below) {
            format!("directory `{name}` cannot be below {top}, which is made anew at each start")
        } else if let Some(other) = seen.insert(path.clone(), name) {
            format!("directory `{other}` is at {path} already")
        } else if volumes.contains(&path) {
            format!("a volume is at {path} already")
        } else if secrets.contains(&path) {
            format!("a secret is at {path} already")
        } else if i64::from(owner.0.max(owner.1)) >= ids {
            format!("`owner` of directory `{name}` is none of its ids, 0 to {}", ids - 1)
        } else {
            continue;
        };
        problems.tell(value.span(), message, None);
    }
}

/// The directories of one VPS.
pub(super) fn read(vps: &DeTable<'_>) -> BTreeMap<DirectoryName, Directory> {
    let entries = vps.table("directories").into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.get_ref().parse().ok()?, one(value)?))).collect()
}

fn one(value: &Value<'_>) -> Option<Directory> {
    let (path, write, owned) = match value.get_ref() {
        DeValue::Table(table) => (table.text("path")?, table.boolean("write").unwrap_or(false), table.text("owner")),
        value => (value.as_str()?, false, None),
    };
    let owner = owned.and_then(owner).unwrap_or_default();
    Some(Directory { path: path.trim_end_matches('/').to_owned(), write, owner })
}

/// As a spec has it.
pub(super) fn render(directory: &Directory) -> String {
    let Directory { path, write, owner } = directory;
    if !write && *owner == (0, 0) {
        return quoted(path);
    }
    let write = if *write { ", write = true" } else { "" };
    let owner = if *owner == (0, 0) { String::new() } else { format!(", owner = \"{}:{}\"", owner.0, owner.1) };
    format!("{{ path = {}{write}{owner} }}", quoted(path))
}
