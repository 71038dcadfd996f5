//! SIGKILL of any process of a host at any moment of any operation, under load, chosen by chance from a seed: afterwards the host
//! has what it had before or what it was to have, nobody else was touched, and nothing is left over.

mod clients;
mod dice;
mod leftovers;
mod operations;
mod site;
mod victims;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::Child,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::Value;

use self::{
    clients::{Clients, Held},
    operations::{Operation, Operations, SECRET},
    site::BYSTANDERS,
    world::{World, json},
};
use crate::{Host, HostOptions, host::programs, versions};

pub use dice::Dice;

/// How long a host may take to be itself again. Under load, and after several kills: pauses between tries grow.
const SETTLES: Duration = Duration::from_secs(60);
/// How long a command may take, whoever was killed.
const COMMAND: Duration = Duration::from_secs(120);
/// What a command ends with whose service went away: try again.
const UNAVAILABLE: i32 = 6;
/// Nothing tells when the last leftover is gone: the host is looked at again after this.
const AGAIN: Duration = Duration::from_millis(25);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Says what is chosen.
    pub seed: u64,
    /// How long it goes on.
    pub time: Duration,
}

impl Options {
    /// Half of all seeds have VPSs prepared ahead of their starts.
    fn has_pool(&self) -> bool {
        self.seed % 2 == 1
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations during which somebody was killed.
    pub steps: u32,
    /// How often each kind of process was killed.
    pub kills: BTreeMap<String, u32>,
    /// Each kind of operation: how often it was cut short, how often it was done all the same.
    pub operations: BTreeMap<&'static str, (u32, u32)>,
    /// Requests to a bystander under load that were answered, and the longest time one took.
    pub answered: (u64, Duration),
    /// Requests that the web server has served meanwhile.
    pub served: u64,
    /// What the database has acknowledged.
    pub acknowledged: u64,
    /// The longest time that the host took to settle, and the step.
    pub slowest: (Duration, String),
}

impl std::fmt::Display for Report {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(to, "{} kills in {} steps", self.kills.values().sum::<u32>(), self.steps)?;
        let kills: Vec<_> = self.kills.iter().map(|(who, n)| format!("{who} {n}")).collect();
        writeln!(to, "killed: {}", kills.join(", "))?;
        let operations = self.operations.iter().map(|(kind, (cut, done))| format!("{kind} {cut}+{done}"));
        writeln!(to, "failed+done: {}", operations.collect::<Vec<_>>().join(", "))?;
        writeln!(to, "bystander: {} requests answered, none refused; worst {:?}", self.answered.0, self.answered.1)?;
        writeln!(to, "web: {} pages; database: {} writes acknowledged and there", self.served, self.acknowledged)?;
        write!(to, "slowest to settle: {:?}, {}", self.slowest.0, self.slowest.1)
    }
}

/// Goes on until the time is over or something is wrong; then the root is kept.
pub fn run(options: &Options) -> Result<Report> {
    let directory = tempfile::Builder::new().prefix("bailiwick-torture-").tempdir_in("/var/tmp")?;
    let mut torture = Torture::begin(options, directory.path().to_owned())?;
    let ended = torture.go_on(options.time);
    let state = if ended.is_err() { torture.describe() } else { String::new() };
    let stopped = torture.end();
    let told = match ended.and(stopped) {
        Ok(()) => return Ok(torture.report),
        Err(error) => error,
    };
    let root = directory.keep();
    let steps = torture.told.iter().rev().take(12).rev().cloned().collect::<Vec<_>>().join("\n");
    bail!(
        "{told:#}\n--- seed {}, step {}: SECONDS={} SEED={} make torture\n--- kept: {}\n--- last steps\n{steps}\n--- host\n{state}",
        options.seed,
        torture.report.steps,
        options.time.as_secs(),
        options.seed,
        root.display()
    )
}

/// A bystander as it has to stay.
#[derive(Debug, PartialEq)]
struct Still {
    pid: Option<i64>,
    state: String,
    run: u64,
}

