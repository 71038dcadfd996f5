//! A connection as the HTTP library reads and writes it: small pieces of a message go out as one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bytes that are rather copied than handed to the kernel in pieces: a head and a short body.
const SMALL: usize = 4096;

/// A socket.
#[derive(Debug)]
pub struct Socket(TokioIo<TcpStream>);

impl Socket {
    /// For the HTTP library.
    pub fn new(stream: TcpStream) -> Self {
        Self(TokioIo::new(stream))
    }

    /// What it was made of.
    pub fn into_inner(self) -> TcpStream {
        self.0.into_inner()
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if length > SMALL {
            return Pin::new(&mut self.0).poll_write_vectored(cx, pieces);
        }
        if let [piece] = pieces {
            return Pin::new(&mut self.0).poll_write(cx, piece);
        }
        let (mut joined, mut at) = ([0; SMALL], 0);
        for piece in pieces {
            joined[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        Pin::new(&mut self.0).poll_write(cx, &joined[..at])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
