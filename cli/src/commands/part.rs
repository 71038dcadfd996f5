//! A file that appears under its name when it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

/// One that is being written. Without `finish` nothing is left of it.
#[derive(Debug)]
pub struct Part {
    /// Where to write.
    pub file: File,
    path: PathBuf,
    /// A name that it has meanwhile.
    named: Option<PathBuf>,
}

impl Part {
    /// Begins one. What an archive holds is its tenant's alone.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Without a name, so that nothing stays where this is killed; not every file system can.
        let unnamed = open(directory, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        if let Ok(file) = unnamed {
            return Ok(Self { file: file.into(), path: path.to_owned(), named: None });
        }
        let named = beside(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&named)?;
        Ok(Self { file, path: path.to_owned(), named: Some(named) })
    }

    /// Takes the place of what has the name.
    pub fn finish(mut self) -> io::Result<()> {
        // Whatever the caller's umask.
        self.file.set_permissions(fs::Permissions::from_mode(0o600))?;
        self.file.sync_all()?;
        if self.named.is_none() {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let named = beside(&self.path);
            linkat(CWD, own, CWD, &named, AtFlags::SYMLINK_FOLLOW)?;
            self.named = Some(named);
        }
        if let Some(named) = &self.named {
            fs::rename(named, &self.path)?;
        }
        self.named = None;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(named) = &self.named {
            let _ = fs::remove_file(named);
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.part", std::process::id()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_written_has_no_name_before_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive.tar");
        let names = || fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        fs::write(&path, "old").unwrap();
        let mut part = Part::begin(&path).unwrap();
        part.file.write_all(b"half").unwrap();
        assert_eq!(names(), ["archive.tar"], "a SIGKILL would leave it");
        drop(part);
        assert_eq!((names(), fs::read(&path).unwrap()), (vec!["archive.tar".into()], b"old".to_vec()));
        let mut part = Part::begin(&path).unwrap();
        part.file.write_all(b"new").unwrap();
        part.finish().unwrap();
        assert_eq!((names(), fs::read(&path).unwrap()), (vec!["archive.tar".into()], b"new".to_vec()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