struct Torture {
    host: Option<Host>,
    root: PathBuf,
    dice: Dice,
    operations: Operations,
    clients: Clients,
    held: Option<Held>,
    still: BTreeMap<&'static str, Still>,
    /// What the world may be: more than one where a command was cut short that may still be carried out.
    worlds: Vec<World>,
    /// How many the keeper and the daemon held at first; none: that is not looked at.
    descriptors: Option<(usize, usize)>,
    usual: BTreeMap<&'static str, Duration>,
    told: Vec<String>,
    report: Report,
    crashes: u32,
}

/// What may come of `worlds`; of a command that says it was done, that it was.
fn outcomes_of(worlds: &[World], operation: &Operation, code: Option<i32>) -> Vec<World> {
    let all = worlds.iter().flat_map(|world| {
        let mut outcomes = operation.outcomes(world);
        outcomes.drain(..if code == Some(0) { outcomes.len() - 1 } else { 0 });
        outcomes
    });
    all.collect::<BTreeSet<World>>().into_iter().collect()
}

/// Waits for a command; its exit code, where it lived to have one.
fn finish(child: &mut Child, operation: &Operation) -> Result<Option<i32>> {
    if child.try_wait()?.is_none() && !ended_within(child, COMMAND)? {
        child.kill()?;
        child.wait()?;
        bail!("`{operation}` has not ended after {COMMAND:?}");
    }
    let status = child.wait()?;
    Ok(status.code().filter(|_| status.signal().is_none()))
}

impl Torture {
    fn begin(options: &Options, root: PathBuf) -> Result<Self> {
        let layers = site::layers(&root.join("layers"))?;
        let versions = [0, 1].map(|n| root.join(format!("version{n}")));
        fs::create_dir(&versions[0])?;
        for name in versions::NAMES {
            fs::copy(programs().join(name), versions[0].join(name))?;
        }
        versions::copy(&versions[1])?;
        let pool = if options.has_pool() { "16MiB" } else { "0B" };
        let config = format!("pool = {{ memory = \"{pool}\" }}");
        let host_options = HostOptions { root: Some(root.clone()), config, layers: Some(layers) };
        let host = Host::start(host_options)?;
        let operations = Operations::new(&root.join("files"), versions)?;
        host.apply("beta.toml", &site::bystanders())?;
        for (vps, action) in [("calm", "start"), ("site", "start"), ("frost", "start"), ("frost", "freeze")] {
            host.run(&[action, vps])?;
        }
        host.run(&["stop", "dorm"])?;
        host.run(&["apply", &operations.spec(&["web", "store", "hold"], "mark-0")?])?;
        host.run(&["stop", "hold"])?;
        site::cargo(&root.join("files/cargo"), "mark-0")?;
        host.run(&["volume", "import", "acme/cargo", &root.join("files/cargo").to_string_lossy()])?;
        // Their first start makes their volumes.
        host.run(&["start", "web", "store"])?;
        host.run(&["stop", "web", "store"])?;
        // Spares come and go when they like.
        let descriptors = if options.has_pool() { None } else { Some(descriptors(&host)?) };
        let clients = Clients::start(options.seed);
        let mut this = Self {
            host: Some(host),
            root,
            dice: Dice::new(options.seed),
            operations,
            clients,
            held: Some(Held::open()?),
            still: BTreeMap::new(),
            worlds: Vec::new(),
            descriptors,
            usual: BTreeMap::new(),
            told: Vec::new(),
            report: Report::default(),
            crashes: 0,
        };
        let rows = json(&this.root, "/v1/vps?all=true")?;
        this.worlds = vec![World::observe(this.host()?, &rows)?];
        this.still = this.bystanders(&rows)?;
        Ok(this)
    }

    fn host(&self) -> Result<&Host> {
        self.host.as_ref().context("there is no host")
    }

