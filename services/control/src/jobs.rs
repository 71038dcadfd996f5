//! Jobs: programs that are run inside VPSs at certain times.
//!
//! A time that was missed, since the host or this service was down or the job still ran, is made up for by one run, not
//! by several; two runs of one job never overlap. Jobs of one distance are spread over it by their names.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    JobName, VpsName,
    api::{ErrorKind, JobRow, JobRun, State as VpsState},
    limits::show_duration_ms,
    schedule::Schedule,
    spec::Job,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

use crate::{
    api::{ApiError, reach},
    busy::Busy,
    clock::unix_ms,
    driver::Vps,
    inside,
    life::Input,
    shared::Control,
    store::JobKey,
};

/// Jobs that wake their VPSs at the same time; the others come next.
const AT_ONCE: usize = 8;
/// The clock is looked at so often, since it may be set.
const LONGEST_SLEEP_MS: u64 = 30_000;

/// What is remembered of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Times up to this one, Unix time in milliseconds, have had their run.
    pub done_ms: u64,
    /// Its last run.
    pub last: Option<JobRun>,
    /// How often in a row it has failed.
    #[serde(default)]
    pub failures: u32,
}

/// All jobs.
#[derive(Debug)]
pub struct Jobs {
    known: Mutex<BTreeMap<JobKey, Known>>,
    changed: Notify,
    turns: Semaphore,
}

#[derive(Debug, Clone)]
struct Known {
    kept: Kept,
    running: bool,
}

/// What is to be run now.
struct Due {
    jobs: Vec<(Arc<Vps>, JobName, Job)>,
    /// What changed of what is remembered.
    noted: BTreeMap<JobKey, Kept>,
    /// When to look again.
    wake_at: u64,
}

