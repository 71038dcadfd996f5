//! Relays bytes between two sockets inside the kernel: splice(2) through a pipe, one each way. A pipe is held only while
//! there are bytes on the way, so a silent connection costs its two sockets.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use crate::quiet::Activity;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::{
    io::Interest,
    net::{TcpStream, tcp::WriteHalf},
};

/// Bytes asked for at once; a pipe holds 64 KiB, or less when its owner has many.
const CHUNK: usize = 64 << 10;
/// Pipes kept for the next bytes.
const KEPT: usize = 64;

static PIPES: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

/// An empty pipe; whoever leaves bytes in it must not give it back.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write })
    }

    fn give_back(self) {
        let mut pipes = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
        if pipes.len() < KEPT {
            pipes.push(self);
        }
    }
}

/// Relays both ways until both ended. The end of one direction is handed on; a fault of one ends both.
pub async fn relay(mut client: TcpStream, mut server: TcpStream, activity: &Activity) -> io::Result<()> {
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let (from_client, from_server): (&TcpStream, &TcpStream) = (from_client.as_ref(), from_server.as_ref());
    let there = one_way(from_client, to_server, Side::Client, activity);
    let back = one_way(from_server, to_client, Side::Server, activity);
    tokio::select! {
        relayed = async { tokio::try_join!(there, back) } => relayed.map(drop),
        never = activity.watch() => match never {},
    }
}

/// Who sends.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

async fn one_way(from: &TcpStream, mut half: WriteHalf<'_>, side: Side, activity: &Activity) -> io::Result<()> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        from.readable().await?;
        let pipe = Pipe::take()?;
        loop {
            let into = || Ok(splice(from, None, &pipe.write, None, CHUNK, flags)?);
            let mut left = match from.try_io(Interest::READABLE, into) {
                Ok(0) => {
                    pipe.give_back();
                    if let Side::Server = side {
                        activity.server_ended()?;
                    }
                    return tokio::io::AsyncWriteExt::shutdown(&mut half).await;
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            match side {
                Side::Client => activity.client_sent().await?,
                Side::Server => activity.server_sent(),
            }
            while left > 0 {
                let to: &TcpStream = half.as_ref();
                let out_of = || Ok(splice(&pipe.read, None, to, None, left, flags)?);
                match to.try_io(Interest::WRITABLE, out_of) {
                    Ok(n) => left -= n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                    Err(error) => return Err(error),
                }
            }
            // A peer that always has more must not keep the others waiting.
            tokio::task::coop::consume_budget().await;
        }
        pipe.give_back();
    }
}
