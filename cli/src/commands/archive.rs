//! `export` and `import` of a whole VPS.

use std::path::{Path, PathBuf};

use model::{
    VpsName,
    api::{ErrorKind, Imported},
};

use super::content::{save, send};
use crate::{
    arguments::Import,
    client::Host,
    failure::{Failure, Result},
    output,
};

/// Writes a VPS to a file.
pub async fn export(host: &Host, name: &VpsName, file: Option<PathBuf>, force: bool) -> Result<()> {
    let to = match file {
        Some(file) if file == Path::new("-") => None,
        file => Some(file.unwrap_or_else(|| format!("{name}.bailiwick.tar").into())),
    };
    if let Some(file) = to.as_ref().filter(|file| file.exists() && !force) {
        let message = format!("{} is there already; nothing was written", file.display());
        return Err(Failure::new(ErrorKind::Conflict, message).next("name another file, or add --force"));
    }
    let what = format!("vps {name}");
    save(host, &what, &format!("/v1/vps/{name}/archive"), to, &format!("bailiwick export {name} FILE")).await
}

/// Makes a VPS of a file.
pub async fn import(host: &Host, import: Import) -> Result<()> {
    let mut path = format!("/v1/archive?routes={}", !import.no_routes);
    path.extend(import.name.iter().map(|name| format!("&name={name}")));
    path.extend(import.tenant.iter().map(|tenant| format!("&tenant={tenant}")));
    let what = import.file.display().to_string();
    let (imported, _) = send::<Imported>(host, &what, &path, &import.file).await?;
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
    if imported.other_image {
        output::line("its image here is another build than the one it was exported with")?;
    }
    Ok(())
}
