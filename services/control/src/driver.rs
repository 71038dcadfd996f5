//! One driver per VPS: takes inputs from one queue, lets [`Life`] decide, publishes, carries out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    Phase, VpsName, VpsSpec, VpsStatus,
    api::{LastWake, State},
    run::Link,
    spec::Idle,
};
use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
};
use wire::{host, network::Way};

use crate::{
    calls::insist,
    clock::{now_ms, unix_ms},
    direct,
    inbox::Inbox,
    inside::{self, Ended},
    launch,
    life::{ASLEEP, Action, Answer, ENDED, Input, Life, Reach, Rules, Step},
    memory::Short,
    shared::Control,
    store::Wakes,
    story::{self, Beginning},
};

/// Inputs that may wait; who has more waits too.
const QUEUE: usize = 256;
/// How long a request to stop, freeze or thaw is repeated while the host is away.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// How long a stop waits for the gateway to have been told.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);
/// How long one that comes back after a boot may keep others from that.
const BACK_LIMIT: Duration = Duration::from_secs(30);
/// How long a `busy` command may take.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
/// Who has been frozen for a shorter time keeps its memory, whoever waits.
const FROZEN_MS: u64 = 10_000;

#[derive(Debug)]
enum Message {
    Input(Input),
    Ask(Input, oneshot::Sender<u64>),
    End,
}

/// One VPS: what others see of its driver.
#[derive(Debug)]
pub struct Vps {
    /// Its name.
    pub name: VpsName,
    spec: Mutex<Arc<VpsSpec>>,
    /// Its link, once the network gave an address and the host made its place. Held while they are being asked.
    pub place: tokio::sync::Mutex<Option<Link>>,
    address: Mutex<Option<Link>>,
    wakes: Mutex<Wakes>,
    /// The start that goes on, or led to what runs.
    beginning: Mutex<Option<Box<Beginning>>>,
    life: Mutex<Life>,
    changed: Notify,
    inbox: Inbox<Message>,
    /// Locked by the export for which it stands still.
    pub still: Arc<tokio::sync::Mutex<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vps {
    /// Starts the driver of one VPS.
    pub fn spawn(
        control: Arc<Control>,
        name: VpsName,
        spec: Arc<VpsSpec>,
        link: Option<Link>,
        wakes: Wakes,
    ) -> Arc<Self> {
        // Unix time is above every number a former process gave out: no VPS starts once a millisecond.
        let life = Life::new(Rules::from(&*spec), unix_ms(), now_ms());
        let vps = Arc::new(Self {
            name: name.clone(),
            spec: Mutex::new(spec),
            place: tokio::sync::Mutex::new(link.clone()),
            address: Mutex::new(link),
            wakes: Mutex::new(wakes),
            beginning: Mutex::new(None),
            changed: Notify::new(),
            inbox: Inbox::new(QUEUE),
            life: Mutex::new(life),
            still: Default::default(),
        });
        control.routes.set_state(&name, vps.life().generation(), Reach::No, None);
        let driver = Driver {
            control,
            vps: vps.clone(),
            published: None,
            version: 0,
            stopper: None,
            launcher: None,
            counted: false,
            led: (unix_ms(), BTreeSet::new()),
        };
        tokio::spawn(driver.run());
        vps
    }

    /// Its spec.
    pub fn spec(&self) -> Arc<VpsSpec> {
        lock(&self.spec).clone()
    }

    /// Follows a change of its spec: what is about idleness and failures counts at once, the rest at the next start.
    pub fn set_spec(&self, spec: Arc<VpsSpec>) {
        self.life().set_rules(Rules::from(&*spec));
        *lock(&self.spec) = spec;
        self.inbox.try_send(Message::Input(Input::Changed));
    }

    /// Its life, to look at.
    pub fn life(&self) -> MutexGuard<'_, Life> {
        lock(&self.life)
    }

    /// Whether it has processes, as far as is known.
    pub fn is_up(&self) -> bool {
        !matches!(self.life().state(), State::Asleep | State::Failed)
    }

    /// Its addresses, once it has some.
    pub fn link(&self) -> Option<Link> {
        lock(&self.address).clone()
    }

    /// Its addresses are known.
    pub fn set_link(&self, link: Option<Link>) {
        *lock(&self.address) = link;
    }

