//! Points in time, as a person reads them.

use std::time::{SystemTime, UNIX_EPOCH};

use model::schedule::date;

/// Unix time in milliseconds, now.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// RFC 3339, UTC, seconds: `2026-11-22T13:58:00Z`.
pub fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// From when on: `10m` ago, or a time, which the host looks at.
pub fn since(text: &str) -> String {
    match model::limits::parse_duration_ms(text) {
        Ok(ago) => utc(now_ms().saturating_sub(ago)),
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_right() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_000, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (951_868_800_000, "2000-03-01T00:00:00Z"),
            (1_795_355_880_999, "2026-11-22T13:58:00Z"),
        ] {
            assert_eq!(super::utc(ms), text);
        }
    }
}
