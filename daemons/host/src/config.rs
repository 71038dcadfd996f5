//! `host.toml`, and what follows from it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use model::{
    HostConfig,
    host::{Paths, default_config, parse},
};

/// host.toml is wrong; starting again would not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    /// Refuses with this message.
    pub fn new(message: String) -> Self {
        Self(message)
    }
}

/// Reads host.toml; a host without one has the default configuration.
pub fn read(paths: &Paths) -> anyhow::Result<HostConfig> {
    let text = match std::fs::read_to_string(&paths.config) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(default_config()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", paths.config.display())),
    };
    parse(&paths.config.to_string_lossy(), &text).map_err(|problems| {
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Refused(format!("{} is wrong, nothing was started\n\n{}", paths.config.display(), shown.join("\n"))).into()
    })
}

/// The name of this host's cgroup.
pub fn cgroup_name(config: &HostConfig, paths: &Paths) -> String {
    if let Some(name) = &config.cgroup {
        return name.clone();
    }
    if *paths == Paths::new(None) {
        return "bailiwick".to_owned();
    }
    format!("bailiwick-{:08x}", root_hash(paths))
}

/// What names of this host's kernel objects are made from.
pub fn root_hash(paths: &Paths) -> u32 {
    // FNV-1a: the same path gives the same name in every version.
    let fold = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    paths.run.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5, fold)
}

/// Where the layer store is on the host.
pub fn layer_store(config: &HostConfig, paths: &Paths) -> PathBuf {
    config.layers.clone().unwrap_or_else(|| paths.state.join("layers"))
}

/// Where this program is, or was before another one took its place.
pub fn own_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let replaced = own.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    Ok(replaced.map_or_else(|| own.clone(), PathBuf::from))
}

/// A program that was installed beside this one.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = own_program()?;
    let path = own.parent().unwrap_or(Path::new("/")).join(name);
    anyhow::ensure!(path.is_file(), "{} is missing; it belongs beside bailiwickd", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_root_has_a_cgroup_of_its_own() {
        let mut config = default_config();
        let name = |config: &HostConfig, root: Option<&str>| cgroup_name(config, &Paths::new(root.map(Path::new)));
        assert_eq!(name(&config, None), "bailiwick");
        let (a, b) = (name(&config, Some("/tmp/a")), name(&config, Some("/tmp/b")));
        assert!(a.starts_with("bailiwick-") && a != b, "{a} {b}");
        config.cgroup = Some("bailiwick-test".to_owned());
        assert_eq!(name(&config, Some("/tmp/a")), "bailiwick-test");
    }
}
