//! The key of this host's secrets: a file that nobody but `control` and the host's root can read, made once.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use zeroize::Zeroizing;

use super::seal::Key;

/// The file, and the key once it was read.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    key: Mutex<Option<Key>>,
}

impl KeyFile {
    /// The one in `data`.
    pub fn new(data: &Path) -> Self {
        Self { path: data.join("secret.key"), key: Mutex::default() }
    }

    /// The key; none: there is none yet.
    pub fn read(&self) -> io::Result<Option<Key>> {
        let mut known = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = load(&self.path)?;
        }
        Ok(known.clone())
    }

    /// The key, made where there is none.
    pub fn read_or_make(&self) -> io::Result<Key> {
        if let Some(key) = self.read()? {
            return Ok(key);
        }
        let key = Key::generate();
        // Whole or not at all: half a key would lose what is sealed with it.
        let new = self.path.with_extension("new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(Zeroizing::new(hex::encode(key.bytes()) + "\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        Ok(key)
    }
}

fn load(path: &Path) -> io::Result<Option<Key>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => Zeroizing::new(read?),
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "not a key: 64 hexadecimal digits");
    let mut key = Zeroizing::new([0; Key::SIZE]);
    hex::decode_to_slice(text.trim_end(), &mut key[..]).map_err(|_| damaged())?;
    Ok(Some(Key::new(*key)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        assert!(KeyFile::new(directory.path()).read().unwrap().is_none());
        let made = KeyFile::new(directory.path()).read_or_make().unwrap();
        assert_eq!(KeyFile::new(directory.path()).read_or_make().unwrap().id(), made.id());
        let path = directory.path().join("secret.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "half").unwrap();
        assert!(KeyFile::new(directory.path()).read_or_make().is_err(), "a damaged key was replaced");
    }
}
