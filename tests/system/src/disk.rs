//! A small file system in a file, mounted where a host has its state.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

/// Unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    /// A host's `--root`; the file system is its `lib`.
    pub root: PathBuf,
    _directory: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Disk {
    /// Makes one of so many MiB with `mkfs` (such as `["mkfs.ext4", "-q"]`), and mounts it.
    pub fn new(mib: u64, mkfs: &[&str], options: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bailiwick-disk-").tempdir_in("/var/tmp")?;
        let image = directory.path().join("image");
        fs::File::create(&image)?.set_len(mib << 20)?;
        let image = image.to_str().unwrap_or_default();
        run(mkfs[0], &[&mkfs[1..], &[image]].concat())?;
        let root = directory.path().join("root");
        let lib = root.join("lib");
        fs::create_dir_all(&lib)?;
        run("mount", &["-o", options, image, lib.to_str().unwrap_or_default()])?;
        Ok(Self { root, _directory: directory })
    }

    /// Where the file system is.
    pub fn path(&self) -> PathBuf {
        self.root.join("lib")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.path());
    }
}

fn unmount(path: &Path) -> Result<()> {
    let path = path.to_str().unwrap_or_default();
    // A host that is still ending may hold it.
    run("umount", &[path]).or_else(|_| run("umount", &["--lazy", path]))
}
