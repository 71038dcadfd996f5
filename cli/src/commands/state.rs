//! `state export` and `state import`: all that `control` knows.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use model::api::{ErrorKind, StateImported};

use super::{
    content::{Saving, save},
    passphrase,
};
use crate::{
    arguments::{PassphraseFrom, State},
    client::Host,
    failure::{Failure, Result},
    output,
};

/// Bytes of a state at most.
const MAX: u64 = 64 << 20;

/// Saves, or makes so.
pub async fn run(host: &Host, state: State) -> Result<()> {
    match state {
        State::Export { file, force, no_secrets, passphrase } => {
            export(host, file, force, (!no_secrets).then_some(passphrase)).await
        }
        State::Import { file, replace, passphrase, form } => import(host, &file, replace, &passphrase, form.json).await,
    }
}

async fn export(host: &Host, file: PathBuf, force: bool, secrets: Option<PassphraseFrom>) -> Result<()> {
    let to = Some(file).filter(|file| file != Path::new("-"));
    super::archive::free(to.as_deref(), force)?;
    let passphrase = secrets.as_ref().map(passphrase::new).transpose()?;
    let saving = Saving { what: "state of the host", request: "/v1/state", passphrase, why: None };
    save(host, saving, to, "bailiwick state export FILE").await
}

async fn import(host: &Host, file: &Path, replace: bool, from: &PassphraseFrom, json: bool) -> Result<()> {
    if file == Path::new("-") && from.passphrase_file.as_deref() == Some(file) {
        return Err(Failure::new(ErrorKind::Invalid, "standard input can't be both the file and the passphrase"));
    }
    let mut bytes = Vec::new();
    let read = match file == Path::new("-") {
        true => io::stdin().lock().take(MAX + 1).read_to_end(&mut bytes),
        false => File::open(file).and_then(|file| file.take(MAX + 1).read_to_end(&mut bytes)),
    };
    let wrong = |what: String| Failure::new(ErrorKind::Invalid, format!("{}: {what}", file.display()));
    read.map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MAX {
        return Err(wrong("a state has at most 64 MiB".to_owned()));
    }
    // What else it is, the host says; here it is only seen whether there is something to open.
    let has_secrets =
        serde_json::from_slice::<serde_json::Value>(&bytes).is_ok_and(|value| !value["secrets"].is_null());
    let passphrase = has_secrets.then(|| passphrase::known(from)).transpose()?;
    let path = format!("/v1/state?replace={replace}");
    let imported: StateImported = host.put_with(&path, Bytes::from(bytes), passphrase.as_ref()).await?;
    if json {
        return output::json(&imported);
    }
    output::line(&format!("{} VPSs and {} secrets are as the file says", imported.vps.len(), imported.secrets))?;
    for name in &imported.readdressed {
        output::line(&format!(
            "{name} gets another address: the one it had is another's here, or not of network.subnet"
        ))?;
    }
    for image in &imported.missing_images {
        output::line(&format!("image {image} is not there yet: {}", build(image)))?;
    }
    Ok(())
}

/// What brings an image.
fn build(image: &str) -> String {
    match image.split_once(':') {
        Some((kind @ ("tar" | "dir"), _)) => format!("bailiwick image build {kind}:PATH, where it came from"),
        _ => format!("bailiwick image build {image}"),
    }
}
