//! What an image has in the places that the host mounts on, writes to or reads when it starts a VPS.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use archive::{Kind, Member};

use crate::place::{Place, archive_of, busybox, directory, file, link, same};

/// The image with `members` in it, and a program.
fn image(members: &[Member]) -> Result<Vec<u8>> {
    let mut all = vec![busybox()?];
    all.extend(members.iter().map(|member| (member.clone(), Vec::new())));
    Ok(archive_of(&all))
}

const SPEC: &str = r#"tenant = "acme"
[vps.odd]
image    = "tar:odd.tar"
command  = ["/bin/busybox", "sleep", "1000000"]
idle     = "never"
restart  = "never"
volumes  = { data = "/srv/data" }
files    = { "/etc/app/file" = "x" }
logs     = ["/var/log/*.log"]
"#;

const PLACES: [(&str, bool); 10] = [
    ("proc", true),
    ("sys", true),
    ("dev", true),
    ("run", true),
    ("etc", false),
    ("etc/app/file", false),
    ("etc/passwd", false),
    ("etc/resolv.conf", false),
    ("srv/data", false),
    ("var/log", false),
];

#[test]
fn places_of_the_hosts_mounts_and_files_lead_nowhere_else() -> Result<()> {
    let mut place = Place::new("")?;
    let hosts = fs::read("/etc/hosts").ok();
    for (at, mounted) in PLACES {
        let links =
            ["/", "/bin", "../../../../../../../../etc", "/proc/self/root", "/proc/1/cwd", at, "/nowhere/at/all"];
        let mut all: Vec<_> = links.map(|to| link(at, Kind::Symlink, to)).into();
        all.extend([link(at, Kind::Fifo, ""), file(at), Member { mode: 0, owner: (65_535, 65_535), ..directory(at) }]);
        for member in all {
            let what = format!("{at}: {:?} {}", member.kind, String::from_utf8_lossy(&member.link));
            let is_directory = member.kind == Kind::Directory;
            fs::write(place.host.root.join("odd.tar"), image(&[member])?)?;
            place.host.apply("odd.toml", SPEC)?;
            let before = place.outside()?;
            let begun = Instant::now();
            let started = place.host.cli(&["start", "odd"])?;
            ensure!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", begun.elapsed());
            // A proc that a link had mounted over the root would be there without its masks, at `/..`.
            let expected = if mounted { started.code == 0 && is_directory } else { started.code == 0 };
            let said = started.err.contains(&format!("/{at}")) || started.err.contains("/etc/hostname");
            let refused = started.code != 0 && started.err.contains("odd") && said;
            ensure!(expected || refused && !(mounted && is_directory), "{what}: {started:?}");
            if refused && mounted {
                ensure!(started.err.contains("make it"), "{what}: {started:?}");
            }
            same(&what, &before, &place.outside()?)?;
            ensure!(fs::read("/etc/hosts").ok() == hosts, "{what}: the host's own file");
            place.host.run(&["delete", "--yes", "--volumes", "odd"])?;
        }
    }
    place.host.run(&["image", "verify"])?;
    place.host.stop()
}
