//! `host.toml`, and what follows from it.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

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
///
/// # Errors
/// It can't be read, or something in it is wrong.
pub fn read(paths: &Paths) -> anyhow::Result<HostConfig> {
    let text = match fs::read_to_string(&paths.config) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(default_config()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", paths.config.display())),
    };
    parse(&paths.config.to_string_lossy(), &text).map_err(|problems| {
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Refused(format!("{} is wrong, nothing was started\n\n{}", paths.config.display(), shown.join("\n"))).into()
    })
}

/// Reads host.toml, or what it was when the host came up last: a host that has VPSs is not kept down by a slip in a file.
///
/// # Errors
/// As of `read`, where the host has never come up.
pub fn read_or_last(paths: &Paths) -> anyhow::Result<HostConfig> {
    let error = match read(paths) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let good = good(paths);
    let last = fs::read_to_string(&good).ok().and_then(|text| parse(&good.to_string_lossy(), &text).ok());
    let Some(mut config) = last else { return Err(error) };
    let what = match parse_problems(paths) {
        Some(problem) => problem,
        None => format!("{error:#}"),
    };
    let fault =
        format!("{what}; as it was at the last start is in force. next: bailiwick doctor, then a restart of the host");
    config.faults.push(fault);
    Ok(config)
}

/// The first thing that is wrong with host.toml, in one line.
fn parse_problems(paths: &Paths) -> Option<String> {
    let problems = parse(&paths.config.to_string_lossy(), &fs::read_to_string(&paths.config).ok()?).err()?;
    let first = problems.first()?;
    let more = match problems.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    Some(format!("{}:{}:{}  {}{more}", first.file, first.line, first.column, first.message))
}

/// Where host.toml is kept as it was when the host came up last.
fn good(paths: &Paths) -> PathBuf {
    paths.state.join("host.toml.good")
}

/// Whether this host has come up with a host.toml before.
pub fn has_come_up(paths: &Paths) -> bool {
    good(paths).exists()
}

/// Keeps host.toml, with which the host has come up; one that has changed since is not that one.
pub fn keep_good(paths: &Paths, config: &HostConfig) -> io::Result<()> {
    if !config.faults.is_empty() || read(paths).ok().as_ref() != Some(config) {
        return Ok(());
    }
    let text = match fs::read(&paths.config) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        text => text?,
    };
    let new = paths.state.join(".host.toml.good");
    fs::write(&new, text)?;
    fs::rename(new, good(paths))
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
    fn a_broken_file_gives_way_to_the_one_the_host_came_up_with() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(root.path()));
        fs::create_dir(&paths.state).unwrap();
        fs::write(&paths.config, "reserve = { memory = \"64MiB\" }\n").unwrap();
        let config = read_or_last(&paths).unwrap();
        keep_good(&paths, &config).unwrap();
        fs::write(&paths.config, "reserve = { memory = \"32MiB\", dsik = \"5%\" }\n").unwrap();
        let last = read_or_last(&paths).unwrap();
        assert_eq!(last.reserve.memory, 64 << 20);
        let told = &last.faults[0];
        assert!(told.contains("host.toml:1:31  unknown field `dsik`") && !told.contains('\n'), "{told}");
        keep_good(&paths, &last).unwrap();
        // Nor is one that can't be read at all.
        fs::remove_file(&paths.config).unwrap();
        fs::create_dir(&paths.config).unwrap();
        assert_eq!(read_or_last(&paths).unwrap().reserve.memory, 64 << 20);
        fs::remove_file(good(&paths)).unwrap();
        assert!(read_or_last(&paths).is_err(), "a host that never came up is refused");
    }

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