    fn go_on(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.step()?;
        }
        // At the end what may still be carried out must have been.
        self.settle(&self.worlds.clone())?;
        let _ = fs::remove_file(self.root.join("command.in"));
        let held = std::process::Command::new("grep").args(["-rlaF", SECRET]).arg(&self.root).output()?;
        ensure!(held.stdout.is_empty(), "a secret can be read in {}", String::from_utf8_lossy(&held.stdout));
        self.rest()
    }

    /// With nobody up but bystanders, keeper and daemon hold what they held at first.
    fn rest(&mut self) -> Result<()> {
        self.clients.end();
        let Some(first) = self.descriptors else { return Ok(()) };
        for name in ["born", "copy"] {
            if self.worlds.iter().any(|world| world.vps.contains_key(name)) {
                self.host()?.cli(&["delete", name, "--volumes", "--yes"])?;
            }
        }
        self.host()?.run(&["stop", "web", "store", "hold"])?;
        self.held = None;
        let begun = Instant::now();
        loop {
            let now = descriptors(self.host()?)?;
            // The daemon keeps some of what it may need again.
            if now.0 <= first.0 && now.1 <= first.1 + 8 {
                return Ok(());
            }
            let told = || format!("keeper and daemon hold {now:?} descriptors, and held {first:?} at first");
            ensure!(begun.elapsed() < SETTLES, "{}", told());
            std::thread::sleep(AGAIN);
        }
    }

    /// One operation, and somebody who is killed meanwhile.
    fn step(&mut self) -> Result<()> {
        self.report.steps += 1;
        let operation = self.operations.any(&mut self.dice, &self.worlds[0])?;
        for words in &operation.first {
            // It may be refused: what is asked for is so already, or another is in the way.
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            self.host()?.cli(&words)?;
        }
        let beside = if self.dice.one_in(3) { self.operations.beside(&operation)? } else { None };
        let with = beside.as_ref().map(|beside| format!(" beside {beside}"));
        self.tell(format!("{} {operation}{}", self.report.steps, with.unwrap_or_default()));
        let begun = Instant::now();
        let (code, beside_code) = self.killed(&operation, beside.as_ref())?;
        let mut outcomes = outcomes_of(&self.worlds, &operation, code);
        if let Some(beside) = &beside {
            outcomes = outcomes_of(&outcomes, beside, beside_code);
        }
        let counts = self.report.operations.entry(operation.kind).or_default();
        *(if code == Some(0) { &mut counts.1 } else { &mut counts.0 }) += 1;
        let settling = Instant::now();
        let world = self.settle(&outcomes).with_context(|| format!("after `{operation}` (exit {code:?})"))?;
        let took = settling.elapsed();
        if took > self.report.slowest.0 {
            self.report.slowest = (took, format!("step {}, `{operation}`", self.report.steps));
        }
        self.tell(format!("  settled after {took:?}; in all {:?}", begun.elapsed()));
        self.worlds = vec![world.clone()];
        // Who was cut off does not know: what was asked for may still come, but then whole.
        let cut = [(Some(&operation), code), (beside.as_ref(), beside_code)];
        for operation in cut.into_iter().filter_map(|(operation, code)| operation.filter(|_| code != Some(0))) {
            let more: BTreeSet<World> = self.worlds.iter().flat_map(|world| operation.outcomes(world)).collect();
            self.worlds.extend(more.into_iter().filter(|other| *other != world));
            self.worlds.dedup();
        }
        if self.dice.one_in(4) {
            self.do_whole(&operation)?;
        }
        Ok(())
    }

    /// Does once more what was cut short, now that nobody is killed.
    fn do_whole(&mut self, operation: &Operation) -> Result<()> {
        // What is made already, or gone, is refused.
        let once = ["make", "delete", "import", "volume rm", "image prune", "upgrade", "secret set", "secret rm"];
        if once.contains(&operation.kind) {
            return Ok(());
        }
        let words: Vec<_> = operation.first.iter().chain([&operation.words]).collect();
        let mut answer = None;
        for words in words {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            answer = Some(self.host()?.cli(&words)?);
        }
        let answer = answer.context("no command")?;
        // Between two commands somebody may have come or gone.
        let refused = answer.code == 4 && ["freeze", "thaw", "volume import"].contains(&operation.kind);
        ensure!(answer.code == 0 || refused, "`{operation}` does not work any more: {answer:?}");
        let whole: Vec<World> = if refused {
            self.worlds.clone()
        } else {
            self.worlds.iter().filter_map(|world| operation.outcomes(world).pop()).collect()
        };
        self.tell("  done again".to_owned());
        let world = self.settle(&whole).with_context(|| format!("after `{operation}`, done again"))?;
        self.worlds = vec![world];
        Ok(())
    }

    /// Runs the command, and one beside it, and kills; their exit codes, where they lived to have one.
    fn killed(&mut self, operation: &Operation, beside: Option<&Operation>) -> Result<(Option<i32>, Option<i32>)> {
        let shared = self.clients.shared.clone();
        if operation.kind == "upgrade" {
            shared.cut.store(true, Relaxed);
        }
        let usual = self.usual.get(operation.kind).copied();
        let within = usual.unwrap_or(Duration::from_millis(200));
        let mut moment = within.mul_f64(self.dice.part() * 1.1);
        // Now and then nobody is, which says how long it usually takes.
        let kills = if usual.is_none() || self.dice.one_in(10) { 0 } else { 1 + self.dice.below(3) };
        let begun = Instant::now();
        let mut child = self.spawn(operation, "command.log")?;
        let mut other = beside.map(|beside| self.spawn(beside, "beside.log")).transpose()?;
        for _ in 0..kills {
            // The moment is the point: no event says when it is.
            std::thread::sleep(moment);
            self.kill(&mut child)?;
            moment = within.mul_f64(self.dice.part() * 0.5);
        }
        let code = finish(&mut child, operation)?;
        let other = match (&mut other, beside) {
            (Some(other), Some(beside)) => finish(other, beside)?,
            _ => None,
        };
        let took = begun.elapsed();
        if code == Some(0) && kills == 0 {
            self.usual.insert(operation.kind, usual.map_or(took, |usual| (usual * 2 + took) / 3));
        }
        let said = fs::read_to_string(self.root.join("command.log")).unwrap_or_default();
        self.tell(format!("  exit {code:?} after {took:?}: {}", said.lines().collect::<Vec<_>>().join(" | ")));
        Ok((code, other))
    }

    fn spawn(&self, operation: &Operation, log: &str) -> Result<Child> {
        let words: Vec<_> = operation.words.iter().map(String::as_str).collect();
        let output = fs::File::create(self.root.join(log))?;
        let input = self.root.join("command.in");
        fs::write(&input, &operation.input)?;
        let mut command = self.host()?.command(&words);
        Ok(command.stdin(fs::File::open(&input)?).stdout(output.try_clone()?).stderr(output).spawn()?)
    }

    fn kill(&mut self, command: &mut Child) -> Result<()> {
        if self.dice.one_in(60) {
            return self.crash();
        }
        if self.dice.one_in(8) && command.try_wait()?.is_none() {
            self.tell("  killed: the command".to_owned());
            *self.report.kills.entry("command".to_owned()).or_default() += 1;
            return Ok(command.kill()?);
        }
        let cgroup = victims::cgroup(&self.root);
        let keeper = self.host()?.keeper();
        let all = victims::all(keeper, &cgroup);
        let Some(victim) = victims::choose(&mut self.dice, &all, |vps| BYSTANDERS.contains(&vps)) else {
            return Ok(());
        };
        if victim.vps.as_deref() == Some("gateway") {
            self.clients.shared.cut.store(true, Relaxed);
        }
        if victims::kill(&victim, keeper, &cgroup) {
            self.tell(format!("  killed: {victim}"));
            let who = match &victim.vps {
                Some(vps) => format!("{vps}'s {}", victim.role),
                None => victim.role.to_owned(),
            };
            *self.report.kills.entry(who).or_default() += 1;
        }
        Ok(())
    }

    /// The keeper's end is the host's: it comes back with what it had, and everything starts anew.
    fn crash(&mut self) -> Result<()> {
        self.clients.shared.down.store(true, Relaxed);
        self.tell("  killed: the keeper".to_owned());
        *self.report.kills.entry("keeper".to_owned()).or_default() += 1;
        let mut host = self.host.take().context("there is no host")?;
        host.crash()?;
        self.crashes += 1;
        let _ =
            fs::rename(self.root.join("bailiwickd.log"), self.root.join(format!("bailiwickd.log.{}", self.crashes)));
        self.host = Some(host.again().context("the host does not come back after its keeper was killed")?);
        Ok(())
    }

    /// Waits until the host is itself again; what it has then, which is one of `outcomes`.
    fn settle(&mut self, outcomes: &[World]) -> Result<World> {
        let begun = Instant::now();
        let down = self.clients.shared.down.load(Relaxed);
        let mut outcomes = outcomes.to_vec();
        if down {
            self.revive()?;
            // It was started with the programs that were built, whatever it ran before.
            let built = programs().to_string_lossy().into_owned();
            outcomes.iter_mut().for_each(|world| world.programs = [built.clone()].into());
        }
        let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
        let world = loop {
            match self.look(&outcomes) {
                Ok(world) => break world,
                Err(error) if error.is::<clients::Lost>() => return Err(error),
                Err(error) => *reasons.entry(format!("{error:#}")).or_default() += 1,
            }
            if begun.elapsed() > SETTLES {
                // What was so most often is what keeps it.
                let mut reasons: Vec<_> = reasons.into_iter().collect();
                reasons.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
                reasons.truncate(5);
                bail!("not settled after {SETTLES:?}: {reasons:#?}");
            }
            std::thread::sleep(AGAIN);
        };
        let rows = json(&self.root, "/v1/vps?all=true")?;
        let now = self.bystanders(&rows)?;
        if down {
            self.still = now;
            self.held = None;
        } else {
            ensure!(now == self.still, "a bystander was touched: {now:?} was {:?}", self.still);
        }
        match &mut self.held {
            Some(held) => match held.ping() {
                Err(_) if self.clients.shared.cut.load(Relaxed) => self.held = Some(Held::open()?),
                pinged => pinged.context("a bystander's connection")?,
            },
            None => self.held = Some(Held::open()?),
        }
        self.clients.shared.down.store(false, Relaxed);
        self.clients.shared.cut.store(false, Relaxed);
        let wrong = self.clients.shared.take_wrong();
        ensure!(wrong.is_empty(), "clients: {wrong:?}");
        Ok(world)
    }

    /// After a crash the bystanders are brought to where they were: nobody had asked for that.
    fn revive(&mut self) -> Result<()> {
        for (vps, action) in [("frost", "start"), ("frost", "freeze"), ("calm", "start"), ("site", "start")] {
            let mut answer = self.host()?.cli(&[action, vps])?;
            if answer.code == UNAVAILABLE {
                // Who serves it was killed after the keeper.
                answer = self.host()?.cli(&[action, vps])?;
            }
            ensure!(answer.code == 0, "{action} {vps} after a crash: {answer:?}");
        }
        Ok(())
    }

    /// Whether all is as it has to be, by now.
    fn look(&mut self, outcomes: &[World]) -> Result<World> {
        let host = self.host()?;
        host.daemon()?;
        let upgrading = fs::read(self.root.join("run/upgrade")).ok();
        if let Some(upgrading) = upgrading.and_then(|text| serde_json::from_slice::<Value>(&text).ok()) {
            ensure!(
                ["done", "failed"].contains(&upgrading["step"].as_str().unwrap_or_default()),
                "it goes on: {upgrading}"
            );
        }
        let rows = json(&self.root, "/v1/vps?all=true")?;
        for row in &rows {
            let (name, state) = (row["name"].as_str().unwrap_or_default(), row["state"].as_str().unwrap_or_default());
            if row["tenant"].is_null() {
                ensure!(state == "running", "{name} is {state}");
            } else if state == "failed" {
                // Who was killed too often waits for long: a person may have it started at once.
                host.cli(&["start", name])?;
                bail!("{name} is {state}: {row}");
            }
            ensure!(["running", "asleep", "frozen"].contains(&state), "{name} is {state}");
        }
        let world = World::observe(host, &rows)?;
        let differs = || outcomes.iter().map(|outcome| world.differs(outcome)).collect::<Vec<_>>().join("; or ");
        ensure!(outcomes.contains(&world), "the world is another: {}", differs());
        let left = leftovers::find(host, &world, &rows)?;
        ensure!(left.is_empty(), "left over: {left:#?}");
        clients::counted(&self.clients.shared)?;
        clients::page()?;
        Ok(world)
    }

    fn bystanders(&self, rows: &[Value]) -> Result<BTreeMap<&'static str, Still>> {
        let still = |name: &'static str| {
            let row = rows.iter().find(|row| row["name"] == name).with_context(|| format!("there is no {name}"))?;
            let run = fs::read_to_string(self.root.join("lib/vps").join(name).join("runs")).unwrap_or_default();
            let state = row["state"].as_str().unwrap_or_default().to_owned();
            Ok((name, Still { pid: row["pid"].as_i64(), state, run: run.trim().parse().unwrap_or(0) }))
        };
        BYSTANDERS.into_iter().map(still).collect()
    }

    fn tell(&mut self, what: String) {
        use std::io::Write as _;
        let file = fs::File::options().create(true).append(true).open(self.root.join("torture.log"));
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{}.{:03} {what}", now.as_secs(), now.subsec_millis());
        }
        self.told.push(what);
    }

    /// What there is, for who looks for the cause.
    fn describe(&self) -> String {
        let mut text = String::new();
        let Some(host) = &self.host else { return text };
        for words in [&["ps", "--all"][..], &["services"], &["events"]] {
            match host.cli(words) {
                Ok(answer) => {
                    let _ = writeln!(text, "$ {}\n{}{}", words.join(" "), answer.out, answer.err);
                }
                Err(error) => {
                    let _ = writeln!(text, "$ {}\n{error:#}", words.join(" "));
                }
            }
        }
        for process in victims::all(host.keeper(), &victims::cgroup(&self.root)) {
            let _ = writeln!(text, "{process}");
        }
        for (who, pid) in [("keeper", Some(host.keeper())), ("daemon", host.daemon().ok())] {
            let entries =
                pid.map(|pid| fs::read_dir(format!("/proc/{pid}/fd"))).into_iter().flatten().flatten().flatten();
            let targets = entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()));
            let _ = writeln!(text, "{who} holds {}", targets.collect::<Vec<_>>().join(" "));
        }
        text + &host.daemon_log()
    }

    fn end(&mut self) -> Result<()> {
        let shared = self.clients.shared.clone();
        shared.down.store(true, Relaxed);
        self.held = None;
        self.report.answered = (shared.answered.load(Relaxed), Duration::from_millis(shared.worst_ms.load(Relaxed)));
        self.report.served = shared.served.load(Relaxed);
        self.report.acknowledged = shared.acknowledged.load(Relaxed);
        match &mut self.host {
            Some(host) => host.stop(),
            None => Ok(()),
        }
    }
}

/// How many descriptors keeper and daemon hold.
fn descriptors(host: &Host) -> Result<(usize, usize)> {
    let of = |pid: i32| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{pid}/fd"))?.count());
    Ok((of(host.keeper())?, of(host.daemon()?)?))
}

/// Whether it ends within that time.
fn ended_within(child: &Child, time: Duration) -> Result<bool> {
    let pid = Pid::from_raw(child.id() as i32).context("a pid")?;
    // A child that was not waited for keeps its number.
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout))? > 0)
}
