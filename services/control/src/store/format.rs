//! The format of the store: the steps from one to the next. Fields that are new in what is stored need none, where
//! `#[serde(default)]` fits; a step is for what moves or means something else.

use std::{fs, path::Path};

use redb::{Database, ReadableDatabase, TableDefinition, TableError, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{CACHE, StoreError, decode, encode};

/// About the store itself.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const KEY: &str = "format";

type Step = fn(&WriteTransaction) -> Result<(), StoreError>;

/// What leads from each format to the next.
const STEPS: [Step; 1] = [
    // The first versions did not say which format they write.
    |_| Ok(()),
];
/// What this version writes.
pub const FORMAT: usize = STEPS.len();

/// What the store says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    format: usize,
    /// The version that wrote this format first.
    by: String,
}

fn stamp(database: &Database) -> Result<Option<Stamp>, StoreError> {
    match database.begin_read()?.open_table(META) {
        Ok(table) => table.get(KEY)?.map(|value| decode(KEY, value.value())).transpose(),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Brings the store to this version's format. It is copied first, so that there is a way back; the steps are one transaction.
pub fn bring(database: Database, path: &Path) -> Result<Database, StoreError> {
    bring_by(database, path, &STEPS)
}

fn bring_by(database: Database, path: &Path, steps: &[Step]) -> Result<Database, StoreError> {
    let backup = |format: usize| path.with_extension(format!("format-{format}"));
    let found = stamp(&database)?;
    let format = found.as_ref().map_or(0, |stamp| stamp.format);
    if let Some(Stamp { by, .. }) = found.filter(|_| format > steps.len()) {
        let backup = Some(backup(steps.len())).filter(|path| path.exists());
        return Err(StoreError::Newer { format, by, backup: backup.map(|path| path.display().to_string()) });
    }
    if format == steps.len() {
        return Ok(database);
    }
    let used = database.begin_read()?.list_tables()?.next().is_some();
    let database = if used { copied(database, path, &backup(format))? } else { database };
    let write = database.begin_write()?;
    for step in &steps[format..] {
        step(&write)?;
    }
    let stamp = Stamp { format: steps.len(), by: model::version().to_owned() };
    write.open_table(META)?.insert(KEY, encode(&stamp)?.as_slice())?;
    write.commit()?;
    Ok(database)
}

/// Copies the store, closed, so that the copy is whole; it appears by rename.
fn copied(database: Database, path: &Path, backup: &Path) -> Result<Database, StoreError> {
    drop(database);
    let new = backup.with_extension("new");
    let made =
        fs::copy(path, &new).and_then(|_| fs::File::open(&new)?.sync_all()).and_then(|()| fs::rename(&new, backup));
    made.map_err(|source| StoreError::Backup { path: backup.display().to_string(), source })?;
    Ok(Database::builder().set_cache_size(CACHE).open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{FACTS, Store, VPS, WAKES};

    /// As the first version wrote it: what it had in its three tables, and no word on the format.
    fn first(path: &Path) {
        let write = Database::create(path).unwrap();
        let write_one = |table, key: &str, value: &str| {
            let transaction = write.begin_write().unwrap();
            transaction.open_table::<&str, &[u8]>(table).unwrap().insert(key, value.as_bytes()).unwrap();
            transaction.commit().unwrap();
        };
        write_one(VPS, "blog", include_str!("format/0.json").trim());
        write_one(FACTS, "created/blog", "null");
        write_one(FACTS, "link/blog", include_str!("format/0-link.json").trim());
        write_one(WAKES, "blog", r#"{"last":null,"starts":3,"up":true}"#);
    }

    #[test]
    fn a_store_of_the_first_version_is_brought_to_this_one_s_and_kept_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        first(&path);
        let store = Store::open(&path).unwrap();
        let stored = store.load().unwrap();
        let blog = "blog".parse().unwrap();
        assert_eq!(stored.specs[&blog].tenant.as_str(), "acme");
        assert_eq!((stored.wakes[&blog].starts, stored.wakes[&blog].up), (3, true));
        assert_eq!((stored.created, stored.links.len()), (vec![blog], 1));
        drop(store);
        let stamped = stamp(&Database::open(&path).unwrap()).unwrap();
        assert_eq!(stamped, Some(Stamp { format: FORMAT, by: model::version().to_owned() }));
        let before = Database::open(directory.path().join("state.format-0")).unwrap();
        assert_eq!(stamp(&before).unwrap(), None);
        assert!(before.begin_read().unwrap().open_table(VPS).unwrap().get("blog").unwrap().is_some());
    }

    #[test]
    fn a_newer_store_is_refused_with_the_ways_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        drop(Store::open(&path).unwrap());
        // What a later version will do.
        let more: Vec<Step> = STEPS.into_iter().chain([(|_| Ok(())) as Step]).collect();
        drop(bring_by(Database::open(&path).unwrap(), &path, &more).unwrap());
        let error = Store::open(&path).unwrap_err().to_string();
        let by = model::version();
        let backup = directory.path().join(format!("state.format-{FORMAT}"));
        assert!(error.contains(&format!("was written by {by} (format {})", FORMAT + 1)), "{error}");
        assert!(error.contains(&format!("put {} in its place", backup.display())), "{error}");
        std::fs::rename(backup, &path).unwrap();
        Store::open(&path).unwrap();
    }

    #[test]
    fn a_step_that_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        first(&path);
        let half: Step = |write| {
            write.open_table(VPS)?.remove("blog")?;
            Err(StoreError::Newer { format: 0, by: String::new(), backup: None })
        };
        assert!(bring_by(Database::open(&path).unwrap(), &path, &[half]).is_err());
        assert_eq!(Store::open(&path).unwrap().load().unwrap().specs.len(), 1);
    }
}
