//! The two clocks: one for people, one for decisions.

use std::{
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use model::schedule::date;

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Milliseconds of a clock that never goes back.
pub fn now_ms() -> u64 {
    BEGAN.elapsed().as_millis() as u64
}

/// Unix time in microseconds.
pub fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// RFC 3339, UTC, as a line of a log has it, but to the millisecond: `2026-11-22T13:58:00.123Z`.
pub fn rfc3339(ms: u64) -> String {
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// From when on something is wanted: the beginning of a time in RFC 3339, in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since(String);

impl Since {
    /// None: it is no such time.
    pub fn parse(text: &str) -> Option<Self> {
        let shape = b"0000-00-00T00:00:00.000000Z";
        let digit = |(shape, byte): (&u8, u8)| if *shape == b'0' { byte.is_ascii_digit() } else { *shape == byte };
        // A time to the second has its `Z` where lines have a fraction.
        let text = text.strip_suffix('Z').unwrap_or(text);
        let fits = text.len() >= 4 && text.len() <= shape.len() && shape.iter().zip(text.bytes()).all(digit);
        fits.then(|| Self(text.to_owned()))
    }

    /// Whether this time is not before it.
    pub fn keeps(&self, at: &str) -> bool {
        // RFC 3339 in UTC: in order as texts, too.
        at >= self.0.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_of_a_time_is_a_time() {
        assert_eq!(rfc3339(1_795_355_880_999), "2026-11-22T13:58:00.999Z");
        for (since, kept) in [
            ("2026", true),
            ("2026-11-22T13:58:00Z", true),
            ("2026-11-22T13:58:00.999Z", true),
            ("2026-11-22T13:59", false),
        ] {
            assert_eq!(Since::parse(since).unwrap().keeps(&rfc3339(1_795_355_880_999)), kept, "{since}");
        }
        for wrong in ["", "20", "10m", "2026-11-22 13", "2026-11-22T13:58:00.0000000Z"] {
            assert_eq!(Since::parse(wrong), None, "{wrong}");
        }
    }
}
