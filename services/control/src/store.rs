//! Desired state on disk: one redb file, one transaction per change.

use std::{borrow::Borrow, collections::BTreeMap, path::Path, sync::Arc};

use model::{ImageRef, JobName, TenantName, VolumeName, VpsName, VpsSpec, api::LastWake, image::ImageInfo, run::Link};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    jobs::Kept,
    secrets::{self, SecretId},
};

const VPS: TableDefinition<&str, &[u8]> = TableDefinition::new("vps");
const FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts");
const SECRETS: TableDefinition<&str, &[u8]> = TableDefinition::new("secrets");
const WAKES: TableDefinition<&str, &[u8]> = TableDefinition::new("wakes");
const JOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("jobs");

/// The file holds a few kilobytes per VPS; redb's own default would let it take a gigabyte.
const CACHE: usize = 4 << 20;

/// Why the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file, or a transaction on it.
    #[error("the store of desired state failed")]
    Database(#[from] redb::Error),
    /// A newer version wrote it.
    #[error(
        "the store was written by {by} (format {format}); this is {}, which knows formats up to {}; next: install {by} or \
         later{}", model::version(), format::FORMAT, backup.as_ref().map(|path| format!(", or lose what was changed since: put {path} in its place")).unwrap_or_default()
    )]
    Newer {
        /// Its format.
        format: usize,
        /// The version.
        by: String,
        /// What it was before, if that is there.
        backup: Option<String>,
    },
    /// The copy that is kept when it goes to a newer format.
    #[error("the store can't be copied to {path} before it goes to a newer format")]
    Backup {
        /// Where to.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in it is not what this version writes.
    #[error("the store holds an entry `{key}` that can't be read")]
    Entry {
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        }
    )*};
}
from_redb!(redb::DatabaseError, redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// A job: its VPS and its name.
pub type JobKey = (VpsName, JobName);

/// What is remembered of a VPS's wakes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wakes {
    /// The last one.
    pub last: Option<LastWake>,
    /// How many starts came to be ready.
    pub starts: u64,
    /// Whether it was up, and neither a person stopped it nor its program had ended: a host that was restarted starts
    /// it again if it never sleeps.
    #[serde(default)]
    pub up: bool,
}

/// An import that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// What the host marks its volumes with; none: it is of a version that marked none.
    pub mark: Option<u64>,
    /// Whose they are.
    pub tenant: TenantName,
    /// The volumes that it makes.
    pub volumes: Vec<VolumeName>,
}

/// Everything that is stored.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The specs.
    pub specs: BTreeMap<VpsName, VpsSpec>,
    /// VPSs that are to be deleted: the host's and the network's part may not be done yet.
    pub deleting: Vec<VpsName>,
    /// VPSs that have their place on the host.
    pub created: Vec<VpsName>,
    /// Addresses that were given out.
    pub links: BTreeMap<VpsName, Link>,
    /// Images that were there when last asked.
    pub images: BTreeMap<ImageRef, ImageInfo>,
    /// Wakes.
    pub wakes: BTreeMap<VpsName, Wakes>,
    /// VPSs that are held while they are exported.
    pub exporting: Vec<VpsName>,
    /// Imports that are not done.
    pub imports: Vec<Import>,
    /// When each secret was set, Unix milliseconds.
    pub secrets: BTreeMap<SecretId, u64>,
    /// Jobs.
    pub jobs: BTreeMap<JobKey, Kept>,
    /// What could not be read, each with why. It stays in the store.
    pub damaged: Vec<String>,
}

impl Stored {
    /// An entry; one that can't be read is noted, and no reason to do without all others.
    fn take<T>(&mut self, table: &str, key: &str, read: impl FnOnce() -> Result<T, StoreError>) -> Option<T> {
        let wrong = |error: &StoreError| {
            let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
            format!("`{}` of control's {table} is damaged{source}", key.escape_debug())
        };
        read().inspect_err(|error| self.damaged.push(wrong(error))).ok()
    }
}

