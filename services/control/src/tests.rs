//! The whole service between played others: one socket serves the host's, the network's, the gateway's and the apps'
//! methods, and writes down what was asked.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{body::Bytes, extract::State};
use model::{
    ExitStatus, HostConfig, Phase, VpsName, VpsStatus,
    api::{ApplyRequest, SpecFile, State as VpsState},
    image::ImageInfo,
    state::Ended,
};
use tokio::{net::UnixListener, sync::watch};
use wire::{
    Client, Connection, Fault, Method, Peer, Replier, Request, apps,
    control::{Reachable, RouteUpdate},
    gateway, host, network,
    varlink::{Empty, Service, serve_connection},
};

use crate::{
    api, delete, events, fixtures,
    life::Input,
    shared::{Control, Others},
    state,
};

#[derive(Default)]
struct Played {
    asked: Mutex<Vec<String>>,
    status: Mutex<BTreeMap<VpsName, VpsStatus>>,
    changed: watch::Sender<()>,
    /// What the routes said of each VPS when the host was asked to stop it.
    told: Mutex<Vec<Option<Reachable>>>,
    follower: Mutex<BTreeMap<VpsName, Reachable>>,
    /// Whose addresses are given out.
    addressed: Mutex<Vec<VpsName>>,
}

impl Played {
    fn asked(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == what).count()
    }

    fn set(&self, name: &VpsName, phase: Phase, again: bool) -> u64 {
        let mut all = self.status.lock().unwrap();
        let run = all.get(name).map_or(0, |status| status.run) + u64::from(again);
        let status = VpsStatus { name: name.clone(), ..fixtures::status(run, phase) };
        all.insert(name.clone(), status);
        self.changed.send_replace(());
        run
    }

    fn statuses(&self) -> host::Statuses {
        host::Statuses { vps: self.status.lock().unwrap().values().cloned().collect(), gone: Vec::new() }
    }
}

/// What the tests hold: the service that is played is shared with its connections.
struct Server(Arc<Played>);

impl Service for Server {
    async fn call(&self, _: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let played = &self.0;
        let short = request.method.rsplit('.').next().unwrap().to_owned();
        played.asked.lock().unwrap().push(short);
        let empty = Empty {};
        match request.method.as_str() {
            host::Events::NAME => {
                let mut changed = played.changed.subscribe();
                loop {
                    changed.borrow_and_update();
                    replier.more::<host::Events>(&played.statuses()).await?;
                    tokio::select! {
                        _ = changed.changed() => {}
                        () = replier.gone() => return Ok(()),
                    }
                }
            }
            host::Start::NAME => {
                let run = request.parse::<host::Start>()?.run;
                let number = played.set(&run.name, Phase::Starting, true);
                replier.done::<host::Start>(&host::Started { run: number }, &[]).await?;
                played.set(&run.name, Phase::Ready, false);
            }
            host::Stop::NAME => {
                let name = request.parse::<host::Stop>()?.name;
                played.told.lock().unwrap().push(played.follower.lock().unwrap().get(&name).cloned());
                replier.done::<host::Stop>(&empty, &[]).await?;
                let status = ExitStatus::Signal(15);
                let ended = Some(Ended::Exited { status, oom: false, asked: true });
                played.set(&name, Phase::Down { ended }, false);
            }
            host::List::NAME => replier.done::<host::List>(&played.statuses(), &[]).await?,
            network::Allocate::NAME => {
                replier.done::<network::Allocate>(&network::Allocated { link: fixtures::link() }, &[]).await?;
            }
            network::Addresses::NAME => {
                let given = played.addressed.lock().unwrap().clone();
                let links = given.into_iter().map(|name| (name, fixtures::link())).collect();
                replier.done::<network::Addresses>(&network::AllAddresses { links }, &[]).await?;
            }
            network::Release::NAME => {
                let name = request.parse::<network::Release>()?.name;
                played.addressed.lock().unwrap().retain(|given| *given != name);
                replier.done::<network::Release>(&empty, &[]).await?;
            }
            gateway::Listen::NAME => {
                replier.done::<gateway::Listen>(&gateway::ListenFaults::default(), &[]).await?;
            }
            apps::Images::NAME => {
                let reference = "debian:nginx-light".parse().unwrap();
                let image = ImageInfo { reference, layers: Vec::new(), sizes: Vec::new(), built: 0 };
                replier.done::<apps::Images>(&apps::ImageList { images: vec![image] }, &[]).await?;
            }
            // All others answer nothing.
            _ => replier.done::<host::Create>(&empty, &[]).await?,
        }
        Ok(())
    }
}

fn serve(path: &Path, played: Arc<Played>) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = Server(played.clone());
            tokio::spawn(async move {
                let peer = Peer { vps: "control".parse().unwrap(), services: Vec::new() };
                let _ = serve_connection(&mut Connection::new(stream), &peer, &server).await;
            });
        }
    });
}

struct House {
    directory: tempfile::TempDir,
    control: Arc<Control>,
    played: Arc<Played>,
}

async fn house() -> House {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let played = Arc::new(Played::default());
    serve(&socket, played.clone());
    let control = open(directory.path(), &socket).await;
    House { directory, control, played }
}

async fn open(data: &Path, socket: &Path) -> Arc<Control> {
    let client = || Client::host(socket);
    let others = Others { host: client(), network: client(), gateway: client(), apps: client(), logs: client() };
    let config: HostConfig = model::host::parse("host.toml", "").unwrap();
    let control = Control::new(others, config, data).unwrap();
    tokio::spawn(events::follow(control.clone()).await);
    delete::resume(&control);
    control
}

