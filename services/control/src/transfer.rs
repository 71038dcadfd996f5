//! A volume's content as a tar stream, between a pipe of this service and the host.

use std::{
    fs::File,
    future::Future,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
};

use bytes::{Bytes, BytesMut};
use model::{LayerId, api::ErrorKind};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{io::AsyncReadExt as _, net::unix::pipe};
use wire::{
    Client, Fault, Method,
    apps::{GiveLayer, LayerTaken, TakeLayer},
    host::{CopyVolume, ExportVolume, ImportVolume, Moved},
    varlink::Empty,
};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Begins to fill a volume: what is written to the pipe, until that is dropped, and how it ends. The end is to be waited
/// for while the pipe is written to; when it is dropped, the volume is as it was.
pub fn import(
    host: &Client,
    request: ImportVolume,
) -> Result<(pipe::Sender, impl Future<Output = Result<Moved, Fault>> + use<>), Fault> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    Ok((pipe::Sender::from_owned_fd(ours)?, moved(host.clone(), request, theirs)))
}

/// Begins to read a volume.
pub fn export(host: &Client, request: ExportVolume) -> Result<Export<Moved>, Fault> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let end: End<Moved> = Box::pin(moved(host.clone(), request, theirs));
    Ok(Export { pipe: pipe::Receiver::from_owned_fd(ours)?, end: Some(end), moved: None })
}

/// A volume as it was when it was copied.
pub struct Copied {
    log: File,
    content: File,
}

/// Copies a volume as it is now.
pub async fn copy(host: &Client, request: &CopyVolume) -> Result<Copied, Fault> {
    let (_, fds) = host.call_with_fds(request, &[]).await?;
    let missing = |_| Fault::new(ErrorKind::Failed, "the host daemon sent no copy");
    let [log, content] = <[OwnedFd; 2]>::try_from(fds).map_err(missing)?;
    Ok(Copied { log: log.into(), content: content.into() })
}

impl Copied {
    /// Begins to read it.
    pub fn read(self) -> Result<Export<()>, Fault> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
        // On a thread that may wait for the disk, and for who reads; it ends when nobody does.
        let ended = tokio::task::spawn_blocking(move || archive::replay(&self.log, &self.content, File::from(theirs)));
        let end: End<()> = Box::pin(async move {
            let broke = |error: String| Fault::new(ErrorKind::Failed, format!("reading a copy: {error}"));
            ended.await.map_err(|error| broke(error.to_string()))?.map_err(|error| broke(error.to_string()))
        });
        Ok(Export { pipe: pipe::Receiver::from_owned_fd(ours)?, end: Some(end), moved: None })
    }
}

/// Begins to read a layer.
pub fn give_layer(apps: &Client, layer: LayerId) -> Result<Export<Empty>, Fault> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let end: End<Empty> = Box::pin(moved(apps.clone(), GiveLayer { layer }, theirs));
    Ok(Export { pipe: pipe::Receiver::from_owned_fd(ours)?, end: Some(end), moved: None })
}

/// Begins to take a layer, as `import` does.
pub fn take_layer(
    apps: &Client,
    layer: LayerId,
) -> Result<(pipe::Sender, impl Future<Output = Result<LayerTaken, Fault>> + use<>), Fault> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    Ok((pipe::Sender::from_owned_fd(ours)?, moved(apps.clone(), TakeLayer { layer }, theirs)))
}

type End<T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send>>;

/// A volume, or a layer, that is being read.
pub struct Export<T> {
    pipe: pipe::Receiver,
    /// How it ends; none: it has ended well, and what is in the pipe is the rest.
    end: Option<End<T>>,
    /// What was answered, once it has ended.
    pub moved: Option<T>,
}

impl<T> Export<T> {
    /// The next bytes; none: that was all of it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        while let Some(end) = &mut self.end {
            let moved = tokio::select! {
                read = self.pipe.read_buf(&mut chunk) => match read? {
                    0 => end.await?,
                    _ => return Ok(Some(chunk.freeze())),
                },
                moved = &mut *end => moved?,
            };
            (self.end, self.moved) = (None, Some(moved));
        }
        Ok((self.pipe.read_buf(&mut chunk).await? > 0).then(|| chunk.freeze()))
    }
}

async fn moved<M: Method>(host: Client, request: M, end: OwnedFd) -> Result<M::Reply, Fault> {
    host.call_once(&request, &[end.as_fd()]).await
}
