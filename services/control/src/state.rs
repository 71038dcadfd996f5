//! All that this service knows, as one file: what it was told, the specs of all VPSs and the secrets of all tenants; and what
//! came about since. What volumes hold is not in it, nor logs and stories, nor images, nor host.toml.

mod past;

use std::{collections::BTreeMap, sync::Arc};

use model::{
    VpsName,
    api::{ApplyRequest, ChangeKind, ErrorKind, SpecFile, StateImported},
    spec::render,
};
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        apply::{Secrets, carry_out, missing_images, planned},
        error::ApiError,
    },
    clock::unix_ms,
    secrets::{Carried, Passphrase, SecretId, Unreadable, Value},
    shared::Control,
};

pub use past::sweep;
use past::{Addressed, Pasts};

/// What this version writes; it reads none that is higher.
const FORMAT: u32 = 1;

/// The file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// What tells it from other files.
    kind: String,
    format: u32,
    /// The version that wrote it.
    by: String,
    /// Unix time in milliseconds.
    at_ms: u64,
    /// As `get` prints them.
    pub specs: BTreeMap<VpsName, String>,
    /// Those of all tenants, `TENANT/NAME`, if they were asked for.
    #[serde(default)]
    pub secrets: Option<Carried>,
    /// What came about.
    #[serde(default)]
    past: Pasts,
}

const KIND: &str = "bailiwick-state";

/// All of it as it is between two changes; secrets with a passphrase only.
pub async fn export(control: &Arc<Control>, passphrase: Option<Passphrase>) -> Result<Saved, ApiError> {
    let (specs, past, values) = {
        let _one_at_a_time = control.changing.lock().await;
        let ids: Vec<_> = control.secrets.all().into_keys().collect();
        let values = match &passphrase {
            Some(_) => control.secrets.open(&control.store, ids.clone()).await?,
            None => Vec::new(),
        };
        (control.specs(), past::of(control), ids.into_iter().zip(values).collect::<Vec<_>>())
    };
    let secrets = match passphrase {
        Some(passphrase) => Some(slowly(move || Carried::seal(&passphrase, &values)).await?),
        None => None,
    };
    Ok(Saved {
        kind: KIND.to_owned(),
        format: FORMAT,
        by: model::version().to_owned(),
        at_ms: unix_ms(),
        specs: specs.iter().map(|(name, spec)| (name.clone(), render(name, spec))).collect(),
        secrets,
        past,
    })
}

/// What makes a key of a passphrase takes its time.
pub async fn slowly<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unreadable> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Invalid, format!("{}; nothing was changed", message.into()))
}

/// What is in a file.
pub fn read(bytes: &[u8]) -> Result<Saved, ApiError> {
    #[derive(Deserialize)]
    struct Header {
        kind: String,
        format: u32,
        by: String,
    }
    let header = serde_json::from_slice::<Header>(bytes).ok().filter(|header| header.kind == KIND);
    let Header { format, by, .. } = header.ok_or_else(|| invalid("this is no file of `bailiwick state export`"))?;
    if format > FORMAT {
        let message =
            format!("the file was written by version {by}, in a format that {} does not know", model::version());
        return Err(invalid(message).next(format!("use bailiwick {by} or later")));
    }
    serde_json::from_slice(bytes).map_err(|error| invalid(format!("the file: {error}")))
}

/// Makes all of it so, whole or not at all. What is here besides stays as it is.
pub async fn import(
    control: &Arc<Control>,
    saved: Saved,
    passphrase: Option<Passphrase>,
    replace: bool,
) -> Result<StateImported, ApiError> {
    let values = match (saved.secrets, passphrase) {
        (Some(carried), Some(passphrase)) => slowly(move || carried.open(&passphrase)).await?,
        (Some(carried), None) if !carried.is_empty() => {
            let message = format!("the file has {} secrets, which its passphrase opens", carried.len());
            return Err(invalid(message).next("give it: --passphrase-file FILE"));
        }
        _ => BTreeMap::new(),
    };
    let _one_at_a_time = control.changing.lock().await;
    let (vpss, secrets) = (control.all().len(), control.secrets.all().len());
    if vpss + secrets > 0 && !replace {
        let message = format!("this host has {vpss} VPSs and {secrets} secrets; nothing was changed");
        let next = "add --replace: those of the same name become what the file says, others stay as they are";
        return Err(ApiError::new(ErrorKind::Conflict, message).next(next));
    }
    let secrets = sealed(control, &values)?;
    let file = |(name, text): (VpsName, String)| SpecFile { name: format!("{name}.toml"), text, ..Default::default() };
    let files = saved.specs.into_iter().map(file).collect();
    let request = ApplyRequest { files, dry_run: false, take_routes: false };
    let plan = planned(control, &request, &secrets).await?;
    // A new machine has no images yet: they are built, or sent, afterwards.
    let missing_images = missing_images(control, &plan).await?;
    // Who is here has a past of its own.
    let mut pasts = saved.past;
    pasts.retain(|name, _| control.get(name).is_none() && plan.changes.iter().any(|change| change.vps == *name));
    let (addressed, readdressed) = Addressed::new(control, &pasts).await?;
    let imported = StateImported {
        vps: plan.changes.iter().filter(|c| c.kind != ChangeKind::None).map(|c| c.vps.clone()).collect(),
        secrets: secrets.len() as u64,
        missing_images,
        readdressed,
    };
    if let Err(error) = carry_out(control, &request, &plan, secrets).await {
        addressed.give_back(control).await;
        return Err(error);
    }
    past::remember(control, pasts).await?;
    Ok(imported)
}

/// As this host's store has them.
fn sealed(control: &Control, values: &BTreeMap<String, Value>) -> Result<Secrets, ApiError> {
    let one = |(name, value): (&String, &Value)| {
        let wrong = || invalid(format!("{name:?} in the file is no secret's name"));
        let (tenant, secret) = name.split_once('/').ok_or_else(wrong)?;
        let id = SecretId { tenant: tenant.parse().map_err(|_| wrong())?, name: secret.parse().map_err(|_| wrong())? };
        if !(1..=wire::secrets::MAX_SECRET).contains(&value.bytes().len()) {
            return Err(invalid(format!("secret `{id}` in the file is empty or too large")));
        }
        let stored = control.secrets.seal(&id, value)?;
        Ok((id, stored))
    };
    values.iter().map(one).collect()
}