async fn apply(control: &Arc<Control>) -> VpsName {
    apply_with(control, "").await
}

async fn apply_with(control: &Arc<Control>, more: &str) -> VpsName {
    let text = "tenant = \"acme\"\n[vps.a]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\"]\n\
                routes = { \"http://a.example\" = 80 }\n";
    let files = vec![SpecFile { name: "a.toml".to_owned(), text: format!("{text}{more}"), ..Default::default() }];
    let request = ApplyRequest { files, dry_run: false, take_routes: false };
    let body = Bytes::from(serde_json::to_vec(&request).unwrap());
    let answer = api::apply::apply(State(control.clone()), body).await.unwrap();
    assert_eq!(answer.changes.len(), 1);
    "a".parse().unwrap()
}

const LONG: Duration = Duration::from_secs(20);

/// Waits for what another task of this process does.
async fn until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("it was not done in time");
}

#[tokio::test]
async fn a_thousand_wakes_are_one_start_of_the_host() {
    let House { control, played, .. } = &house().await;
    let vps = control.get(&apply(control).await).unwrap();
    let wakes = (0..1000).map(|n| vps.ask(Input::Wake(format!("request {n}"))));
    futures_util::future::join_all(wakes).await;
    assert!(vps.settled(LONG).await);
    assert_eq!(vps.life().state(), VpsState::Running);
    assert_eq!((played.asked("Start"), played.asked("Create"), played.asked("Allocate")), (1, 1, 1));
    let at = control.routes.state(&vps.name).unwrap().state;
    assert_eq!(at, Reachable::At(fixtures::link().address.into()));
    assert_eq!(vps.wakes().last.unwrap().by, "request 0");
}

#[tokio::test]
async fn an_address_of_a_vps_that_never_came_is_given_back() {
    let House { control, played, .. } = &house().await;
    let name = apply(control).await;
    *played.addressed.lock().unwrap() = vec![name.clone(), "never-came".parse().unwrap()];
    state::sweep(control.clone()).await;
    assert_eq!(*played.addressed.lock().unwrap(), [name]);
}

#[tokio::test]
async fn followers_are_told_before_the_host_is_asked_to_stop() {
    let House { control, played, .. } = &house().await;
    let vps = control.get(&apply(control).await).unwrap();
    let follow = async {
        let mut follower = control.routes.follow();
        loop {
            let RouteUpdate { states, .. } = follower.next().await;
            // A follower that is slower than the host.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            let mut told = played.follower.lock().unwrap();
            told.extend(states.into_iter().map(|state| (state.name, state.state)));
            follower.sent();
        }
    };
    let act = async {
        for _ in 0..20 {
            vps.ask(Input::Start("root".to_owned())).await;
            assert!(vps.settled(LONG).await);
            vps.ask(Input::Stop("root".to_owned())).await;
            assert!(vps.settled(LONG).await);
        }
    };
    tokio::select! {
        () = act => {}
        () = follow => {}
    }
    assert_eq!(*played.told.lock().unwrap(), vec![Some(Reachable::No); 20]);
}

#[tokio::test]
async fn what_runs_is_adopted_by_the_next_process_and_not_started_again() {
    let House { control, played, directory } = house().await;
    let vps = control.get(&apply(&control).await).unwrap();
    vps.ask(Input::Wake("one".to_owned())).await;
    assert!(vps.settled(LONG).await);
    // The place is kept beside the start, not before it.
    until(|| !control.store.load().unwrap().links.is_empty()).await;
    // As SIGKILL leaves it: the file is copied while the first process still has it open.
    let data = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("state.redb"), data.path().join("state.redb")).unwrap();
    let next = open(data.path(), &directory.path().join("socket")).await;
    let vps = next.get(&vps.name).unwrap();
    vps.ask(Input::Wake("two".to_owned())).await;
    assert!(vps.settled(LONG).await);
    assert_eq!(vps.life().state(), VpsState::Running);
    assert_eq!((played.asked("Start"), played.asked("Create")), (1, 1));
}

#[tokio::test]
async fn who_never_sleeps_comes_back_with_the_host_unless_it_was_stopped() {
    let House { control, played, directory } = house().await;
    let vps = control.get(&apply_with(&control, "idle = \"never\"").await).unwrap();
    let kept =
        |control: &Arc<Control>| control.store.load().unwrap().wakes.get(&vps.name).is_some_and(|wakes| wakes.up);
    vps.ask(Input::Start("root".to_owned())).await;
    assert!(vps.settled(LONG).await);
    until(|| kept(&control)).await;
    let data = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("state.redb"), data.path().join("state.redb")).unwrap();
    // A host that was restarted has no process of it.
    played.status.lock().unwrap().clear();
    let next = open(data.path(), &directory.path().join("socket")).await;
    let back = next.get(&vps.name).unwrap();
    until(|| back.life().state() == VpsState::Running).await;
    assert_eq!(played.asked("Start"), 2);
    back.ask(Input::Stop("root".to_owned())).await;
    until(|| !kept(&next)).await;
}

#[tokio::test]
async fn a_deletion_that_was_cut_off_is_finished_by_the_next_process() {
    let House { control, played, directory } = house().await;
    let name = apply(&control).await;
    control.store.begin_delete(&name).unwrap();
    let data = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("state.redb"), data.path().join("state.redb")).unwrap();
    let next = open(data.path(), &directory.path().join("socket")).await;
    assert!(next.get(&name).is_none() && next.routes.table().is_empty());
    until(|| next.deleting().is_empty()).await;
    assert!(next.store.load().unwrap().specs.is_empty());
    assert_eq!((played.asked("Delete"), played.asked("Release")), (1, 1));
}