    /// It had these wakes elsewhere, before those that it had here; all of them.
    pub fn had(&self, before: Wakes) -> Wakes {
        let mut wakes = lock(&self.wakes);
        wakes.starts += before.starts;
        wakes.last = wakes.last.take().or(before.last);
        wakes.clone()
    }

    /// What is remembered of its wakes.
    pub fn wakes(&self) -> Wakes {
        lock(&self.wakes).clone()
    }

    /// The start that goes on, or led to what runs; none: this process has seen none.
    pub fn beginning(&self) -> MutexGuard<'_, Option<Box<Beginning>>> {
        lock(&self.beginning)
    }

    /// This has been done for its start.
    pub fn mark(&self, what: &'static str) {
        if let Some(beginning) = self.beginning().as_mut() {
            beginning.mark(what);
        }
    }

    /// Gives it an input. Nothing happens when its driver has ended: it was deleted.
    pub async fn feed(&self, input: Input) {
        let _ = self.inbox.send(Message::Input(input)).await;
    }

    /// Gives it an input, and waits until that was decided: the generation then. None: its driver has ended.
    pub async fn ask(&self, input: Input) -> Option<u64> {
        let (answer, decided) = oneshot::channel();
        self.inbox.send(Message::Ask(input, answer)).await.ok()?;
        decided.await.ok()
    }

    /// Ends its driver.
    pub async fn end(&self) {
        let _ = self.inbox.send(Message::End).await;
    }

    /// Waits until nothing more happens by itself; false when that took longer than `limit`.
    pub async fn settled(&self, limit: Duration) -> bool {
        let settled = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.life().settled() {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, settled).await.is_ok()
    }
}

/// What is to be done for one that sleeps, as this process finds it. `down`: how its last run failed, as the host says; `back`: it was
/// up when it was last heard of, and never sleeps.
async fn found_asleep(control: Arc<Control>, vps: Arc<Vps>, down: Option<VpsStatus>, back: bool) {
    // What failed by itself is left to its restart policy.
    let failed = match down {
        Some(status) => story::found_down(&control, &vps, status).await,
        None => false,
    };
    if back && !failed {
        come_back(control, vps).await;
    }
}

/// Starts again what was up when the host ended, a few at once: at a boot the machine has much else to do. Who is asked for
/// meanwhile does not wait for the others.
async fn come_back(control: Arc<Control>, vps: Arc<Vps>) {
    let Ok(_place) = control.coming_back.acquire().await else { return };
    if vps.wakes().up && !vps.is_up() {
        vps.ask(Input::Wake("it was up when the host ended".to_owned())).await;
        vps.settled(BACK_LIMIT).await;
    }
}

struct Driver {
    control: Arc<Control>,
    vps: Arc<Vps>,
    published: Option<(u64, Reach)>,
    version: u64,
    stopper: Option<AbortHandle>,
    launcher: Option<AbortHandle>,
    /// Whether it counts with those that have memory or wait for some.
    counted: bool,
    /// What goes past the gateway, and the number of that word to the network service.
    led: (u64, BTreeSet<Way>),
}

impl Driver {
    async fn run(mut self) {
        loop {
            let (input, answer) = match self.vps.inbox.receive().await {
                Message::Input(input) => (input, None),
                Message::Ask(input, answer) => (input, Some(answer)),
                Message::End => break,
            };
            let actions = self.decide(input);
            for action in actions {
                self.carry_out(action);
            }
            self.account();
            if let Some(answer) = answer {
                let _ = answer.send(self.vps.life().generation());
            }
        }
        self.vps.inbox.close();
        self.release();
        for task in [self.stopper.take(), self.launcher.take()].into_iter().flatten() {
            task.abort();
        }
    }

