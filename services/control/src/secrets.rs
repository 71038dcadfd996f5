//! Secrets of tenants: set, listed, removed, and handed to the VPSs whose specs name them. What one says is in the store,
//! sealed; in this process only while it is being set, or packed for a start.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{SecretName, TenantName, VpsSpec};
use serde::{Deserialize, Serialize};

use crate::{
    clock::unix_ms,
    store::{Store, StoreError},
};

mod carried;
mod key;
mod seal;

pub use carried::{Carried, Passphrase, Unreadable};
pub use key::KeyFile;
pub use seal::{Sealed, Unopened, Value};

/// Whose, and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretId {
    /// Whose.
    pub tenant: TenantName,
    /// Which.
    pub name: SecretName,
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// One in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    /// When it was set, Unix milliseconds.
    pub at_ms: u64,
    /// What it says.
    pub sealed: Sealed,
}

/// Why a secret could not be set or used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Nobody set it.
    #[error("secret `{0}` is not set: bailiwick secret set {0}")]
    NotSet(SecretId),
    /// It can't be opened.
    #[error("secret `{id}`: {source}: bailiwick secret set {id}")]
    Unopened {
        /// Which.
        id: SecretId,
        /// Why.
        source: Unopened,
    },
    /// The key's file.
    #[error("the key of secrets, secret.key in the directory of service control, can't be used: {0}")]
    Key(#[source] io::Error),
    /// There is none, and there are secrets.
    #[error(
        "the key of secrets, secret.key in the directory of service control, is gone: put it back, or remove all secrets"
    )]
    NoKey,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The way to the host.
    #[error("packing secrets for the host: {0}")]
    Packing(#[source] io::Error),
}

/// The secrets there are.
#[derive(Debug)]
pub struct Secrets {
    /// When each was set.
    set: Mutex<BTreeMap<SecretId, u64>>,
    key: KeyFile,
}

impl Secrets {
    /// Those of the store; the key is in `data`.
    pub fn new(set: BTreeMap<SecretId, u64>, data: &Path) -> Self {
        Self { set: Mutex::new(set), key: KeyFile::new(data) }
    }

    fn set_at(&self) -> MutexGuard<'_, BTreeMap<SecretId, u64>> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All, with when each was set.
    pub fn all(&self) -> BTreeMap<SecretId, u64> {
        self.set_at().clone()
    }

    /// Whether it is set.
    pub fn has(&self, id: &SecretId) -> bool {
        self.set_at().contains_key(id)
    }

    /// `value` as the store has it; the key is made with the first.
    pub fn seal(&self, id: &SecretId, value: &Value) -> Result<Stored, SecretError> {
        let none = self.set_at().is_empty();
        let key = match self.key.read().map_err(SecretError::Key)? {
            Some(key) => key,
            // A new one would lock out what the old one sealed.
            None if !none => return Err(SecretError::NoKey),
            None => self.key.read_or_make().map_err(SecretError::Key)?,
        };
        Ok(Stored { at_ms: unix_ms(), sealed: key.seal(&id.to_string(), value) })
    }

    /// These are in the store since now.
    pub fn took(&self, secrets: &BTreeMap<SecretId, Stored>) {
        self.set_at().extend(secrets.iter().map(|(id, stored)| (id.clone(), stored.at_ms)));
    }

    /// Sets one; whether there was one before. For who holds `Control::changing`.
    pub async fn put(&self, store: &Store, id: SecretId, value: &Value) -> Result<bool, SecretError> {
        let stored = self.seal(&id, value)?;
        let (at_ms, kept) = (stored.at_ms, id.clone());
        store.run(move |store| store.put_secret(&kept, &stored)).await?;
        Ok(self.set_at().insert(id, at_ms).is_some())
    }

