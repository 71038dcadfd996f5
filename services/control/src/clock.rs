//! The two clocks: one for people, one for decisions.

use std::{
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Milliseconds of a clock that never goes back.
pub fn now_ms() -> u64 {
    BEGAN.elapsed().as_millis() as u64
}
