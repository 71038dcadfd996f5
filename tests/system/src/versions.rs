//! Other versions of the programs: copies of those that were built, with another version in the mark that says it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::host::programs;

/// All of them.
pub const NAMES: [&str; 3] = ["bailiwickd", "bailiwick-shim", "bailiwick"];
/// What stands before the version in each program's file.
const MARK: &[u8] = b"bailiwick-version=";

/// The version of the copies: the built one's with other digits.
pub fn other() -> String {
    env!("CARGO_PKG_VERSION").chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect()
}

/// Copies of the programs in `directory`, which say that they are `other()`.
pub fn copy(directory: &Path) -> Result<PathBuf> {
    let mark = [MARK, env!("CARGO_PKG_VERSION").as_bytes()].concat();
    fs::create_dir(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    for name in NAMES {
        let other = [MARK, other().as_bytes()].concat();
        let needed = name != "bailiwick-shim";
        patch(&programs().join(name), &directory.join(name), &mark, &other, needed)?;
    }
    Ok(directory.to_owned())
}

/// Copies a program, with `old` replaced by as many bytes of `new`; it must occur if `needed`.
pub fn patch(from: &Path, to: &Path, old: &[u8], new: &[u8], needed: bool) -> Result<()> {
    ensure!(old.len() == new.len(), "what follows would move");
    let mut bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let places: Vec<_> = find(&bytes, old).collect();
    ensure!(!places.is_empty() || !needed, "{} does not hold {}", from.display(), String::from_utf8_lossy(old));
    for at in places {
        bytes[at..at + old.len()].copy_from_slice(new);
    }
    fs::write(to, bytes)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
}

fn find<'a>(bytes: &'a [u8], what: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = what.first().copied().unwrap_or_default();
    let at = move |(at, byte): (usize, &u8)| (*byte == first && bytes[at..].starts_with(what)).then_some(at);
    bytes.iter().enumerate().filter_map(at)
}
