//! `volume ls`, `volume inspect`, `volume rm`; what moves content is in `content`.

use hyper::Method;
use model::{
    api::{ErrorKind, VolumeRow},
    limits::show_bytes,
};

use super::confirmed;
use crate::{
    arguments::{Volume, VolumeRef},
    client::Host,
    failure::{Failure, Result},
    output, table,
};

/// Lists, shows or removes.
pub async fn run(host: &Host, volume: Volume) -> Result<()> {
    match volume {
        Volume::Ls { tenant, form } => {
            let mut rows: Vec<VolumeRow> = host.get("/v1/volumes").await?;
            rows.retain(|row| tenant.as_ref().is_none_or(|tenant| row.tenant == *tenant));
            if form.json { output::json(&rows) } else { output::own(&show(&rows)) }
        }
        Volume::Inspect { volume, .. } => output::json(&host.get::<VolumeRow>(&path(&volume)).await?),
        Volume::Import { volume, path, owner, replace, form } => {
            super::content::import(host, volume, path, owner, replace, form.json).await
        }
        Volume::Export { volume, file } => super::content::export(host, volume, file).await,
        Volume::Rm { volumes, yes } => {
            if !yes {
                for volume in &volumes {
                    host.get::<VolumeRow>(&path(volume)).await?;
                }
                let all = volumes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                if !confirmed(&format!("{all}, with all that is in there"))? {
                    return Err(Failure::new(ErrorKind::Failed, "nothing was deleted"));
                }
            }
            for volume in volumes {
                host.act(Method::DELETE, &path(&volume)).await?;
                output::line(&format!("volume {volume}: deleted"))?;
            }
            Ok(())
        }
    }
}

fn path(VolumeRef { tenant, name }: &VolumeRef) -> String {
    format!("/v1/volumes/{tenant}/{name}")
}

fn show(rows: &[VolumeRow]) -> String {
    if rows.is_empty() {
        return "no volumes; a VPS whose spec has `volumes` makes them at its first start\n".to_owned();
    }
    table::text(
        ["VOLUME", "USED", "SIZE", "USED BY"],
        rows.iter().map(|row| {
            let used = row.used.map_or("-".to_owned(), show_bytes);
            let size = match (row.size, row.used) {
                (Some(size), Some(_)) => show_bytes(size),
                // Told by `doctor`, and by `apply`.
                (Some(size), None) => format!("{} (not enforced)", show_bytes(size)),
                (None, _) => "-".to_owned(),
            };
            let users: Vec<_> = row.used_by.iter().map(|(vps, path)| format!("{vps}:{path}")).collect();
            let users = if users.is_empty() { "nobody".to_owned() } else { users.join(", ") };
            [format!("{}/{}", row.tenant, row.name), used, size, users]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_a_volume_is_beside_it() {
        let row = |name: &str, size: Option<u64>, used: Option<u64>, used_by: &[(&str, &str)]| VolumeRow {
            tenant: "acme".parse().expect("a name"),
            name: name.parse().expect("a name"),
            size,
            used,
            used_by: used_by.iter().map(|(vps, path)| (vps.parse().expect("a name"), (*path).to_owned())).collect(),
        };
        let rows = [
            row("content", None, None, &[("blog", "/var/www")]),
            row("old", Some(10 << 30), Some(5 << 20), &[]),
            row("raw", Some(10 << 30), None, &[]),
        ];
        let expected = "\
VOLUME        USED     SIZE                   USED BY
acme/content  -        -                      blog:/var/www
acme/old      5.0 MiB  10 GiB                 nobody
acme/raw      -        10 GiB (not enforced)  nobody
";
        let shown = show(&rows);
        let squeezed = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(squeezed(&shown), squeezed(expected), "{shown}");
    }
}
