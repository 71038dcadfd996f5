//! `delete`: VPSs, and their volumes where that is asked for.

use hyper::Method;
use model::{
    VpsName,
    api::{ErrorKind, VolumeRow},
};

use super::{confirmed, keep_first};
use crate::{
    client::Host,
    failure::{Failure, Result},
    output,
};

/// Deletes each, and goes on when one fails; the first failure is the command's.
pub async fn run(host: &Host, names: &[VpsName], volumes: bool, yes: bool) -> Result<()> {
    let volumes = if volumes { only_used_by(host, names).await? } else { Vec::new() };
    if !yes {
        // Nobody is asked about what is not there.
        for name in names {
            host.get_text(&format!("/v1/vps/{name}/spec")).await?;
        }
        let all = names.iter().map(VpsName::as_str).collect::<Vec<_>>().join(", ");
        let mut what = format!("{all}, with all that is in there");
        if !volumes.is_empty() {
            let list = volumes.iter().map(|row| format!("{}/{}", row.tenant, row.name)).collect::<Vec<_>>().join(", ");
            what += &format!(", and the volumes {list}");
        }
        if !confirmed(&what)? {
            return Err(Failure::new(ErrorKind::Failed, "nothing was deleted"));
        }
    }
    let mut failed: Option<Failure> = None;
    for name in names {
        match host.act(Method::DELETE, &format!("/v1/vps/{name}")).await {
            Ok(()) => output::line(&format!("{name}: deleted"))?,
            Err(failure) => keep_first(&mut failed, failure),
        }
    }
    if let Some(failure) = failed {
        return Err(failure);
    }
    for VolumeRow { tenant, name, .. } in volumes {
        host.act(Method::DELETE, &format!("/v1/volumes/{tenant}/{name}")).await?;
        output::line(&format!("volume {tenant}/{name}: deleted"))?;
    }
    Ok(())
}

/// Volumes that these VPSs use, and no other.
async fn only_used_by(host: &Host, names: &[VpsName]) -> Result<Vec<VolumeRow>> {
    let mut rows: Vec<VolumeRow> = host.get("/v1/volumes").await?;
    rows.retain(|row| !row.used_by.is_empty() && row.used_by.keys().all(|vps| names.contains(vps)));
    Ok(rows)
}