fn phase(key: &JobKey) -> u64 {
    // FNV-1a: the times must not move with a restart or another version.
    let text = key.0.as_str().bytes().chain([b'/']).chain(key.1.as_str().bytes());
    text.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A schedule as a spec says it.
pub fn when(schedule: &Schedule) -> String {
    match schedule {
        Schedule::Every(ms) => format!("every {}", show_duration_ms(*ms)),
        Schedule::At(time) => format!("at {time}"),
        Schedule::Cron(cron) => cron.to_string(),
    }
}

impl Jobs {
    /// With what is remembered.
    pub fn new(stored: BTreeMap<JobKey, Kept>) -> Self {
        let known = stored.into_iter().map(|(key, kept)| (key, Known { kept, running: false })).collect();
        Self { known: Mutex::new(known), changed: Notify::new(), turns: Semaphore::new(AT_ONCE) }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<JobKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of all.
    pub fn all(&self) -> Vec<(JobKey, Kept)> {
        self.known().iter().map(|(key, known)| (key.clone(), known.kept.clone())).collect()
    }

    /// Takes over what is remembered of jobs that have not run here.
    pub fn remember(&self, jobs: BTreeMap<JobKey, Kept>) {
        let mut known = self.known();
        for (key, kept) in jobs {
            let job = known.entry(key).or_insert_with(|| Known { kept: kept.clone(), running: false });
            if job.kept.last.is_none() && !job.running {
                job.kept = kept;
            }
        }
        drop(known);
        self.changed();
    }

    /// Specs changed.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// The jobs of one VPS.
    pub fn rows(&self, vps: &Vps) -> Vec<JobRow> {
        let known = self.known();
        let row = |(name, job): (&JobName, &Job)| {
            let key = (vps.name.clone(), name.clone());
            let known = known.get(&key);
            JobRow {
                vps: vps.name.clone(),
                job: name.clone(),
                when: when(&job.schedule),
                run: job.run.clone(),
                next_ms: job.schedule.next(known.map_or_else(unix_ms, |known| known.kept.done_ms), phase(&key)),
                running: known.is_some_and(|known| known.running),
                failures: known.map_or(0, |known| known.kept.failures),
                last: known.and_then(|known| known.kept.last.clone()),
            }
        };
        vps.spec().jobs.iter().map(row).collect()
    }

    /// What a person should know of a VPS's jobs.
    pub fn note(&self, vps: &Vps) -> Option<String> {
        let spec = vps.spec();
        if spec.jobs.is_empty() {
            return None;
        }
        let known = self.known();
        spec.jobs.keys().find_map(|name| {
            let kept = &known.get(&(vps.name.clone(), name.clone()))?.kept;
            let result = &kept.last.as_ref().filter(|_| kept.failures > 0)?.result;
            let often = if kept.failures > 1 { format!(", {} times in a row", kept.failures) } else { String::new() };
            Some(format!("job {name}: {result}{often}"))
        })
    }

    /// What is due at `now`, and when to look again. What is due counts as running.
    fn take_due(&self, vpss: &[Arc<Vps>], now: u64) -> Due {
        let mut known = self.known();
        let mut due = Due { jobs: Vec::new(), noted: BTreeMap::new(), wake_at: now + LONGEST_SLEEP_MS };
        for vps in vpss {
            let spec = vps.spec();
            for (name, job) in &spec.jobs {
                let key = (vps.name.clone(), name.clone());
                let job_known = known.entry(key.clone()).or_insert_with(|| {
                    let kept = Kept { done_ms: now, last: None, failures: 0 };
                    due.noted.insert(key.clone(), kept.clone());
                    Known { kept, running: false }
                });
                // A clock that was set back must not keep a job from running.
                job_known.kept.done_ms = job_known.kept.done_ms.min(now);
                if job_known.running {
                    continue;
                }
                match job.schedule.next(job_known.kept.done_ms, phase(&key)) {
                    Some(at) if at <= now => {
                        job_known.running = true;
                        job_known.kept.done_ms = now;
                        due.noted.insert(key, job_known.kept.clone());
                        due.jobs.push((vps.clone(), name.clone(), job.clone()));
                    }
                    Some(at) => due.wake_at = due.wake_at.min(at),
                    None => {}
                }
            }
        }
        due
    }
}

/// Runs jobs when they are due.
pub async fn keep(control: Arc<Control>) {
    loop {
        let now = unix_ms();
        let vpss: Vec<_> = control.all().values().cloned().collect();
        let Due { jobs, noted, wake_at } = control.jobs.take_due(&vpss, now);
        remember(&control, noted);
        for (vps, name, job) in jobs {
            let (control, by) = (control.clone(), when(&job.schedule));
            tokio::spawn(async move { run(&control, &vps, &name, &job, by).await });
        }
        let pause = Duration::from_millis(wake_at.saturating_sub(unix_ms()).max(1));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = control.jobs.changed.notified() => {}
        }
    }
}

/// Nobody waits for the disk: what is lost with it is at most that a run is repeated.
fn remember(control: &Arc<Control>, jobs: BTreeMap<JobKey, Kept>) {
    if jobs.is_empty() {
        return;
    }
    let store = control.store.clone();
    tokio::spawn(async move {
        if let Err(error) = store.run(move |store| store.put_jobs(&jobs)).await {
            tracing::error!(%error, "the times of jobs could not be kept");
        }
    });
}

/// Runs a job because a person asked for it.
pub async fn run_now(control: &Arc<Control>, vps: &Arc<Vps>, name: &JobName, by: &str) -> Result<JobRun, ApiError> {
    let job = vps.spec().jobs.get(name).cloned().ok_or_else(|| {
        let message = format!("vps \"{}\" has no job \"{name}\"", vps.name);
        ApiError::new(ErrorKind::NotFound, message).next(format!("bailiwick jobs {}", vps.name))
    })?;
    let key = (vps.name.clone(), name.clone());
    {
        let mut known = control.jobs.known();
        let kept = Kept { done_ms: unix_ms(), last: None, failures: 0 };
        let known = known.entry(key).or_insert(Known { kept, running: false });
        if std::mem::replace(&mut known.running, true) {
            let message = format!("job \"{name}\" of vps \"{}\" runs already", vps.name);
            return Err(ApiError::new(ErrorKind::Conflict, message).next(format!("bailiwick jobs {}", vps.name)));
        }
    }
    let (control, vps, name, by) = (control.clone(), vps.clone(), name.clone(), by.to_owned());
    // Who asked may go away; the job goes on.
    let task = tokio::spawn(async move { run(&control, &vps, &name, &job, by).await });
    task.await.map_err(|error| ApiError::new(ErrorKind::Failed, format!("the job's task ended: {error}")))
}

/// Runs a job that counts as running, and keeps what became of it.
async fn run(control: &Arc<Control>, vps: &Arc<Vps>, name: &JobName, job: &Job, by: String) -> JobRun {
    let at_ms = unix_ms();
    control.history.record(Some(&vps.name), "job", format!("{name}: {}", job.run.join(" ")), by.clone());
    let run = match attempt(control, vps, name, job).await {
        Ok(ended) => {
            let limit = || format!("killed after {}", show_duration_ms(job.timeout_ms));
            let result = ended.error.or(ended.status.map(|s| s.to_string())).unwrap_or_else(limit);
            let (took_ms, output) = (ended.took.as_millis() as u64, ended.output);
            JobRun { at_ms, took_ms, result, status: ended.status.map(|s| s.shell_code()), output, by }
        }
        Err(reason) => {
            let took_ms = unix_ms().saturating_sub(at_ms);
            JobRun { at_ms, took_ms, result: reason, status: None, output: String::new(), by }
        }
    };
    let key = (vps.name.clone(), name.clone());
    let kept = control.jobs.known().get_mut(&key).map(|known| {
        known.running = false;
        known.kept.failures = if run.success() { 0 } else { known.kept.failures + 1 };
        known.kept.last = Some(run.clone());
        known.kept.clone()
    });
    let (what, took) = (if run.success() { "job-done" } else { "job-failed" }, show_duration_ms(run.took_ms));
    control.history.record(Some(&vps.name), what, format!("{name}: {} after {took}", run.result), "");
    remember(control, kept.map(|kept| (key, kept)).into_iter().collect());
    // Its next time may have come meanwhile.
    control.jobs.changed();
    run
}

async fn attempt(control: &Arc<Control>, vps: &Arc<Vps>, name: &JobName, job: &Job) -> Result<inside::Ended, String> {
    let busy = {
        let _turn = control.jobs.turns.acquire().await;
        let busy = Busy::begin(vps.clone()).await;
        let woken = reach(vps, Input::Job(format!("job {name}")), VpsState::Running).await;
        woken.map_err(|error| error.0.message)?;
        busy
    };
    let limit = Duration::from_millis(job.timeout_ms);
    let ended = inside::run(control, &vps.name, &vps.spec(), &job.run, job.user.as_deref(), limit).await;
    drop(busy);
    ended.map_err(|fault| fault.to_string())
}

/// Drops what is remembered of a VPS that was deleted.
pub fn forget(control: &Control, vps: &VpsName) {
    control.jobs.known().retain(|(name, _), _| name != vps);
}