    /// Publishes before anything is carried out: nobody may be sent to a VPS that is about to stop.
    fn decide(&mut self, input: Input) -> Vec<Action> {
        let (stopped, found) = (matches!(input, Input::Stop(_)), matches!(input, Input::Snapshot(_)));
        let was_up = lock(&self.vps.wakes).up;
        let down = self.listen(&input);
        let (actions, asleep, ended) = {
            let led_to = self.control.routes.is_led_to(&self.vps.name);
            let mut life = self.vps.life();
            life.set_led_to(led_to);
            let actions = life.step(now_ms(), input);
            let asleep = life.state() == model::api::State::Asleep;
            (actions, asleep, asleep && life.because() == ENDED)
        };
        if was_up && (stopped || ended) {
            self.keep_wakes(|wakes| wakes.up = false);
        }
        if found && asleep {
            let back = was_up && !ended && self.vps.spec().idle == Idle::Never;
            tokio::spawn(found_asleep(self.control.clone(), self.vps.clone(), down, back));
        }
        let now = {
            let life = self.vps.life();
            (life.generation(), life.reach())
        };
        if self.published.as_ref() != Some(&now) {
            let address = self.vps.link().map(|link| link.address.into());
            self.version = self.control.routes.set_state(&self.vps.name, now.0, now.1.clone(), address);
            self.published = Some(now);
        }
        self.vps.changed.notify_waiters();
        self.lead();
        actions
    }

    /// Has what may go past the gateway do so, or no more. Whoever makes it sleep says so too, and waits for that.
    fn lead(&mut self) {
        let direct = direct::ways(&self.control.config, &self.vps.spec());
        let mut life = self.vps.life();
        life.set_direct(!direct.is_empty());
        let ways = if life.takes_directly() { direct } else { BTreeSet::new() };
        if ways != self.led.1 {
            self.led = (self.led.0 + 1, ways.clone());
            let (control, vps, number) = (self.control.clone(), self.vps.clone(), self.led.0);
            tokio::spawn(async move { direct::lead(&control, &vps, number, ways).await });
        }
    }

    /// What taking back its ways needs, where there were any.
    fn unlead(&self) -> impl Future<Output = ()> + use<> {
        let (control, vps, number) = (self.control.clone(), self.vps.clone(), self.led.0);
        let was_led = self.vps.life().is_direct();
        async move {
            if was_led {
                direct::lead(&control, &vps, number, BTreeSet::new()).await;
            }
        }
    }

