//! The format of the files under `lib`: which version's they are, and the steps from one to the next.

use std::{fs, io, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::config::Refused;

/// What leads from each format to the next.
const STEPS: [fn(&Path) -> anyhow::Result<()>; 1] = [
    // The first versions did not say which format they write.
    |_| Ok(()),
];
/// What this version writes.
const FORMAT: usize = STEPS.len();

/// Stands in `lib/format`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    format: usize,
    /// The version that wrote this format first.
    by: String,
}

fn load(state: &Path) -> anyhow::Result<Stamp> {
    let path = state.join("format");
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; write {{\"format\":{FORMAT},\"by\":\"?\"}} if this version wrote it",
                path.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Stamp { format: 0, by: "0.1.0".to_owned() }),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Refuses files that a newer version wrote.
///
/// # Errors
/// They are newer, or can't be read.
pub fn check(state: &Path) -> anyhow::Result<()> {
    let Stamp { format, by } = load(state)?;
    if format <= FORMAT {
        return Ok(());
    }
    let state = state.display();
    Err(Refused::new(format!(
        "{state} was written by {by} (format {format}); this is {}, which knows formats up to {FORMAT}; \
         next: install {by} or later, or put back a backup of {state} from before",
        model::version()
    ))
    .into())
}

/// Takes the files to this version's format.
///
/// # Errors
/// They are newer, or a step failed; those before it are done and noted.
pub fn migrate(state: &Path) -> anyhow::Result<()> {
    migrate_by(state, &STEPS)
}

fn migrate_by(state: &Path, steps: &[fn(&Path) -> anyhow::Result<()>]) -> anyhow::Result<()> {
    fs::create_dir_all(state).with_context(|| format!("making {}", state.display()))?;
    check(state)?;
    for (at, step) in steps.iter().enumerate().skip(load(state)?.format) {
        step(state).with_context(|| format!("taking {} from format {at} to {}", state.display(), at + 1))?;
        let stamp = Stamp { format: at + 1, by: model::version().to_owned() };
        let (new, path) = (state.join(".format"), state.join("format"));
        fs::write(&new, serde_json::to_vec(&stamp)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_done_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        fn add(state: &Path, what: &str) -> anyhow::Result<()> {
            let path = state.join("said");
            Ok(fs::write(&path, fs::read_to_string(&path).unwrap_or_default() + what)?)
        }
        let one: fn(&Path) -> anyhow::Result<()> = |state| add(state, "a");
        let broken: fn(&Path) -> anyhow::Result<()> = |_| anyhow::bail!("no");
        // Past what this version knows `check` would refuse, so no more steps than it has.
        assert!(migrate_by(state, &[broken]).is_err());
        assert_eq!(load(state).unwrap().format, 0, "a step that failed is not noted");
        migrate_by(state, &[one]).unwrap();
        migrate_by(state, &[one]).unwrap();
        assert_eq!(fs::read_to_string(state.join("said")).unwrap(), "a");
        assert_eq!(load(state).unwrap(), Stamp { format: 1, by: model::version().to_owned() });
    }

    #[test]
    fn what_a_newer_version_wrote_is_refused_with_the_next_step() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("format"), r#"{"format":7,"by":"0.9.0"}"#).unwrap();
        let error = migrate(directory.path()).unwrap_err();
        assert!(error.is::<Refused>(), "{error}");
        let told = error.to_string();
        assert!(told.contains("was written by 0.9.0 (format 7)") && told.contains("next: install 0.9.0"), "{told}");
    }
}
