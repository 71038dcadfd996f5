//! Clients that go on all the while: of a bystander, of a web server that comes and goes, of a database that acknowledges.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    dice::Dice,
    site::{CALM, SITE, STORE, WEB},
};
use crate::load::{Ended, http};

/// No exchange may take longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What clients share with who kills.
#[derive(Debug, Default)]
pub struct Shared {
    /// They are to end.
    over: AtomicBool,
    /// The whole host is down: nothing is to be had.
    pub down: AtomicBool,
    /// The gateway was killed: connections that it relayed end.
    pub cut: AtomicBool,
    /// The highest number that the database has acknowledged.
    pub acknowledged: AtomicU64,
    /// Requests to the bystander that were answered.
    pub answered: AtomicU64,
    /// The longest that one of them took, in milliseconds.
    pub worst_ms: AtomicU64,
    /// Requests to the web server that were answered by it.
    pub served: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// What went wrong since this was asked last.
    pub fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.wrong.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All clients; they end when this is dropped.
#[derive(Debug)]
pub struct Clients {
    /// What they say.
    pub shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Clients {
    /// Starts them.
    pub fn start(seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |client: fn(&Shared, Dice), seed: u64| {
            let shared = shared.clone();
            std::thread::spawn(move || client(&shared, Dice::new(seed)))
        };
        let threads = vec![spawn(bystander, seed), spawn(surfer, seed + 1), spawn(writer, seed + 2)];
        Self { shared, threads }
    }
}

impl Clients {
    /// Has them end, and waits for that.
    pub fn end(&mut self) {
        self.shared.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.end();
    }
}

/// A pause in which the gateway may come to think that nobody is there.
fn pause(shared: &Shared, dice: &mut Dice, longest_ms: usize) {
    let until = Instant::now() + Duration::from_millis(dice.below(longest_ms) as u64);
    while Instant::now() < until && !shared.over.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nobody is refused, and nothing but the right answer comes.
fn bystander(shared: &Shared, mut dice: Dice) {
    while !shared.over.load(Relaxed) {
        let excused = || shared.down.load(Relaxed);
        let (excused_before, begun) = (excused(), Instant::now());
        let ended = http(local(SITE), "site.test", "/", PATIENCE);
        let took = begun.elapsed();
        if excused_before || excused() {
            pause(shared, &mut dice, 50);
            continue;
        }
        match ended {
            Ended::Answer(answer) if String::from_utf8_lossy(&answer).ends_with("hello from site\n") => {
                shared.answered.fetch_add(1, Relaxed);
                shared.worst_ms.fetch_max(took.as_millis() as u64, Relaxed);
            }
            Ended::Answer(answer) if answer.starts_with(b"HTTP/1.1 200") && shared.cut.load(Relaxed) => {}
            Ended::Answer(answer) => {
                shared.wrong(format!("site answered after {took:?}: {}", String::from_utf8_lossy(&answer)));
            }
            Ended::Interrupted(_) if shared.cut.load(Relaxed) => {}
            Ended::Interrupted(error) => shared.wrong(format!("a request to site was cut off after {took:?}: {error}")),
            Ended::Refused(error) => shared.wrong(format!("a connection to site was refused after {took:?}: {error}")),
        }
        pause(shared, &mut dice, 40);
    }
}

/// Asks the web server now and then; whatever it answers must be its own.
fn surfer(shared: &Shared, mut dice: Dice) {
    while !shared.over.load(Relaxed) {
        if let Ended::Answer(answer) = http(local(WEB), "web.test", "/", PATIENCE) {
            let answer = String::from_utf8_lossy(&answer);
            if answer.starts_with("HTTP/1.1 200") && answer.ends_with(" of web\n") {
                shared.served.fetch_add(1, Relaxed);
            } else if answer.starts_with("HTTP/1.1 200") && !shared.cut.load(Relaxed) {
                let _ = answer.contains("mark-") || {
                    shared.wrong(format!("web answered {answer}"));
                    true
                };
            }
        }
        pause(shared, &mut dice, 2500);
    }
}

/// A connection to the database.
struct Redis {
    to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Redis {
    fn connect() -> Result<Self> {
        let stream = TcpStream::connect_timeout(&local(STORE), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { to: stream.try_clone()?, from: BufReader::new(stream) })
    }

    fn ask(&mut self, words: &str) -> Result<String> {
        self.to.write_all(format!("{words}\r\n").as_bytes())?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the database hung up");
        Ok(line.trim_end().to_owned())
    }
}

/// Counts, for a while each time.
fn writer(shared: &Shared, mut dice: Dice) {
    while !shared.over.load(Relaxed) {
        let until = Instant::now() + Duration::from_millis(dice.below(1500) as u64);
        if let Ok(mut redis) = Redis::connect() {
            while Instant::now() < until && !shared.over.load(Relaxed) {
                let Ok(answer) = redis.ask("INCR n") else { break };
                let Some(n) = answer.strip_prefix(':').and_then(|n| n.parse().ok()) else { break };
                shared.acknowledged.fetch_max(n, Relaxed);
            }
        }
        pause(shared, &mut dice, 2500);
    }
}

/// Asks the database for what it has counted: what was acknowledged before must be there.
pub fn counted(shared: &Shared) -> Result<u64> {
    let acknowledged = shared.acknowledged.load(Relaxed);
    let mut redis = Redis::connect()?;
    // Of two lines the first says how long the second is.
    let length = redis.ask("GET n")?;
    let n: u64 = match length.as_str() {
        "$-1" => 0,
        text if text.starts_with('$') => {
            let mut line = String::new();
            redis.from.read_line(&mut line)?;
            line.trim_end().parse()?
        }
        other => bail!("the database says {other}"),
    };
    if n < acknowledged {
        return Err(anyhow::Error::new(Lost { acknowledged, n }));
    }
    Ok(n)
}

/// What must never be.
#[derive(Debug)]
pub struct Lost {
    acknowledged: u64,
    n: u64,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "the database has counted to {}, but had acknowledged {}", self.n, self.acknowledged)
    }
}

impl std::error::Error for Lost {}

/// Asks the web server; the next request works, whatever was killed.
pub fn page() -> Result<()> {
    match http(local(WEB), "web.test", "/", PATIENCE) {
        Ended::Answer(answer) if String::from_utf8_lossy(&answer).ends_with(" of web\n") => Ok(()),
        Ended::Answer(answer) => bail!("web answers {}", String::from_utf8_lossy(&answer)),
        other => bail!("web: {other:?}"),
    }
}

/// A connection to the bystander that echoes.
#[derive(Debug)]
pub struct Held(TcpStream);

impl Held {
    /// Connects, and sees that it is answered.
    pub fn open() -> Result<Self> {
        let stream = TcpStream::connect_timeout(&local(CALM), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut held = Self(stream);
        held.ping()?;
        Ok(held)
    }

    /// Whether it still is.
    pub fn ping(&mut self) -> Result<()> {
        self.0.write_all(b"ping\n")?;
        let mut answer = [0; 5];
        std::io::Read::read_exact(&mut self.0, &mut answer).context("the held connection")?;
        ensure!(&answer == b"ping\n", "the echo is another: {answer:?}");
        Ok(())
    }
}