    /// Hears what the host says of a start; and answers a failure that it tells of when this process begins.
    fn listen(&self, input: &Input) -> Option<VpsStatus> {
        match input {
            Input::Status(status) | Input::Snapshot(Some(status)) => {
                if let Some(beginning) = self.vps.beginning().as_mut() {
                    beginning.heard(status);
                }
                let failed = matches!(&status.phase, Phase::Down { ended: Some(ended) } if story::is_failure(ended));
                (failed && matches!(input, Input::Snapshot(_))).then(|| status.clone())
            }
            _ => None,
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Launch(number) => {
                if let Err(short) = self.enter() {
                    self.wait_for_memory(number, &short);
                    return;
                }
                if let Some(beginning) = self.vps.beginning().as_mut() {
                    beginning.room();
                }
                self.control.pool.starts(&self.vps.name);
                abort(self.stopper.take());
                abort(self.launcher.take());
                let task = launch::launch(self.control.clone(), self.vps.clone(), number);
                self.launcher = Some(tokio::spawn(task).abort_handle());
            }
            Action::Attach(number) => {
                abort(self.launcher.take());
                let task = launch::attach_found(self.control.clone(), self.vps.clone(), number);
                self.launcher = Some(tokio::spawn(task).abort_handle());
            }
            Action::Stop { grace_ms, thaw } => {
                abort(self.stopper.take());
                let (unlead, task) =
                    (self.unlead(), stop(self.control.clone(), self.vps.clone(), self.version, grace_ms, thaw));
                let task = async move {
                    unlead.await;
                    task.await;
                };
                self.stopper = Some(tokio::spawn(task).abort_handle());
            }
            Action::AskBusy(number) => {
                let (unlead, control, vps) = (self.unlead(), self.control.clone(), self.vps.clone());
                tokio::spawn(async move {
                    unlead.await;
                    let answer = ask_busy(&control, &vps).await;
                    vps.feed(Input::Busy(number, answer)).await;
                });
            }
            Action::Freeze => self.step(Step::Freeze, host::Freeze { name: self.vps.name.clone() }),
            Action::Thaw => self.step(Step::Thaw, host::Thaw { name: self.vps.name.clone() }),
            Action::Look(number) => {
                let (control, vps) = (self.control.clone(), self.vps.clone());
                tokio::spawn(async move {
                    if let Ok(list) = insist(&control.host, &host::List { up: false, prepared: true }, STEP_LIMIT).await
                    {
                        let found = list.vps.into_iter().find(|status| status.name == vps.name);
                        vps.feed(Input::Looked(number, found)).await;
                    }
                });
            }
            Action::Timer(number, after_ms) => {
                let vps = self.vps.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                    vps.feed(Input::Timer(number)).await;
                });
            }
            Action::Begun { by, thaw } => {
                *self.vps.beginning() = Some(Box::new(Beginning::new(by, thaw)));
                wake_wanted(&self.control, &self.vps);
            }
            Action::Woken { took_ms, by } => {
                story::started(&self.control, &self.vps, took_ms, &by);
                self.woken(took_ms, by);
            }
            Action::Failed { what, ended } => {
                story::failed(&self.control, &self.vps, &what, ended.as_ref());
                *self.vps.beginning() = None;
            }
            Action::Stopped { why, took_ms, frozen, ended } => {
                story::stopped(&self.control, &self.vps.name, &why, took_ms, frozen, ended.as_ref());
                *self.vps.beginning() = None;
            }
            Action::Record { what, detail, actor } => {
                if what == ASLEEP {
                    self.control.pool.sleeps(&self.vps.name);
                }
                self.control.history.record(Some(&self.vps.name), what, detail, actor);
            }
        }
    }

    fn step<M: wire::Method + 'static>(&self, step: Step, method: M) {
        let (control, vps, version) = (self.control.clone(), self.vps.clone(), self.version);
        let unlead = self.unlead();
        tokio::spawn(async move {
            if step == Step::Freeze {
                unlead.await;
                control.routes.flushed(version, FLUSH_LIMIT).await;
            }
            let result = insist(&control.host, &method, STEP_LIMIT).await;
            vps.feed(Input::Done(step, result.map(drop).map_err(|fault| fault.message))).await;
        });
    }

    fn enter(&mut self) -> Result<(), Short> {
        let (spec, memory) = (self.vps.spec(), &self.control.memory);
        self.counted = true;
        let entered = memory.ledger().enter(&self.vps.name, &spec.tenant, spec.limits.memory);
        if entered.is_err() || spec.limits.memory.is_none() {
            memory.changed();
        }
        entered
    }

    fn wait_for_memory(&mut self, launch: u64, short: &Short) {
        make_room(&self.control, short.missing());
        if let Some(beginning) = self.vps.beginning().as_mut() {
            beginning.short(short.to_string());
        }
        for action in self.decide(Input::Full(launch, short.to_string())) {
            self.carry_out(action);
        }
    }

    /// Who is up has memory, however it came up; who is down has none.
    fn account(&mut self) {
        use model::api::State;
        let state = self.vps.life().state();
        match state {
            State::Asleep | State::Failed => self.release(),
            State::Waiting => {}
            _ if self.counted => {}
            _ => {
                let spec = self.vps.spec();
                self.control.memory.ledger().hold(&self.vps.name, &spec.tenant, spec.limits.memory);
                self.counted = true;
            }
        }
    }

    fn release(&mut self) {
        if std::mem::take(&mut self.counted) {
            let admitted = self.control.memory.ledger().leave(&self.vps.name);
            admit(&self.control, admitted);
        }
    }

    fn woken(&mut self, took_ms: u64, by: String) {
        self.keep_wakes(|wakes| {
            wakes.last = Some(LastWake { took_ms: Some(took_ms), by, at_ms: unix_ms() - took_ms });
            wakes.starts += 1;
            wakes.up = true;
        });
    }

    fn keep_wakes(&self, change: impl FnOnce(&mut Wakes)) {
        let wakes = {
            let mut wakes = lock(&self.vps.wakes);
            change(&mut wakes);
            wakes.clone()
        };
        self.control.wakes.put(self.vps.name.clone(), wakes);
    }
}

fn abort(task: Option<AbortHandle>) {
    if let Some(task) = task {
        task.abort();
    }
}

