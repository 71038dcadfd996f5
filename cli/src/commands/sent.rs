//! Images that are archives or directories here: read twice, once for the digest and once, when the host does not have it, to
//! be sent.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use archive::Pack;
use bytes::Bytes;
use hyper::body::Frame;
use model::{
    ImageRef,
    api::ErrorKind,
    image::{Digest, ImageName, SentKind},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};

/// Parts that wait to be sent.
const WAITING: usize = 16;

/// One that has been read.
#[derive(Debug, Clone)]
pub struct Local {
    /// Which image it is.
    pub image: ImageRef,
    kind: SentKind,
    path: PathBuf,
}

impl Local {
    /// Reads what is at `path`, relative to `base`.
    pub fn read(kind: SentKind, path: &str, base: &Path, name: Option<ImageName>) -> Result<Self> {
        let path = base.join(path);
        let mut digest = Sha256::new();
        write(kind, &path, Summed(&mut digest)).map_err(|error| wrong(kind, &path, &error))?;
        let digest = Digest::from_hex(hex::encode(digest.finalize()));
        let digest = digest.map_err(|error| Failure::new(ErrorKind::Failed, error.to_string()))?;
        // of `.` too
        let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
        let file = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.unwrap_or_else(|| ImageName::for_file(&file));
        Ok(Self { image: ImageRef::Sent { kind, name, digest }, kind, path })
    }

    /// Its content, as a body; what can't be read breaks it off.
    pub fn body(&self) -> mpsc::Receiver<io::Result<Frame<Bytes>>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let Self { kind, path, .. } = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut parts = Parts { sender: sender.clone() };
            if let Err(error) = write(kind, &path, &mut parts) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        receiver
    }
}

fn wrong(kind: SentKind, path: &Path, error: &io::Error) -> Failure {
    let kind_of = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Invalid,
    };
    Failure::new(kind_of, format!("image {}:{} can't be read: {error}", kind.as_str(), path.display()))
}

fn write(kind: SentKind, path: &Path, mut output: impl Write) -> io::Result<()> {
    match kind {
        SentKind::Dir => {
            let directory = File::open(path)?;
            if !directory.metadata()?.is_dir() {
                return Err(io::Error::other("it is no directory"));
            }
            let output = io::BufWriter::with_capacity(256 << 10, output);
            let packed = archive::pack(directory.as_fd(), output, Pack::Image, &mut |_| Ok(()));
            packed.map(drop).map_err(io::Error::other)
        }
        SentKind::Tar => {
            let mut file = File::open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            let mut buffer = vec![0; 256 << 10];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    read => output.write_all(&buffer[..read])?,
                }
            }
        }
    }
}

struct Summed<'a>(&'a mut Sha256);

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Parts {
    sender: mpsc::Sender<io::Result<Frame<Bytes>>>,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = Frame::data(Bytes::copy_from_slice(bytes));
        self.sender.blocking_send(Ok(part)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
