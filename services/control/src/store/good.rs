//! A damaged file does not stop the service: it is put aside, and the copy of the last start takes its place.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use redb::Error;

use super::{Store, StoreError, Stored};

/// Opens the store at `path` and reads it. Faults for a person come with it.
pub fn open(path: &Path) -> Result<(Store, Stored), StoreError> {
    let (good, aside) = (beside(path, "good"), beside(path, "damaged"));
    let mut faults = Vec::new();
    let (store, mut stored) = match read(path) {
        Err(error) if is_damaged(&error) => {
            let what = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            tracing::error!(error = what, "the store is damaged");
            // The copy stays what it is, for another time.
            let replaced = fs::rename(path, &aside).and_then(|()| match fs::copy(&good, path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                copied => copied.map(|_| true),
            });
            let again = replaced.map_err(|source| StoreError::Backup { path: path.display().to_string(), source })?;
            let instead = if again { "what it was when control started last is used" } else { "it begins empty" };
            let file = aside.display();
            faults.push(format!(
                "control's store was damaged ({what}): {instead}, the file is kept as {file}; apply the specs again that \
                 were changed since"
            ));
            read(path)?
        }
        read => {
            let (store, stored) = read?;
            if let Err(error) = keep(path, &good) {
                tracing::warn!(%error, "no copy of the store could be kept");
            }
            (store, stored)
        }
    };
    faults.append(&mut stored.damaged);
    stored.damaged = faults;
    Ok((store, stored))
}

fn read(path: &Path) -> Result<(Store, Stored), StoreError> {
    let store = Store::open(path)?;
    let stored = store.load()?;
    Ok((store, stored))
}

fn beside(path: &Path, word: &str) -> PathBuf {
    path.with_extension(format!("redb.{word}"))
}

/// What the file itself is to blame for; a full disk or one that can't be read is not.
fn is_damaged(error: &StoreError) -> bool {
    match error {
        StoreError::Database(Error::Corrupted(_) | Error::UpgradeRequired(_) | Error::RepairAborted) => true,
        StoreError::Database(Error::Io(error)) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        StoreError::Database(error) => {
            matches!(
                error,
                Error::TableTypeMismatch { .. } | Error::TypeDefinitionChanged { .. } | Error::TableIsMultimap(_)
            )
        }
        StoreError::Entry { .. } => true,
        StoreError::Newer { .. } | StoreError::Backup { .. } => false,
    }
}

/// Nothing is written meanwhile: the copy is as good as the file that a SIGKILL leaves.
fn keep(path: &Path, good: &Path) -> io::Result<()> {
    let new = good.with_extension("new");
    fs::copy(path, &new)?;
    fs::rename(new, good)
}