/// Wakes those that `vps` will connect to. Whatever becomes of them is no matter of its own start.
fn wake_wanted(control: &Arc<Control>, vps: &Vps) {
    let spec = vps.spec();
    let wanted = spec.wants.iter().filter_map(|name| control.get(name));
    for other in wanted.filter(|other| other.spec().tenant == spec.tenant) {
        let by = format!("wanted by {}", vps.name);
        tokio::spawn(async move { other.feed(Input::Wake(by)).await });
    }
}

/// Tells those that waited.
fn admit(control: &Arc<Control>, admitted: Vec<VpsName>) {
    for vps in admitted.iter().filter_map(|name| control.get(name)) {
        tokio::spawn(async move { vps.feed(Input::Room).await });
    }
}

/// Stops VPSs that were frozen since nobody used them, those first that were so longest.
fn make_room(control: &Arc<Control>, missing: u64) {
    let now = now_ms();
    let can_give = |vps: &Arc<Vps>| Some((vps.life().can_give(now).filter(|since| *since >= FROZEN_MS)?, vps.clone()));
    let mut frozen: Vec<_> = control.all().values().filter_map(can_give).collect();
    frozen.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
    let mut freed = 0;
    for (_, vps) in frozen {
        if freed >= missing {
            break;
        }
        freed += control.memory.ledger().held(&vps.name);
        tokio::spawn(async move { vps.feed(Input::Give).await });
    }
}

/// Looks what is used in truth as long as that makes a difference.
pub async fn measure(control: Arc<Control>) {
    loop {
        control.memory.worth_measuring().await;
        let Ok(list) = insist(&control.host, &host::List { up: true, prepared: false }, STEP_LIMIT).await else {
            continue;
        };
        let (mut tenants, mut others) = (BTreeMap::new(), 0);
        for status in list.vps {
            match (status.designated, status.memory) {
                (true, memory) => others += memory.unwrap_or(0),
                (false, Some(memory)) => drop(tenants.insert(status.name, memory)),
                (false, None) => {}
            }
        }
        let admitted = control.memory.ledger().measure(&tenants, others);
        admit(&control, admitted);
    }
}

/// Whether a VPS is used that the gateway sees nobody use. Of its `busy` command, exit 0 says so, another status: it is not.
async fn ask_busy(control: &Control, vps: &Vps) -> Answer {
    let spec = vps.spec();
    if !direct::ways(&control.config, &spec).is_empty() {
        let recent = |ago: &u64| matches!(spec.idle, Idle::After { after_ms, .. } if *ago < after_ms);
        match direct::used(control, vps).await {
            Ok(used) if used.open > 0 => return Answer::Used(0),
            Ok(used) => {
                if let Some(ago) = used.last_ms.filter(recent) {
                    return Answer::Used(ago.max(1));
                }
            }
            Err(fault) => return Answer::Unknown(fault.message),
        }
    }
    if spec.busy.is_empty() {
        return Answer::Free;
    }
    let says = |why: String| Answer::Unknown(format!("its `busy` command gave no answer: {why}"));
    match inside::run(control, &vps.name, &spec, &spec.busy, None, BUSY_LIMIT).await {
        Ok(Ended { error: Some(error), .. }) => says(error),
        Ok(Ended { status: Some(status), .. }) if status.success() => Answer::Busy,
        Ok(Ended { status: Some(_), .. }) => Answer::Free,
        Ok(Ended { status: None, .. }) => says(format!("not within {}s", BUSY_LIMIT.as_secs())),
        Err(fault) => says(fault.message),
    }
}

async fn stop(control: Arc<Control>, vps: Arc<Vps>, version: u64, grace_ms: Option<u64>, thaw: bool) {
    control.routes.flushed(version, FLUSH_LIMIT).await;
    let name = vps.name.clone();
    if thaw {
        // A frozen process can't hear a signal; that it is not frozen is no fault.
        let _ = insist(&control.host, &host::Thaw { name: name.clone() }, STEP_LIMIT).await;
    }
    let result = insist(&control.host, &host::Stop { name, grace_ms }, STEP_LIMIT).await;
    vps.feed(Input::Done(Step::Stop, result.map(drop).map_err(|fault| fault.message))).await;
}

/// The VPSs of a snapshot by name.
pub fn by_name(list: Vec<model::VpsStatus>) -> BTreeMap<VpsName, model::VpsStatus> {
    list.into_iter().map(|status| (status.name.clone(), status)).collect()
}