/// Something that is true of a VPS or an image, beside the desired state.
#[derive(Debug, Clone, Copy)]
enum Fact<'a> {
    Deleting(&'a VpsName),
    Created(&'a VpsName),
    Link(&'a VpsName),
    Image(&'a ImageRef),
    Exporting(&'a VpsName),
    Import(u64),
    Importing(&'a TenantName, &'a VolumeName),
}

impl Fact<'_> {
    fn key(self) -> String {
        match self {
            Self::Deleting(name) => format!("deleting/{name}"),
            Self::Created(name) => format!("created/{name}"),
            Self::Link(name) => format!("link/{name}"),
            Self::Image(image) => format!("image/{image}"),
            Self::Exporting(name) => format!("exporting/{name}"),
            Self::Import(mark) => format!("import/{mark}"),
            Self::Importing(tenant, volume) => format!("importing/{tenant}/{volume}"),
        }
    }
}

/// A fact as it was read.
enum Known {
    Deleting(VpsName),
    Created(VpsName),
    Link(VpsName, Link),
    Image(ImageInfo),
    Exporting(VpsName),
    Import(Import),
    Unknown,
}

impl Known {
    fn read(key: &str, value: &[u8]) -> Result<Self, StoreError> {
        Ok(match key.split_once('/') {
            Some(("deleting", name)) => Self::Deleting(name_of(name)?),
            Some(("exporting", name)) => Self::Exporting(name_of(name)?),
            Some(("importing", volume)) => {
                let (tenant, name) = volume.split_once('/').unwrap_or((volume, ""));
                let (tenant, name) = (decode(key, &encode(&tenant)?)?, decode(key, &encode(&name)?)?);
                Self::Import(Import { mark: None, tenant, volumes: vec![name] })
            }
            Some(("import", _)) => Self::Import(decode(key, value)?),
            Some(("created", name)) => Self::Created(name_of(name)?),
            Some(("link", name)) => Self::Link(name_of(name)?, decode(key, value)?),
            Some(("image", _)) => Self::Image(decode(key, value)?),
            _ => {
                tracing::warn!(key, "the store holds a fact this version does not know");
                Self::Unknown
            }
        })
    }
}

impl Stored {
    fn know(&mut self, fact: Known) {
        match fact {
            Known::Deleting(name) => self.deleting.push(name),
            Known::Exporting(name) => self.exporting.push(name),
            Known::Import(import) => self.imports.push(import),
            Known::Created(name) => self.created.push(name),
            Known::Link(name, link) => drop(self.links.insert(name, link)),
            Known::Image(info) => drop(self.images.insert(info.reference.clone(), info)),
            Known::Unknown => {}
        }
    }
}

/// The store. Calls block for as long as the disk takes: `Store::run` keeps them off the event loop.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Entry { key: "(new)".to_owned(), source })
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Entry { key: key.to_owned(), source })
}

fn name_of(key: &str) -> Result<VpsName, StoreError> {
    decode(key, &encode(&key)?)
}

fn secret_of(key: &str) -> Result<SecretId, StoreError> {
    let (tenant, name) = key.split_once('/').unwrap_or((key, ""));
    Ok(SecretId { tenant: decode(key, &encode(&tenant)?)?, name: decode(key, &encode(&name)?)? })
}

impl Store {
    /// Opens the file, or makes it. Only one process can have it open. All of it is looked at: who reads a damaged page later
    /// would end.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE).set_check_integrity_on_open(true).create(path)?;
        let database = format::bring(database, path)?;
        let write = database.begin_write()?;
        write.open_table(VPS)?;
        write.open_table(FACTS)?;
        write.open_table(WAKES)?;
        write.open_table(SECRETS)?;
        write.open_table(JOBS)?;
        write.commit()?;
        Ok(Self { database: Arc::new(database) })
    }

    /// Runs `change` on a thread that may wait for the disk.
    pub async fn run<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || change(&store)).await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Reads everything.
    pub fn load(&self) -> Result<Stored, StoreError> {
        let read = self.database.begin_read()?;
        let mut stored = Stored::default();
        for entry in read.open_table(VPS)?.iter()? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), value.value());
            let read = || Ok((name_of(key)?, decode(key, value)?));
            let found = stored.take("VPSs", key, read);
            stored.specs.extend(found);
        }
        for entry in read.open_table(WAKES)?.iter()? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), value.value());
            let read = || Ok((name_of(key)?, decode(key, value)?));
            let found = stored.take("wakes", key, read);
            stored.wakes.extend(found);
        }
        for entry in read.open_table(SECRETS)?.iter()? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), value.value());
            let read = || Ok((secret_of(key)?, decode::<secrets::Stored>(key, value)?.at_ms));
            let found = stored.take("secrets", key, read);
            stored.secrets.extend(found);
        }
        for entry in read.open_table(JOBS)?.iter()? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), value.value());
            let read = || {
                let (vps, job) = key.split_once('/').unwrap_or((key, ""));
                let id: JobKey = (name_of(vps)?, decode(key, &encode(&job)?)?);
                Ok((id, decode(key, value)?))
            };
            if let Some((job, kept)) = stored.take("jobs", key, read) {
                // What a spec does not hold any more is forgotten with the next start of this service.
                let spec = stored.specs.get(&job.0);
                if spec.is_some_and(|spec| spec.jobs.contains_key(&job.1)) {
                    stored.jobs.insert(job, kept);
                }
            }
        }
        for entry in read.open_table(FACTS)?.iter()? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), value.value());
            let known = stored.take("facts", key, || Known::read(key, value));
            known.into_iter().for_each(|known| stored.know(known));
        }
        Ok(stored)
    }

    fn write(&self, change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let write = self.database.begin_write()?;
        change(&write)?;
        Ok(write.commit()?)
    }

    fn put_fact<T: Serialize>(&self, fact: Fact<'_>, value: &T) -> Result<(), StoreError> {
        let bytes = encode(value)?;
        self.write(|write| {
            write.open_table(FACTS)?.insert(fact.key().as_str(), bytes.as_slice())?;
            Ok(())
        })
    }

    /// Puts all `specs`, and the secrets that came with them, or nothing.
    pub fn put_specs<S: Borrow<VpsSpec>>(
        &self,
        specs: &BTreeMap<VpsName, S>,
        secrets: &BTreeMap<SecretId, secrets::Stored>,
    ) -> Result<(), StoreError> {
        self.write(|write| {
            let mut sealed = write.open_table(SECRETS)?;
            for (id, secret) in secrets {
                sealed.insert(id.to_string().as_str(), encode(secret)?.as_slice())?;
            }
            let mut table = write.open_table(VPS)?;
            for (name, spec) in specs {
                table.insert(name.as_str(), encode(spec.borrow())?.as_slice())?;
            }
            Ok(())
        })
    }

    /// Notes VPSs that are held for an export, or that they are no more.
    pub fn note_exporting(&self, names: &[VpsName], now: bool) -> Result<(), StoreError> {
        self.note(names.iter().map(Fact::Exporting), now)
    }

    /// Notes an import that begins.
    pub fn note_import(&self, mark: u64, import: &Import) -> Result<(), StoreError> {
        self.put_fact(Fact::Import(mark), import)
    }

    /// Notes that it is done, or undone.
    pub fn forget_import(&self, import: &Import) -> Result<(), StoreError> {
        match import.mark {
            Some(mark) => self.note([Fact::Import(mark)].into_iter(), false),
            None => self.note(import.volumes.iter().map(|volume| Fact::Importing(&import.tenant, volume)), false),
        }
    }

    fn note<'a>(&self, facts: impl Iterator<Item = Fact<'a>>, now: bool) -> Result<(), StoreError> {
        self.write(|write| {
            let mut table = write.open_table(FACTS)?;
            for fact in facts {
                match now {
                    true => table.insert(fact.key().as_str(), &b"null"[..])?,
                    false => table.remove(fact.key().as_str())?,
                };
            }
            Ok(())
        })
    }

    /// Says that a VPS is to be deleted. From here on it is not there for anybody; what follows is tidying up.
    pub fn begin_delete(&self, name: &VpsName) -> Result<(), StoreError> {
        self.put_fact(Fact::Deleting(name), &())
    }

    /// Forgets a VPS.
    pub fn end_delete(&self, name: &VpsName) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(VPS)?.remove(name.as_str())?;
            write.open_table(WAKES)?.remove(name.as_str())?;
            let of_it = format!("{name}/");
            write.open_table(JOBS)?.retain(|key, _| !key.starts_with(&of_it))?;
            let mut facts = write.open_table(FACTS)?;
            for fact in [Fact::Deleting(name), Fact::Created(name), Fact::Link(name)] {
                facts.remove(fact.key().as_str())?;
            }
            Ok(())
        })
    }

    /// Remembers what starts need not ask for again; nothing of VPSs that were deleted meanwhile.
    pub fn put_places(&self, places: &BTreeMap<VpsName, Link>) -> Result<(), StoreError> {
        self.write(|write| {
            let (mut facts, specs) = (write.open_table(FACTS)?, write.open_table(VPS)?);
            for (name, link) in places {
                let deleting = facts.get(Fact::Deleting(name).key().as_str())?.is_some();
                if !deleting && specs.get(name.as_str())?.is_some() {
                    facts.insert(Fact::Link(name).key().as_str(), encode(link)?.as_slice())?;
                    facts.insert(Fact::Created(name).key().as_str(), encode(&())?.as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// Remembers jobs; those of VPSs that were deleted meanwhile are dropped.
    pub fn put_jobs(&self, jobs: &BTreeMap<JobKey, Kept>) -> Result<(), StoreError> {
        self.write(|write| {
            let specs = write.open_table(VPS)?;
            let mut table = write.open_table(JOBS)?;
            for ((vps, job), kept) in jobs {
                if specs.get(vps.as_str())?.is_some() {
                    table.insert(format!("{vps}/{job}").as_str(), encode(kept)?.as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// Makes the remembered images those of `images`.
    pub fn put_images(&self, images: &BTreeMap<ImageRef, ImageInfo>) -> Result<(), StoreError> {
        self.write(|write| {
            let mut facts = write.open_table(FACTS)?;
            facts.retain(|key, _| !key.starts_with("image/"))?;
            for (reference, info) in images {
                facts.insert(Fact::Image(reference).key().as_str(), encode(info)?.as_slice())?;
            }
            Ok(())
        })
    }

    /// Sets a secret.
    pub fn put_secret(&self, id: &SecretId, secret: &secrets::Stored) -> Result<(), StoreError> {
        let bytes = encode(secret)?;
        self.write(|write| {
            write.open_table(SECRETS)?.insert(id.to_string().as_str(), bytes.as_slice())?;
            Ok(())
        })
    }

    /// A secret, if it is set.
    pub fn secret(&self, id: &SecretId) -> Result<Option<secrets::Stored>, StoreError> {
        let key = id.to_string();
        let read = self.database.begin_read()?.open_table(SECRETS)?.get(key.as_str())?;
        read.map(|value| decode(&key, value.value())).transpose()
    }

    /// Forgets a secret.
    pub fn remove_secret(&self, id: &SecretId) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(SECRETS)?.remove(id.to_string().as_str())?;
            Ok(())
        })
    }

    /// Remembers wakes; those of VPSs that were deleted meanwhile are dropped.
    pub fn put_wakes(&self, wakes: &BTreeMap<VpsName, Wakes>) -> Result<(), StoreError> {
        self.write(|write| {
            let specs = write.open_table(VPS)?;
            let mut table = write.open_table(WAKES)?;
            for (name, wakes) in wakes {
                if specs.get(name.as_str())?.is_some() {
                    table.insert(name.as_str(), encode(wakes)?.as_slice())?;
                }
            }
            Ok(())
        })
    }
}

mod format;
pub mod good;
mod later;
#[cfg(test)]
mod tests;

pub use later::Later;
