//! `volumes` of a VPS, and `[volume]` of a file.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::parse::texts_of;
use crate::{
    VolumeName,
    document::{Get, Problems},
    limits::parse_bytes,
    run::Volume,
};

/// What a start puts there itself.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// What is wrong with the volumes of one VPS beyond their types.
pub(super) fn within(problems: &mut Problems<'_>, vps: &DeTable<'_>) {
    let mut seen = BTreeMap::<&str, &str>::new();
    for (key, value) in vps.table("volumes").into_iter().flatten() {
        let (name, Some(path)) = (key.get_ref().as_ref(), value.get_ref().as_str()) else { continue };
        let path = path.trim_end_matches('/');
        let taken = |top: &&&str| path == **top || path.strip_prefix(**top).is_some_and(|rest| rest.starts_with('/'));
        if path.is_empty() {
            problems.tell(value.span(), format!("volume `{name}` cannot be the whole root"), None);
        } else if let Some(top) = TAKEN.iter().find(taken) {
            let message = format!("volume `{name}` cannot be below {top}, which is made anew at each start");
            problems.tell(value.span(), message, None);
        } else if let Some(other) = seen.insert(path, name) {
            problems.tell(value.span(), format!("volume `{other}` is at {path} already"), None);
        }
    }
}

/// Volumes that no VPS of the file uses: probably their names are spelt differently.
pub(super) fn unused(problems: &mut Problems<'_>, document: &DeTable<'_>, vpss: &DeTable<'_>) {
    let tables = || vpss.values().filter_map(|vps| vps.get_ref().as_table()?.table("volumes"));
    for key in document.table("volume").into_iter().flat_map(|volumes| volumes.keys()) {
        let name = key.get_ref().as_ref();
        if !tables().any(|volumes| volumes.contains_key(name)) {
            let used = tables().flat_map(|volumes| volumes.keys().map(|key| key.get_ref().as_ref()));
            let hint = match crate::nearest(name, used) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write volumes = {{ {name} = \"/path\" }} in one of them"),
            };
            problems.tell(key.span(), format!("no vps of this file uses the volume `{name}`"), Some(hint));
        }
    }
}

/// The volumes of one VPS.
pub(super) fn read(document: &DeTable<'_>, vps: &DeTable<'_>) -> BTreeMap<VolumeName, Volume> {
    let size = |name: &str| {
        let table = document.table("volume")?.table(name)?;
        parse_bytes(table.text("size")?).ok()
    };
    let one = |(name, path): (&str, &str)| {
        let volume = Volume { path: path.trim_end_matches('/').to_owned(), size: size(name) };
        Some((name.parse().ok()?, volume))
    };
    vps.table("volumes").into_iter().flat_map(|table| texts_of(table)).filter_map(one).collect()
}
