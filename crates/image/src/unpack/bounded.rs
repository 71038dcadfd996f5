use std::io::{self, Read};

use archive::ArchiveError;

use crate::error::StoreError;

/// A stream that fails after so many bytes: an endless one does too.
pub struct Bounded<R> {
    inner: R,
    left: u64,
}

/// Says itself, so that it is told from a failure of the stream.
#[derive(Debug, thiserror::Error)]
#[error("more bytes than allowed")]
struct Over;

impl<R> Bounded<R> {
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most > 0 || buffer.is_empty() {
            let read = self.inner.read(&mut buffer[..most])?;
            self.left -= read as u64;
            return Ok(read);
        }
        // the limit itself is allowed
        match self.inner.read(&mut [0])? {
            0 => Ok(0),
            _ => Err(io::Error::other(Over)),
        }
    }
}

/// What sets the bounds.
const SIZE: &str = "`images.size` in host.toml";

/// More entries than that.
pub fn too_many(limit: u64) -> StoreError {
    StoreError::TooLarge { what: format!("it has more than {limit} entries (`images.files` in host.toml)") }
}

/// Files of more bytes together than that.
pub fn files_too_large(limit: u64) -> StoreError {
    StoreError::TooLarge { what: format!("its files are larger than {limit} bytes ({SIZE})") }
}

/// The error of a stream that was too long, as what it is.
pub fn too_large(error: ArchiveError, limit: u64) -> StoreError {
    match &error {
        ArchiveError::Stream(read) if read.get_ref().is_some_and(|inner| inner.is::<Over>()) => {
            StoreError::TooLarge { what: format!("it is larger than {limit} bytes ({SIZE})") }
        }
        _ => error.into(),
    }
}
