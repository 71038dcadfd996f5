//! A host with a layer store of its own, and archives as nobody's tar would write them.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use archive::{Kind, Member, Writer};
use bailiwick_system_tests::{Answer, Host, HostOptions, disk::Disk};

/// A host, its layer store, and what is outside of every layer.
pub struct Place {
    pub host: Host,
    pub layers: PathBuf,
    _directory: Option<tempfile::TempDir>,
}

/// What a write would change of a file: mode, owner, names, size, and when it was changed.
type Seen = BTreeMap<PathBuf, (u32, u32, u32, u64, u64, i64, i64)>;

impl Place {
    /// One whose state and layers are where the tests' temporary files are.
    pub fn new(config: &str) -> Result<Self> {
        let layers = tempfile::tempdir_in("/var/tmp")?;
        let options = HostOptions { layers: Some(layers.path().to_owned()), ..HostOptions::default() };
        Self::start(config, options, Some(layers))
    }

    /// One whose state and layers are on a disk of its own.
    pub fn on(disk: &Disk, config: &str) -> Result<Self> {
        let layers = Some(disk.path().join("layers"));
        Self::start(config, HostOptions { root: Some(disk.root.clone()), layers, ..HostOptions::default() }, None)
    }

    fn start(config: &str, options: HostOptions, directory: Option<tempfile::TempDir>) -> Result<Self> {
        let layers = options.layers.clone().context("a layer store")?;
        let host = Host::start(HostOptions { config: config.to_owned(), ..options })?;
        fs::create_dir(host.root.join("outside"))?;
        fs::write(host.root.join("outside/file"), "outside")?;
        let place = Self { host, layers, _directory: directory };
        // somebody else's, which none of the others may reach
        let other = place.build("other", &archive(&[file("etc/secret")]))?;
        ensure!(other.code == 0, "{other:?}");
        Ok(place)
    }

    /// Everything that `apps` could write to, and a directory that it can't: without what each build makes and removes,
    /// which are names in two directories.
    pub fn outside(&self) -> Result<Seen> {
        let mut seen = Seen::new();
        let mut todo = vec![
            self.host.root.join("outside"),
            self.host.root.join("lib/designated/apps"),
            self.host.root.join("lib/vps/apps/state"),
            self.layers.clone(),
        ];
        let busy = [
            self.layers.clone(),
            self.layers.join("layers"),
            self.layers.join("images"),
            self.layers.join("hosts"),
            self.layers.join("uses"),
        ];
        while let Some(path) = todo.pop() {
            let stat = path.symlink_metadata().with_context(|| path.display().to_string())?;
            let changed =
                if busy.contains(&path) { (0, 0, 0) } else { (stat.nlink(), stat.ctime(), stat.ctime_nsec()) };
            let (size, (links, ctime, nsec)) = (if stat.is_dir() { 0 } else { stat.len() }, changed);
            seen.insert(path.clone(), (stat.mode(), stat.uid(), stat.gid(), size, links, ctime, nsec));
            // what this host says that it uses: the daemon of its VPSs, `apps` of its specs
            let told = ["hosts", "uses"].map(|name| self.layers.join(name));
            if stat.is_dir() && !told.contains(&path) {
                todo.extend(fs::read_dir(path)?.flatten().map(|entry| entry.path()));
            }
        }
        Ok(seen)
    }

    /// Writes an archive beside the host's files, and has an image made of it.
    pub fn build(&self, name: &str, bytes: &[u8]) -> Result<Answer> {
        let path = self.host.root.join(format!("{name}.tar"));
        fs::write(&path, bytes)?;
        let answer = self.host.cli(&["image", "build", &format!("tar:{}", path.display())]);
        fs::remove_file(path)?;
        answer
    }

    /// The layers' directories.
    pub fn layers(&self) -> Result<Vec<PathBuf>> {
        Ok(fs::read_dir(self.layers.join("layers"))?.flatten().map(|entry| entry.path()).collect())
    }

