//! `volume import` and `volume export`.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use model::{
    VpsName,
    api::{ErrorKind, Event, VolumeMoved},
    limits::show_bytes,
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::part::Part;
use super::passphrase::Passphrase;
use crate::{
    arguments::VolumeRef,
    client::{Host, segment},
    failure::{Failure, Result},
    output,
};

/// Bytes of one part of a stream.
const CHUNK: usize = 64 << 10;
/// Parts that wait to be sent.
const WAITING: usize = 8;

/// Programs that unpack, by the first bytes of what they packed.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")];

fn path_of(volume: &VolumeRef) -> String {
    format!("/v1/volumes/{}/{}/content", segment(volume.tenant.as_str()), segment(volume.name.as_str()))
}

fn bar(what: &str, length: Option<u64>) -> ProgressBar {
    // Draws nothing where standard error is not a terminal.
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = match length {
        Some(_) => "{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
        None => "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}",
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Fills a volume.
pub async fn import(
    host: &Host,
    volume: VolumeRef,
    from: PathBuf,
    owner: Option<String>,
    replace: bool,
    json: bool,
) -> Result<()> {
    let mut path = format!("{}?replace={replace}", path_of(&volume));
    if let Some(owner) = &owner {
        path.push_str(&format!("&owner={}", segment(owner)));
    }
    let (moved, here) = send::<VolumeMoved>(host, &format!("volume {volume}"), &path, &from, None).await?;
    let moved = VolumeMoved { left_out: moved.left_out + here, ..moved };
    if json {
        return output::json(&moved);
    }
    let left_out = match moved.left_out {
        0 => String::new(),
        n => format!("; {n} devices and sockets were left out"),
    };
    output::line(&format!("volume {volume}: {} entries, {}{left_out}", moved.entries, show_bytes(moved.bytes)))
}

/// Sends what is in `from`; the answer, and how many devices and sockets were left out here.
pub(super) async fn send<T: DeserializeOwned>(
    host: &Host,
    what: &str,
    path: &str,
    from: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<(T, u64)> {
    let source = Source::open(from)?;
    let bar = bar(what, source.length());
    let (sender, receiver) = mpsc::channel(WAITING);
    let progress = bar.clone();
    // What can't be read breaks the stream off, so that the host takes none of it.
    let feeding = std::thread::spawn(move || source.feed(&mut Sending { sender, progress }));
    let sent = host.put_stream::<T>(path, receiver, passphrase).await;
    bar.finish_and_clear();
    let failed = |error: String| Failure::new(ErrorKind::Failed, format!("{}: {error}", from.display()));
    match sent {
        Ok(answer) => Ok((answer, feeding.join().ok().and_then(std::result::Result::ok).unwrap_or(0))),
        // Where the stream broke off here, the reason is here too.
        Err(failure) => match feeding.join() {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error.to_string())),
            _ => Err(failure),
        },
    }
}

/// Where a tar stream comes from.
enum Source {
    Directory(File),
    Plain(Box<dyn Read + Send>, Option<u64>),
    Packed(Child, &'static str),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let wrong = |error: io::Error| Failure::new(ErrorKind::Invalid, format!("{}: {error}", path.display()));
        if path == Path::new("-") {
            return Ok(Self::Plain(Box::new(io::stdin()), None));
        }
        let mut file = File::open(path).map_err(wrong)?;
        let data = file.metadata().map_err(wrong)?;
        if data.is_dir() {
            return Ok(Self::Directory(file));
        }
        if !data.is_file() {
            return Ok(Self::Plain(Box::new(file), None));
        }
        let mut first = Vec::new();
        Read::by_ref(&mut file).take(8).read_to_end(&mut first).map_err(wrong)?;
        io::Seek::rewind(&mut file).map_err(wrong)?;
        let Some((_, program)) = COMPRESSED.iter().find(|(magic, _)| first.starts_with(magic)) else {
            return Ok(Self::Plain(Box::new(file), Some(data.len())));
        };
        let child = Command::new(program).arg("-dc").stdin(file).stdout(Stdio::piped()).spawn();
        let missing = |error| {
            let message = format!("{} is packed by {program}, which can't be run: {error}", path.display());
            Failure::new(ErrorKind::Lacking, message).next(format!("install {program}"))
        };
        Ok(Self::Packed(child.map_err(missing)?, program))
    }

    fn length(&self) -> Option<u64> {
        match self {
            Self::Plain(_, length) => *length,
            _ => None,
        }
    }

    /// Sends it; how many devices and sockets were left out.
    fn feed(self, sending: &mut Sending) -> io::Result<u64> {
        let copy = |mut from: Box<dyn Read + Send>, to: &mut Sending| -> io::Result<()> {
            let mut buffer = vec![0; CHUNK];
            loop {
                match from.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => match read? {
                        0 => return Ok(()),
                        n => to.write_all(&buffer[..n])?,
                    },
                }
            }
        };
        let fed = match self {
            Self::Directory(directory) => {
                let mut packed = io::BufWriter::with_capacity(CHUNK, &mut *sending);
                let counts = archive::pack(directory.as_fd(), &mut packed, archive::Pack::Volume, &mut |_| Ok(()));
                counts.map(|counts| counts.left_out).map_err(io::Error::other)
            }
            Self::Plain(from, _) => copy(from, sending).map(|()| 0),
            Self::Packed(mut child, program) => {
                let copied = match child.stdout.take() {
                    Some(out) => copy(Box::new(out), sending),
                    None => Ok(()),
                };
                let status = child.wait()?;
                copied.and_then(|()| match status.success() {
                    true => Ok(0),
                    false => Err(io::Error::other(format!("{program} could not unpack it ({status})"))),
                })
            }
        };
        if let Err(error) = &fed {
            sending.break_off(error);
        }
        fed
    }
}

