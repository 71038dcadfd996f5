//! The members of an archive as it comes, of which little is held at once.

use archive::Kind;
use axum::body::BodyDataStream;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt as _;

use super::{BLOCK, Header, SMALL, import::invalid};
use crate::api::error::ApiError;

/// The members of an archive as it comes.
pub(super) struct Members {
    pub body: BodyDataStream,
    buffer: BytesMut,
}

impl Members {
    /// Of this body.
    pub fn new(body: BodyDataStream) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    async fn more(&mut self) -> Result<(), ApiError> {
        let broken = |what: String| invalid(format!("the archive broke off{what}"));
        let next = self.body.next().await.ok_or_else(|| broken(String::new()))?;
        self.buffer.extend_from_slice(&next.map_err(|error| broken(format!(": {error}")))?);
        Ok(())
    }

    async fn take(&mut self, length: usize) -> Result<Bytes, ApiError> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Path and size of the next file; none at the end.
    pub async fn next(&mut self) -> Result<Option<(String, u64)>, ApiError> {
        let block = self.take(BLOCK).await?;
        let header = Header(block[..].try_into().map_err(|_| invalid("half a block"))?);
        if header.is_zero() {
            return Ok(None);
        }
        let path = String::from_utf8(header.path()).ok();
        let known = path.zip(header.size()).filter(|_| header.is_sound() && header.kind() == Kind::File);
        known.map(Some).ok_or_else(|| invalid("the archive is damaged, or none of `bailiwick export`"))
    }

    /// A small file's content.
    pub async fn whole(&mut self, size: u64) -> Result<Bytes, ApiError> {
        let bytes = self.take(usize::try_from(size.min(SMALL)).unwrap_or_default()).await?;
        self.padding(size).await?;
        Ok(bytes)
    }

    /// The next bytes of a file, of which `left` are left.
    pub async fn chunk(&mut self, left: u64) -> Result<Bytes, ApiError> {
        if !self.buffer.has_remaining() {
            self.more().await?;
        }
        let length = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(self.buffer.split_to(length).freeze())
    }

    /// What stands between a file of `size` bytes and the next header.
    pub async fn padding(&mut self, size: u64) -> Result<(), ApiError> {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.take(usize::try_from(padding).unwrap_or_default()).await.map(drop)
    }
}