    /// What was begun and not finished.
    pub fn half_made(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.layers)?.flatten().map(|entry| entry.path());
        Ok(entries.filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".tmp"))).collect())
    }

    /// Refused as input with all of `words`; nothing of it is left and nothing else has changed.
    pub fn refused(&self, name: &str, bytes: &[u8], words: &[&str]) -> Result<()> {
        let before = self.outside()?;
        let answer = self.build(name, bytes)?;
        ensure!(answer.code == 2, "{name}: {answer:?}\n{}", self.host.daemon_log());
        ensure!(words.iter().all(|word| answer.err.contains(word)), "{name}: {words:?}: {}", answer.err);
        ensure!(!answer.err.trim_end().contains(|c: char| c.is_control() && c != '\n'), "{name}: {:?}", answer.err);
        let half = self.half_made()?;
        ensure!(half.is_empty(), "{name}: {half:?} is left");
        same(name, &before, &self.outside()?)
    }

    /// Taken; the one layer that came with it.
    pub fn taken(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let (outside, before) = (self.outside()?, self.layers()?);
        let answer = self.build(name, bytes)?;
        ensure!(answer.code == 0, "{name}: {answer:?}\n{}", self.host.daemon_log());
        let mut layers = self.layers()?;
        layers.retain(|layer| !before.contains(layer));
        ensure!(layers.len() == 1 && self.half_made()?.is_empty(), "{name}: {layers:?}");
        let layer = layers.remove(0);
        let image = |path: &Path| path.starts_with(self.layers.join("images"));
        let mut now = self.outside()?;
        now.retain(|path, _| !path.starts_with(&layer) && (outside.contains_key(path) || !image(path)));
        same(name, &outside, &now)?;
        Ok(layer)
    }
}

pub fn same(name: &str, before: &Seen, now: &Seen) -> Result<()> {
    let other: Vec<_> = before.iter().filter(|(path, was)| now.get(*path) != Some(was)).collect();
    let fresh: Vec<_> = now.keys().filter(|path| !before.contains_key(*path)).collect();
    ensure!(other.is_empty() && fresh.is_empty(), "{name}: {other:?} changed, {fresh:?} came");
    Ok(())
}

pub fn file(path: impl Into<Vec<u8>>) -> Member {
    Member { path: path.into(), mode: 0o644, ..Member::default() }
}

/// A program that needs no other file.
pub fn busybox() -> Result<(Member, Vec<u8>)> {
    Ok((Member { mode: 0o755, ..file("bin/busybox") }, fs::read("/bin/busybox")?))
}

pub fn directory(path: impl Into<Vec<u8>>) -> Member {
    Member { path: path.into(), kind: Kind::Directory, mode: 0o755, ..Member::default() }
}

pub fn link(path: impl Into<Vec<u8>>, kind: Kind, to: impl Into<Vec<u8>>) -> Member {
    Member { path: path.into(), kind, link: to.into(), mode: 0o777, ..Member::default() }
}

pub fn with(member: Member, attribute: &str, value: &[u8]) -> Member {
    let mut member = member;
    member.attributes.push((attribute.as_bytes().to_vec(), value.to_vec()));
    member
}

/// An archive; a file's content is its path.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let content = |member: &Member| if member.kind == Kind::File { member.path.clone() } else { Vec::new() };
    let all: Vec<_> = members.iter().map(|member| (member.clone(), content(member))).collect();
    archive_of(&all)
}

/// The same with contents.
pub fn archive_of(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, members).expect("memory takes all");
    bytes
}

fn write(output: &mut Vec<u8>, members: &[(Member, Vec<u8>)]) -> io::Result<()> {
    let mut writer = Writer::new(output);
    for (member, content) in members {
        let size = content.len() as u64;
        writer.member(&Member { size, extents: vec![(0, size)], ..member.clone() })?;
        writer.content(content)?;
    }
    writer.finish()
}

/// Compressed, as who sends much of nothing would.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = std::process::Command::new("gzip")
        .arg("-1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("its input")?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| anyhow::anyhow!("gzip's writer panicked"))??;
    Ok(output.stdout)
}
