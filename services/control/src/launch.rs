//! Flow C: image layers, addresses, a place on the host; then the start, with the link beside it.

use std::{collections::BTreeSet, os::fd::AsFd, sync::Arc, time::Duration};

use model::{Route, RouteTarget, Transport, VpsSpec, api::ErrorKind, run::Link};
use tokio::time::{Instant, sleep};
use wire::{Fault, host, network};

use crate::{
    api::{mend, sharing},
    calls::{PATIENCE, insist, insist_with},
    driver::Vps,
    images,
    life::{Failure, Input},
    neighbours, pool,
    run_spec::run_spec,
    secrets::SecretError,
    shared::Control,
};

/// How long a start whose answer was lost is undone.
const UNDO: Duration = Duration::from_secs(2);
/// Between two looks for ports: at first, and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// How long what an apply does ahead of the first start is tried.
const AHEAD: Duration = Duration::from_secs(10);

/// Starts a VPS; its driver hears how that went.
pub async fn launch(control: Arc<Control>, vps: Arc<Vps>, number: u64) {
    let _launching = control.pool.launching();
    let limit = Duration::from_millis(vps.spec().start_deadline_ms);
    let link = match place(&control, &vps, limit).await {
        Ok(link) => link,
        Err(fault) => return vps.feed(Input::Launched(number, Err(failure("its place", &fault)))).await,
    };
    if !neighbours::bounded(&control, &vps.spec(), limit).await {
        let late =
            Fault::new(ErrorKind::Unavailable, "the network service does not know yet what it may not connect to");
        return vps.feed(Input::Launched(number, Err(failure("its firewall", &late)))).await;
    }
    let attach = attach(&control, &vps, &link, limit);
    let start = start(&control, &vps, &link, limit);
    tokio::pin!(attach, start);
    let (started, early) = tokio::select! {
        started = &mut start => (started, false),
        _ = &mut attach => (start.await, true),
    };
    let failed = started.is_err();
    vps.feed(Input::Launched(number, started)).await;
    if failed {
        return;
    }
    // What was asked before the start may have meant the link of the run before, whenever it was answered.
    if !early {
        let _ = attach.await;
    }
    let attached = self::attach(&control, &vps, &link, limit).await;
    vps.feed(Input::Attached(number, attached)).await;
}

/// Attaches a VPS that was found up.
pub async fn attach_found(control: Arc<Control>, vps: Arc<Vps>, number: u64) {
    let limit = Duration::from_millis(vps.spec().start_deadline_ms);
    let attached = match place(&control, &vps, limit).await {
        Ok(link) => attach(&control, &vps, &link, limit).await,
        Err(fault) => Err(failure("its place", &fault)),
    };
    vps.feed(Input::Attached(number, attached)).await;
}

/// Has that done in its turn. Of thousands each takes little room until then.
pub fn ahead(control: &Arc<Control>, vps: Arc<Vps>) {
    let control = control.clone();
    tokio::spawn(async move {
        let Ok(_turn) = control.ahead.acquire().await else { return };
        Box::pin(prepare(control.clone(), vps)).await;
    });
}

/// Does ahead what the first start would have to wait for. Its failure shows at that start.
pub async fn prepare(control: Arc<Control>, vps: Arc<Vps>) {
    match place(&control, &vps, AHEAD).await {
        // What its volumes are to hold, its first start brings; until then there are none.
        Ok(_) if vps.spec().volumes.is_empty() => control.pool.is_new(&vps.name),
        Ok(_) => {}
        Err(fault) => tracing::warn!(vps = %vps.name, %fault, "its place could not be prepared yet"),
    }
}

async fn attach(control: &Control, vps: &Vps, link: &Link, limit: Duration) -> Result<(), Failure> {
    let spec = vps.spec();
    let [transparent, transparent_udp] = [Transport::Tcp, Transport::Udp].map(|of| spec.transparent_ports(of));
    let attach = network::Attach { link: link.name.clone(), transparent, transparent_udp };
    let attached = insist(&control.network, &attach, limit).await;
    if attached.is_ok() {
        vps.mark("link attached");
    }
    attached.map_err(|fault| failure("its link", &fault))?;
    bound(control, vps, &spec, limit).await
}

