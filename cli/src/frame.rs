//! Frames of `exec`: one kind byte, a big-endian 32-bit length, and so many bytes.

use std::io;

use model::run::WindowSize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of one frame at most.
const MAX_FRAME: usize = 1 << 20;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Input for the program; empty: its end.
    Stdin(Vec<u8>),
    /// Output of the program.
    Stdout(Vec<u8>),
    /// Errors of the program.
    Stderr(Vec<u8>),
    /// The program ended: its code, or 128 + signal.
    Exit(i32),
}

/// Reads a frame; none at the end of the stream.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 5];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
    }
    let mut data = vec![0; length];
    from.read_exact(&mut data).await?;
    Ok(Some(match head[0] {
        0 => Frame::Stdin(data),
        1 => Frame::Stdout(data),
        2 => Frame::Stderr(data),
        3 => Frame::Exit(exit_code(&data)?),
        kind => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of unknown kind {kind}"))),
    }))
}

fn exit_code(data: &[u8]) -> io::Result<i32> {
    let code = std::str::from_utf8(data).ok().and_then(|text| text.parse().ok());
    code.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an exit frame without a code"))
}

/// Writes a frame of input.
pub async fn write_stdin(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    write(to, 0, data).await
}

/// Writes a frame with the terminal's size.
pub async fn write_size(to: &mut (impl AsyncWrite + Unpin), size: WindowSize) -> io::Result<()> {
    write(to, 4, &[size.rows.to_be_bytes(), size.columns.to_be_bytes()].concat()).await
}

async fn write(to: &mut (impl AsyncWrite + Unpin), kind: u8, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(5 + data.len());
    frame.push(kind);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(data);
    to.write_all(&frame).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = read(&mut bytes).await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        write_stdin(&mut bytes, b"abc").await.expect("a vector takes all");
        assert_eq!(bytes, b"\0\0\0\0\x03abc");
        bytes.extend_from_slice(b"\x01\0\0\0\x02hi\x02\0\0\0\0\x03\0\0\0\x03137");
        let expected =
            [Frame::Stdin(b"abc".to_vec()), Frame::Stdout(b"hi".to_vec()), Frame::Stderr(Vec::new()), Frame::Exit(137)];
        assert_eq!(all(&bytes).await.expect("four frames"), expected);
    }

    #[tokio::test]
    async fn bad_frames_are_refused() {
        for bad in [&b"\x01\0\0\0\x02h"[..], b"\x01\0", b"\x01\xff\xff\xff\xff", b"\x09\0\0\0\0", b"\x03\0\0\0\x01x"] {
            assert!(all(bad).await.is_err(), "{bad:?}");
        }
    }
}
