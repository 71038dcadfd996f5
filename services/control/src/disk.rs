//! Keeps what is reserved of the disk: who fills it stands still until there is room again.

use std::{sync::Arc, time::Duration};

use model::{VpsName, api::State, limits::show_bytes};
use tokio::time::Instant;
use wire::host::{Disk, DiskStatus};

use crate::{
    calls::insist,
    life::{Holder, Input},
    shared::Control,
};

/// How seldom and how often the disk is looked at while a VPS is up.
const SELDOM: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(50);
/// How often while it is short.
const SHORT: Duration = Duration::from_millis(250);
/// Bytes a second that are more than a disk takes.
const FAST: u64 = 4 << 30;
/// How long the host is asked.
const LIMIT: Duration = Duration::from_secs(5);
/// Over how long it is seen who fills it.
const WINDOW: Duration = Duration::from_secs(30);
/// Bytes that are no filling of a disk.
const LITTLE: u64 = 1 << 20;

/// Watches for as long as the service runs.
pub async fn watch(control: Arc<Control>) {
    let (mut since, mut taken, mut pause) = (None::<DiskStatus>, Instant::now(), None);
    loop {
        // None: how much room there is, is not known yet.
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
            if !any_up(&control) {
                since = None;
                continue;
            }
        }
        let now = insist(&control.host, &Disk {}, LIMIT).await;
        pause = Some(now.as_ref().map_or(SELDOM, until_next));
        let Ok(now) = now else { continue };
        if let Some(lacking) = &now.lacks {
            let running = |name: &VpsName| control.get(name).is_some_and(|vps| vps.life().state() == State::Running);
            if let Some((name, grown)) = filler(since.as_ref(), &now, running) {
                hold(&control, &name, grown, lacking).await;
                // What it wrote until it stood still is nobody else's doing.
                since = insist(&control.host, &Disk {}, LIMIT).await.ok().or(Some(now));
            } else {
                since.get_or_insert(now);
            }
            continue;
        }
        if now.ample {
            release(&control).await;
        }
        if since.is_none() || taken.elapsed() >= WINDOW {
            (since, taken) = (Some(now), Instant::now());
        }
    }
}

/// The less room, the sooner: it is not to be filled meanwhile.
fn until_next(now: &DiskStatus) -> Duration {
    match now.lacks {
        Some(_) => SHORT,
        None => Duration::from_millis(now.room / (FAST / 1000)).clamp(OFTEN, SELDOM),
    }
}

fn any_up(control: &Control) -> bool {
    control.all().values().any(|vps| !matches!(vps.life().state(), State::Asleep | State::Failed))
}

async fn hold(control: &Control, name: &VpsName, grown: u64, lacking: &str) {
    let Some(vps) = control.get(name) else { return };
    let reason = match grown {
        0 => format!("{lacking}; it has written most of all that is up"),
        grown => format!("{lacking}; it wrote {} lately, more than any other", show_bytes(grown)),
    };
    tracing::warn!(vps = %name, reason, "held, since the disk is short");
    vps.ask(Input::Hold(Holder::Disk, reason)).await;
    vps.settled(LIMIT).await;
}

/// Who wrote most since then, and how much, when there was room then, or a good part of what was left has gone since: the
/// reserve is there for the others to go on with. Where nobody wrote (blocks can be taken without a write), who has
/// written most at all. Where the disk was short at the first look, who has written most until then, unless that one
/// stands still already.
fn filler(since: Option<&DiskStatus>, now: &DiskStatus, running: impl Fn(&VpsName) -> bool) -> Option<(VpsName, u64)> {
    let Some(since) = since else {
        let (name, wrote) = now.wrote.iter().max_by_key(|(_, wrote)| **wrote)?;
        return (*wrote >= LITTLE && running(name)).then(|| (name.clone(), *wrote));
    };
    let there = || now.wrote.iter().filter(|(name, _)| running(name));
    let grown = |(name, wrote): (&VpsName, &u64)| {
        // Who was not there has written all of it since.
        (name.clone(), wrote.saturating_sub(since.wrote.get(name).copied().unwrap_or(0)))
    };
    let shrunk = now.free < since.free / 4 * 3;
    if since.lacks.is_some() && !shrunk {
        return None;
    }
    let most = there().map(grown).max_by_key(|(_, grown)| *grown).filter(|(_, grown)| *grown >= LITTLE);
    let total = || there().max_by_key(|(_, wrote)| **wrote).map(|(name, _)| (name.clone(), 0));
    most.or_else(|| total().filter(|_| shrunk))
}

async fn release(control: &Control) {
    let held: Vec<_> = control.all().values().filter(|vps| vps.life().is_held_by(Holder::Disk)).cloned().collect();
    for vps in held {
        tracing::info!(vps = %vps.name, "it may go on, since there is room on the disk");
        vps.feed(Input::Release(Holder::Disk, "the disk has room again".to_owned())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(free: u64, wrote: &[(&str, u64)]) -> DiskStatus {
        let wrote = wrote.iter().map(|(name, bytes)| (name.parse().unwrap(), bytes << 20)).collect();
        DiskStatus { lacks: Some("short".to_owned()), uncounted: None, free, room: 0, ample: false, wrote }
    }

    #[test]
    fn who_wrote_most_lately_is_held() {
        let room = DiskStatus { lacks: None, ..status(100, &[("old", 900), ("new", 1), ("frozen", 0)]) };
        let now = status(90, &[("old", 902), ("new", 40), ("frozen", 500)]);
        let found = |since: &DiskStatus, now: &DiskStatus| filler(Some(since), now, |name| name.as_str() != "frozen");
        assert_eq!(found(&room, &now), Some(("new".parse().unwrap(), 39 << 20)));
        // Once somebody is held the others go on, until much of the rest is gone.
        let others = [("old", 920), ("new", 40)];
        assert_eq!(found(&now, &status(80, &others)), None);
        assert_eq!(found(&now, &status(60, &others)), Some(("old".parse().unwrap(), 18 << 20)));
        // Nobody wrote, and there is less room.
        assert_eq!(found(&now, &status(60, &[("old", 902), ("new", 40)])), Some(("old".parse().unwrap(), 0)));
    }

    #[test]
    fn who_filled_it_before_the_first_look_is_held() {
        let full = status(0, &[("new", 200), ("old", 3)]);
        assert_eq!(filler(None, &full, |_| true), Some(("new".parse().unwrap(), 200 << 20)));
        // That one stands still already: the others are to go on.
        assert_eq!(filler(None, &full, |name| name.as_str() != "new"), None);
        assert_eq!(filler(None, &status(0, &[("old", 0)]), |_| true), None);
    }
}