/// Waits until the ports are bound that UDP routes lead to: what comes before would be lost. Of TCP its init sees that; nothing
/// tells of these, so it is looked again and again.
async fn bound(control: &Control, vps: &Vps, spec: &VpsSpec, limit: Duration) -> Result<(), Failure> {
    let of_udp = |(route, target): (&Route, &RouteTarget)| (route.listen().1 == Transport::Udp).then_some(target.port);
    let wanted: BTreeSet<u16> = spec.routes.iter().filter_map(of_udp).collect();
    let end = Instant::now() + limit;
    let mut pause = LOOK.0;
    while !wanted.is_empty() {
        // It may not be up yet.
        let open = control.host.call(&host::OpenPorts { name: vps.name.clone() }).await.unwrap_or_default();
        if wanted.iter().all(|port| open.udp.contains(port) || open.udp6.contains(port)) {
            vps.mark("ports of UDP bound");
            break;
        }
        if Instant::now() > end {
            let ports: Vec<_> = wanted.iter().map(u16::to_string).collect();
            let what = format!("no socket was bound to UDP port {}", ports.join(", "));
            return Err(Failure { what, public: "it was not ready in time" });
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
    Ok(())
}

/// Lets ports that new routes lead to be shown clients' addresses, ahead of the first connection. Those of old routes go
/// on: their connections live longer than the routes.
pub async fn show_clients(control: &Control, vps: &Vps, new: &VpsSpec) -> Result<(), Fault> {
    let (Some(link), spec) = (vps.link(), vps.spec()) else { return Ok(()) };
    let both = |of: Transport| {
        let (old, mut ports) = (spec.transparent_ports(of), new.transparent_ports(of));
        let known = ports.iter().all(|port| old.contains(port));
        ports.extend(old);
        (known, ports)
    };
    let ((known, transparent), (known_udp, transparent_udp)) = (both(Transport::Tcp), both(Transport::Udp));
    if known && known_udp {
        return Ok(());
    }
    let attach = network::Attach { link: link.name, transparent, transparent_udp };
    insist(&control.network, &attach, PATIENCE).await.map(drop)
}

/// The VPS's addresses and its place on the host: asked for once, then remembered.
pub async fn place(control: &Arc<Control>, vps: &Arc<Vps>, limit: Duration) -> Result<Link, Fault> {
    let mut place = vps.place.lock().await;
    if let Some(link) = &*place {
        return Ok(link.clone());
    }
    // A VPS that is being deleted must not get a new place.
    if !control.get(&vps.name).is_some_and(|now| Arc::ptr_eq(&now, vps)) {
        return Err(Fault::not_found(format!("vps \"{}\" was deleted", vps.name)));
    }
    let spec = vps.spec();
    let name = &vps.name;
    let spare = control.pool.take_spare(&spec);
    let (number, reserved) = spare.as_ref().map(|spare| (spare.number, spare.link.address)).unzip();
    let create = host::Create { name: name.clone(), tenant: spec.tenant.clone(), ids: spec.ids, spare: number };
    let allocate = network::Allocate { name: name.clone(), reserved, wanted: None };
    let asked = futures_util::future::try_join(
        insist(&control.host, &create, limit),
        insist(&control.network, &allocate, limit),
    );
    let asked = asked.await;
    if let (Err(_), Some(spare)) = (&asked, spare) {
        // What of it was taken stays taken.
        let control = control.clone();
        tokio::spawn(async move { pool::drop_spare(&control, &spare).await });
    }
    let (_, network::Allocated { link }) = asked?;
    *place = Some(link.clone());
    vps.set_link(Some(link.clone()));
    if control.routes.is_in_a_rule(name) {
        control.publish_table();
    }
    // Asking again does no harm, so nobody waits for the disk.
    control.places.put(name.clone(), link.clone());
    Ok(link)
}

async fn start(control: &Arc<Control>, vps: &Arc<Vps>, link: &Link, limit: Duration) -> Result<Option<u64>, Failure> {
    let spec = vps.spec();
    let layers = images::layers(control, &spec.image, limit).await;
    let layers = layers.map_err(|fault| failure("its image", &fault))?;
    let run = run_spec(&vps.name, &spec, &layers, link);
    let secrets = control.secrets.packed(&control.store, &spec).await;
    let secrets = secrets.map_err(|error| unusable("its secrets", &error))?;
    let fds: Vec<_> = secrets.iter().map(AsFd::as_fd).collect();
    let start = host::Start { run };
    vps.mark("place, image and secrets at hand");
    let mut answer = insist_with(&control.host, &start, &fds, limit).await;
    if matches!(&answer, Err(fault) if fault.kind == ErrorKind::NotFound) {
        // What is remembered is not so any more: the host lost its place.
        let create = host::Create { name: vps.name.clone(), tenant: spec.tenant.clone(), ids: spec.ids, spare: None };
        answer = match insist(&control.host, &create, limit).await {
            Ok(_) => insist_with(&control.host, &start, &fds, limit).await,
            Err(fault) => Err(fault),
        };
    }
    match answer {
        Ok(started) => Ok(Some(started.run)),
        // It is up: a first answer was lost, and the events say the rest.
        Err(fault) if fault.kind == ErrorKind::Conflict => Ok(None),
        Err(fault) => {
            if fault.kind == ErrorKind::Unavailable {
                let stop = host::Stop { name: vps.name.clone(), grace_ms: Some(0) };
                let _ = insist(&control.host, &stop, UNDO).await;
            }
            let mut failure = failure("its start", &fault);
            if fault.message.contains("image layer sha256:") {
                let image = &spec.image;
                let named: Vec<_> = layers.iter().filter(|layer| fault.message.contains(layer.as_str())).collect();
                let others = sharing(control, image, &named).join(", ");
                let others = if others.is_empty() { others } else { format!(" (and of {others})") };
                failure.what = format!("{} of image {image}{others}; run `{}`", failure.what, mend(image));
            }
            Err(failure)
        }
    }
}

fn failure(what: &str, fault: &Fault) -> Failure {
    let public = if fault.kind == ErrorKind::Lacking { "this host is full" } else { "it could not be set up" };
    Failure { what: format!("{what}: {fault}"), public }
}

fn unusable(what: &str, error: &SecretError) -> Failure {
    Failure { what: format!("{what}: {error}"), public: "it could not be set up" }
}
