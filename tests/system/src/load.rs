//! New connections that keep coming, and what became of each.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// No attempt may wait longer.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// What became of the connections.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Answered, by the right VPS, in time.
    pub answered: u64,
    /// The connection attempt was refused or reset.
    pub refused: u64,
    /// The answer came after more than `PATIENCE`.
    pub late: u64,
    /// Another VPS answered.
    pub misrouted: u64,
    /// An error status or page came instead of the VPS's answer.
    pub errors: u64,
    /// The connection was there and ended before the whole answer.
    pub interrupted: u64,
    /// Worst time from connecting to the whole answer.
    pub worst: Duration,
    /// The first few things that went wrong.
    pub notes: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.late += other.late;
        self.misrouted += other.misrouted;
        self.errors += other.errors;
        self.interrupted += other.interrupted;
        self.worst = self.worst.max(other.worst);
        self.notes.extend(other.notes);
        self.notes.truncate(8);
    }
}

/// How one exchange ended.
#[derive(Debug)]
pub enum Ended {
    /// With these bytes.
    Answer(Vec<u8>),
    /// Before there was a connection.
    Refused(io::Error),
    /// After that.
    Interrupted(io::Error),
}

/// One HTTP request on a connection of its own.
pub fn http(address: SocketAddr, host: &str, path: &str, patience: Duration) -> Ended {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    exchange(address, request.as_bytes(), patience)
}

/// Sends a request and reads until the end.
pub fn exchange(address: SocketAddr, request: &[u8], patience: Duration) -> Ended {
    let mut stream = match TcpStream::connect_timeout(&address, patience) {
        Ok(stream) => stream,
        Err(error) => return Ended::Refused(error),
    };
    let mut answer = Vec::new();
    let mut talk = || {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(request)?;
        stream.read_to_end(&mut answer)
    };
    match talk() {
        Ok(_) if answer.is_empty() => Ended::Interrupted(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ended::Answer(answer),
        Err(error) => Ended::Interrupted(error),
    }
}

/// Clients that go on until they are stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// One client per entry: it asks `host` and expects `body` in the answer.
    pub fn start(address: SocketAddr, sites: &[(&str, &str)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |(host, body): &(&str, &str)| {
            let (stop, host, body) = (stop.clone(), (*host).to_owned(), (*body).to_owned());
            std::thread::spawn(move || {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    tally.add(once(address, &host, &body));
                }
                tally
            })
        };
        let clients = sites.iter().map(client).collect();
        Self { stop, clients }
    }

    /// Ends them and adds up.
    pub fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for client in self.clients {
            total.add(client.join().unwrap_or_default());
        }
        total
    }
}

fn once(address: SocketAddr, host: &str, body: &str) -> Tally {
    let start = Instant::now();
    let ended = http(address, host, "/", Duration::from_secs(10));
    let took = start.elapsed();
    let mut tally = Tally { worst: took, ..Tally::default() };
    match ended {
        Ended::Refused(error) => {
            tally.refused = 1;
            tally.notes.push(format!("{host}: refused after {took:?}: {error}"));
        }
        Ended::Interrupted(error) => {
            tally.interrupted = 1;
            tally.notes.push(format!("{host}: interrupted after {took:?}: {error}"));
        }
        Ended::Answer(answer) => {
            let text = String::from_utf8_lossy(&answer);
            if !text.starts_with("HTTP/1.1 200 ") {
                tally.errors = 1;
                tally.notes.push(format!("{host}: {} after {took:?}", text.lines().next().unwrap_or_default()));
            } else if !text.contains(body) {
                tally.misrouted = 1;
                tally.notes.push(format!("{host}: answered by another: {}", text.lines().last().unwrap_or_default()));
            } else {
                tally.answered = 1;
            }
        }
    }
    if took > PATIENCE {
        tally.late = 1;
        tally.notes.push(format!("{host}: took {took:?}"));
    }
    tally
}
