//! Which logs there are, and which were written to: what the host says, and inotify(7) on the files it hands over.

use std::{
    collections::HashMap,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use model::{VpsName, api::ErrorKind};
use rustix::fs::inotify;
use tokio::{io::unix::AsyncFd, sync::mpsc};
use wire::{
    Client, Fault,
    host::{Events, Logs, Statuses},
};

use crate::shared::Shared;

/// Pause before the host is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// How soon it is looked again for the file that follows one that was moved away.
const BETWEEN: Duration = Duration::from_millis(20);
/// How often logs are looked at where the kernel does not tell of changes.
const POLL: Duration = Duration::from_secs(1);

/// What comes.
enum News {
    /// The host's; whole after each time that it was asked anew.
    Statuses(Statuses, bool),
    /// The kernel's.
    Written,
    /// Files are wanted.
    Ask,
    /// It is time to look.
    Poll,
}

/// Follows until the end.
pub async fn run(shared: Arc<Shared>, host: Client) {
    let (sender, mut statuses) = mpsc::channel(16);
    tokio::spawn(follow(host.clone(), sender));
    let mut watches = Watches::new();
    let (mut listed, mut begun) = (false, false);
    loop {
        let news = tokio::select! {
            said = statuses.recv() => match said {
                Some((statuses, whole)) => News::Statuses(statuses, whole),
                None => return,
            },
            () = watches.written() => News::Written,
            () = shared.asks.notified() => News::Ask,
            () = tokio::time::sleep(BETWEEN), if shared.is_between() => News::Ask,
            () = tokio::time::sleep(POLL), if watches.missing => News::Poll,
        };
        match news {
            News::Statuses(statuses, whole) => {
                listed |= whole;
                shared.statuses(statuses, whole);
            }
            News::Written => watches.take(&shared),
            News::Ask => {}
            News::Poll => shared.mark_all(),
        }
        for name in shared.asking() {
            if let Err(fault) = ask(&shared, &host, &name, &mut watches).await {
                tracing::warn!(vps = %name, %fault, "its log can't be opened; trying again");
                tokio::time::sleep(PAUSE).await;
                shared.asks.notify_one();
            }
        }
        if listed && !std::mem::replace(&mut begun, listed) {
            shared.save();
            shared.begun.notify_one();
        }
    }
}

async fn ask(shared: &Shared, host: &Client, name: &VpsName, watches: &mut Watches) -> Result<(), Fault> {
    let files = match host.call_with_fds(&Logs { name: name.clone() }, &[]).await {
        Ok((_, fds)) => fds.into_iter().map(File::from).collect(),
        Err(fault) if fault.kind == ErrorKind::NotFound => Vec::new(),
        Err(fault) => return Err(fault),
    };
    if let Some(newest) = shared.answered(name, files)? {
        // What came between the last look and the watch; it may even have been rotated meanwhile.
        let new = watches.add(name, &newest);
        shared.mark(name, new, false);
    }
    Ok(())
}

/// Hands on what the host says, from the beginning again whenever that breaks.
async fn follow(host: Client, sender: mpsc::Sender<(Statuses, bool)>) {
    loop {
        let ended: Result<(), Fault> = async {
            let mut stream = host.stream(&Events {}).await?;
            let mut whole = true;
            while let Some(statuses) = stream.next().await? {
                if sender.send((statuses, whole)).await.is_err() {
                    return Ok(());
                }
                whole = false;
            }
            Ok(())
        }
        .await;
        if sender.is_closed() {
            return;
        }
        if let Err(fault) = ended {
            tracing::debug!(%fault, "the host's events broke; opening them again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

// What replaces it is unsafe; an `OwnedFd` keeps what that asks for.
#[allow(deprecated)]
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

struct Watches {
    events: Option<AsyncFd<OwnedFd>>,
    names: HashMap<i32, VpsName>,
    /// Whether a log could not be watched.
    missing: bool,
}

impl Watches {
    fn new() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let events = inotify::init(flags).map_err(io::Error::from).and_then(watched);
        let events = events.inspect_err(|error| tracing::warn!(%error, "logs are looked at once a second")).ok();
        Self { missing: events.is_none(), events, names: HashMap::new() }
    }

    /// Whether it was not watched before.
    fn add(&mut self, name: &VpsName, file: &File) -> bool {
        use inotify::WatchFlags;
        let Some(events) = &self.events else { return false };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = WatchFlags::MODIFY | WatchFlags::MOVE_SELF | WatchFlags::ATTRIB;
        match inotify::add_watch(events, path, flags) {
            Ok(watch) => self.names.insert(watch, name.clone()).is_none(),
            Err(error) => {
                if !self.missing {
                    tracing::warn!(vps = %name, %error, "its log can't be watched: logs are looked at once a second");
                }
                self.missing = true;
                false
            }
        }
    }

    async fn written(&self) {
        match &self.events {
            Some(events) => match events.readable().await {
                // `take` reads all there is: what comes later makes it ready again.
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, shared: &Shared) {
        use inotify::ReadFlags;
        let Some(events) = &self.events else { return };
        let mut buffer = [MaybeUninit::uninit(); 8 << 10];
        let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                shared.mark_all();
            }
            let ended = event.events().contains(ReadFlags::IGNORED);
            if let Some(name) = self.names.get(&event.wd()).filter(|_| !ended) {
                let (said, moved) = (event.events(), ReadFlags::MOVE_SELF);
                shared.mark(name, said != ReadFlags::MODIFY, said.contains(moved));
            }
            if ended {
                self.names.remove(&event.wd());
            }
        }
    }
}
