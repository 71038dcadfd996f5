//! `secrets` of a VPS: names and paths. What a secret says is never part of a spec.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::parse::texts_of;
use crate::{
    SecretName,
    document::{Get, Problems},
};

/// What the kernel fills itself.
const TAKEN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What is wrong with the secrets of one VPS beyond their types.
pub(super) fn within(problems: &mut Problems<'_>, vps: &DeTable<'_>) {
    let mut seen = BTreeMap::<&str, String>::new();
    let at = |kind: &str| -> Vec<String> {
        let table = vps.table(kind).into_iter().flat_map(|table| texts_of(table));
        table.map(|(key, value)| if kind == "files" { key } else { value }.trim_end_matches('/').to_owned()).collect()
    };
    let (files, volumes) = (at("files"), at("volumes"));
    for (key, value) in vps.table("secrets").into_iter().flatten() {
        let (name, Some(path)) = (key.get_ref().as_ref(), value.get_ref().as_str()) else { continue };
        let below = |top: &&&str| path.strip_prefix(**top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let message = if path.ends_with('/') {
            format!("`{path}` is a directory: name the file of secret `{name}`")
        } else if let Some(top) = TAKEN.iter().find(below) {
            format!("secret `{name}` cannot be below {top}, which is the kernel's")
        } else if let Some(other) = seen.insert(path, name.to_owned()) {
            format!("secret `{other}` is at {path} already")
        } else if files.iter().any(|file| file == path) {
            format!("`files` has {path} too")
        } else if volumes.iter().any(|volume| volume == path) {
            format!("a volume is at {path} already")
        } else {
            continue;
        };
        problems.tell(value.span(), message, Some("write a path such as \"/run/secrets/NAME\"".to_owned()));
    }
}

/// The secrets of one VPS.
pub(super) fn read(vps: &DeTable<'_>) -> BTreeMap<SecretName, String> {
    let entries = vps.table("secrets").into_iter().flat_map(|table| texts_of(table));
    entries.filter_map(|(name, path)| Some((name.parse().ok()?, path.to_owned()))).collect()
}
