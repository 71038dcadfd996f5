//! `export` and `import` of a whole VPS.

use std::path::{Path, PathBuf};

use model::{
    VpsName,
    api::{ErrorKind, Imported},
};

use super::{
    content::{Saving, save, send},
    passphrase,
};
use crate::{
    arguments::{Import, PassphraseFrom},
    client::Host,
    failure::{Failure, Result},
    output,
};

/// Where to.
pub struct To {
    /// None: a file of the VPS's name; `-`: standard output.
    pub file: Option<PathBuf>,
    /// In place of what is there.
    pub force: bool,
}

/// Writes a VPS to a file.
pub async fn export(
    host: &Host,
    name: &VpsName,
    To { file, force }: To,
    image: bool,
    secrets: Option<PassphraseFrom>,
) -> Result<()> {
    let to = match file {
        Some(file) if file == Path::new("-") => None,
        file => Some(file.unwrap_or_else(|| format!("{name}.bailiwick.tar").into())),
    };
    free(to.as_deref(), force)?;
    let (what, request) = (format!("vps {name}"), format!("/v1/vps/{name}/archive?image={image}"));
    let passphrase = secrets.as_ref().map(passphrase::new).transpose()?;
    let saving = Saving { what: &what, request: &request, passphrase, why: Some(name) };
    save(host, saving, to, &format!("bailiwick export {name} FILE")).await
}

/// A file that is there is not written over unless that was asked for.
pub(super) fn free(to: Option<&Path>, force: bool) -> Result<()> {
    match to.filter(|file| file.exists() && !force) {
        Some(file) => {
            let message = format!("{} is there already; nothing was written", file.display());
            Err(Failure::new(ErrorKind::Conflict, message).next("name another file, or add --force"))
        }
        None => Ok(()),
    }
}

/// Makes a VPS of a file.
pub async fn import(host: &Host, import: Import) -> Result<()> {
    let mut path = format!("/v1/archive?routes={}", !import.no_routes);
    path.extend(import.name.iter().map(|name| format!("&name={name}")));
    path.extend(import.tenant.iter().map(|tenant| format!("&tenant={tenant}")));
    let what = import.file.display().to_string();
    let from = &import.passphrase;
    if import.file == Path::new("-") && from.passphrase_file.as_deref() == Some(Path::new("-")) {
        return Err(Failure::new(ErrorKind::Invalid, "standard input can't be both the archive and the passphrase"));
    }
    let passphrase = (import.with_secrets || from.is_said()).then(|| passphrase::known(from)).transpose()?;
    let (imported, _) = send::<Imported>(host, &what, &path, &import.file, passphrase.as_ref()).await?;
    if import.form.json {
        return output::json(&imported);
    }
    output::line(&format!("vps {} of tenant {}: imported", imported.vps, imported.tenant))?;
    for (was, here) in imported.volumes.iter().filter(|(was, here)| was != here) {
        output::line(&format!("volume {was} is {}/{here} here", imported.tenant))?;
    }
    for rule in &imported.left_out {
        output::line(&format!("allow {rule:?} was left out: there is no such vps here"))?;
    }
    if imported.image.starts_with("tar:") {
        output::line(&format!("its image is {} here", imported.image))?;
    }
    if imported.other_image {
        output::line("its image here is another build than the one it was exported with")?;
    }
    Ok(())
}