    /// Removes one; whether there was one. For who holds `Control::changing`.
    pub async fn remove(&self, store: &Store, id: SecretId) -> Result<bool, SecretError> {
        let gone = id.clone();
        store.run(move |store| store.remove_secret(&gone)).await?;
        Ok(self.set_at().remove(&id).is_some())
    }

    /// What `ids` say, in their order.
    pub async fn open(&self, store: &Store, ids: Vec<SecretId>) -> Result<Vec<Value>, SecretError> {
        let found = store.run(move |store| ids.into_iter().map(|id| Ok((store.secret(&id)?, id))).collect()).await;
        let found: Vec<(Option<Stored>, SecretId)> = found?;
        let key = self.key.read().map_err(SecretError::Key)?.ok_or(SecretError::NoKey);
        let mut values = Vec::new();
        for (stored, id) in found {
            let Some(stored) = stored else { return Err(SecretError::NotSet(id)) };
            let key = key.as_ref().map_err(|_| SecretError::NoKey)?;
            let opened = key.open(&id.to_string(), &stored.sealed);
            values.push(opened.map_err(|source| SecretError::Unopened { id, source })?);
        }
        Ok(values)
    }

    /// What the secrets of a spec say, as `Host.Start` takes it; none: it has none.
    pub async fn packed(&self, store: &Store, spec: &VpsSpec) -> Result<Option<OwnedFd>, SecretError> {
        if spec.secrets.is_empty() {
            return Ok(None);
        }
        let values = self.open(store, ids(spec).collect()).await?;
        wire::secrets::pack(values.iter().map(Value::bytes)).map(Some).map_err(SecretError::Packing)
    }
}

/// The secrets that a spec names.
pub fn ids(spec: &VpsSpec) -> impl Iterator<Item = SecretId> + '_ {
    spec.secrets.keys().map(|name| SecretId { tenant: spec.tenant.clone(), name: name.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SecretId {
        SecretId { tenant: "acme".parse().unwrap(), name: name.parse().unwrap() }
    }

    fn value(text: &str) -> Value {
        Value::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_secret_is_there_after_a_restart_and_nowhere_to_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let store = Store::open(&path).unwrap();
        let secrets = Secrets::new(BTreeMap::new(), directory.path());
        assert!(!secrets.put(&store, id("db"), &value("hunter2-hunter2")).await.unwrap());
        assert!(secrets.put(&store, id("db"), &value("correct-horse")).await.unwrap());
        drop((store, secrets));
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for text in ["hunter2-hunter2", "correct-horse"] {
                assert!(!bytes.windows(text.len()).any(|part| part == text.as_bytes()), "{text}");
            }
        }
        let store = Store::open(&path).unwrap();
        let secrets = Secrets::new(store.load().unwrap().secrets, directory.path());
        let opened = secrets.open(&store, vec![id("db")]).await.unwrap();
        assert_eq!(opened[0].bytes(), b"correct-horse");
        assert!(matches!(secrets.open(&store, vec![id("other")]).await, Err(SecretError::NotSet(_))));
        assert!(secrets.remove(&store, id("db")).await.unwrap());
        assert!(!secrets.has(&id("db")) && store.load().unwrap().secrets.is_empty());
    }

    #[tokio::test]
    async fn without_its_key_nothing_is_set_or_opened() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.redb")).unwrap();
        let secrets = Secrets::new(BTreeMap::new(), directory.path());
        secrets.put(&store, id("db"), &value("hunter2")).await.unwrap();
        std::fs::remove_file(directory.path().join("secret.key")).unwrap();
        let secrets = Secrets::new(store.load().unwrap().secrets, directory.path());
        assert!(matches!(secrets.put(&store, id("other"), &value("x")).await, Err(SecretError::NoKey)));
        assert!(matches!(secrets.open(&store, vec![id("db")]).await, Err(SecretError::NoKey)));
        // Once nothing is locked in, a new key may be made.
        secrets.remove(&store, id("db")).await.unwrap();
        secrets.put(&store, id("other"), &value("x")).await.unwrap();
    }
}