/// The body of a request.
struct Sending {
    sender: mpsc::Sender<io::Result<Bytes>>,
    progress: ProgressBar,
}

impl Sending {
    fn break_off(&self, error: &io::Error) {
        let _ = self.sender.blocking_send(Err(io::Error::other(error.to_string())));
    }
}

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.progress.inc(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a volume to a file, which appears when it is whole, or to standard output.
pub async fn export(host: &Host, volume: VolumeRef, to: Option<PathBuf>) -> Result<()> {
    let to = to.filter(|path| path != Path::new("-"));
    let what = format!("volume {volume}");
    let saving = Saving { what: &what, request: &path_of(&volume), passphrase: None, why: None };
    save(host, saving, to, &format!("bailiwick volume export {volume} FILE")).await
}

/// What is written to a file.
pub(super) struct Saving<'a> {
    /// For persons.
    pub what: &'a str,
    /// Where it is.
    pub request: &'a str,
    /// What seals secrets in it.
    pub passphrase: Option<Passphrase>,
    /// The VPS whose events say why it broke off.
    pub why: Option<&'a VpsName>,
}

/// Writes it to a file, which appears when it is whole, or to standard output.
pub(super) async fn save(host: &Host, saving: Saving<'_>, to: Option<PathBuf>, instead: &str) -> Result<()> {
    let since = SystemTime::now();
    match pour(host, &saving, to, instead).await {
        Err(failure) if failure.is_cut() => Err(match saving.why {
            Some(vps) => why(host, vps, since).await.unwrap_or(failure),
            None => failure,
        }),
        done => done,
    }
}

/// Why an export broke off: an answer that has begun can't say so itself.
async fn why(host: &Host, vps: &VpsName, since: SystemTime) -> Option<Failure> {
    let since = since.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64;
    let mut events = host.stream(Method::GET, "/v1/events", None::<&()>).await.ok()?;
    let mut found = None;
    while let Ok(Some(event)) = events.next::<Event>().await {
        let of_it = event.vps.as_ref() == Some(vps) && event.what == "export-failed" && event.at_ms >= since;
        found = of_it.then_some(event.detail).or(found);
    }
    Some(Failure::new(ErrorKind::Failed, format!("vps \"{vps}\" was not exported: {}", found?)))
}

async fn pour(host: &Host, saving: &Saving<'_>, to: Option<PathBuf>, instead: &str) -> Result<()> {
    let Saving { what, request, passphrase, .. } = saving;
    if to.is_none() && output::on_terminal() {
        return Err(Failure::new(ErrorKind::Invalid, "an archive is nothing for a terminal").next(instead));
    }
    let mut body = host.get_body(request, passphrase.as_ref()).await?;
    let bar = bar(what, None);
    let Some(path) = to else {
        while let Some(chunk) = body.next().await? {
            bar.inc(chunk.len() as u64);
            output::raw(&chunk)?;
        }
        return Ok(());
    };
    let failed = |error: io::Error| Failure::new(ErrorKind::Failed, format!("{}: {error}", path.display()));
    let written = async {
        let mut part = Part::begin(&path).map_err(failed)?;
        let mut total = 0;
        while let Some(chunk) = body.next().await? {
            part.file.write_all(&chunk).map_err(failed)?;
            total += chunk.len() as u64;
            bar.inc(chunk.len() as u64);
        }
        part.finish().map_err(failed)?;
        Ok(total)
    };
    let written: Result<u64> = written.await;
    bar.finish_and_clear();
    output::line(&format!("{what}: {} in {}", show_bytes(written?), path.display()))
}
