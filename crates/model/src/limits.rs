//! Quantities with units, and the limits of one VPS.

use serde::{Deserialize, Serialize};

/// What a VPS may use at most; `None` is no limit of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, page cache included (cgroup v1 `memory.limit_in_bytes`, v2 `memory.max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Thousandths of one CPU (cgroup v1 `cpu.cfs_quota_us`, v2 `cpu.max`): 1500 is one and a half CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads (`pids.max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Bytes of what it writes outside of its volumes, where the file system can count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No number, no unit, or one we do not know.
    #[error("`{text}` is not {expected}")]
    Illegal {
        /// What was written.
        text: String,
        /// What could have been, with an example.
        expected: &'static str,
    },
    /// Does not fit 64 bits.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Bytes from a text such as `512MiB`, `2GiB`, `64KiB`, `100B`.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    const EXPECTED: &str = "a size such as \"512MiB\" or \"2GiB\"";
    let illegal = || QuantityError::Illegal { text: text.to_owned(), expected: EXPECTED };
    let (digits, unit) = split(text);
    let number: u64 = digits.parse().map_err(|_| illegal())?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(illegal()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))
}

/// Milliseconds from a text such as `250ms`, `30s`, `10m`, `2h`, `7d`.
pub fn parse_duration_ms(text: &str) -> Result<u64, QuantityError> {
    const EXPECTED: &str = "a time such as \"30s\" or \"10m\"";
    let illegal = || QuantityError::Illegal { text: text.to_owned(), expected: EXPECTED };
    let (digits, unit) = split(text);
    let number: u64 = digits.parse().map_err(|_| illegal())?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(illegal()),
    };
    number.checked_mul(factor).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))
}

/// The largest unit that shows `bytes` with at most one decimal: `88 MiB`, `7.1 GiB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 && unit > 0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A time as one would say it, in its largest unit: `31ms`, `4m`, `2h`.
pub fn show_duration_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}s", ms / 1_000),
        60_000..3_600_000 => format!("{}m", ms / 60_000),
        3_600_000..86_400_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_units() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("0B"), Ok(0));
        assert_eq!(parse_duration_ms("90m"), Ok(5_400_000));
        assert!(matches!(parse_bytes("17179869184GiB"), Err(QuantityError::TooLarge(_))));
        for text in ["", "512", "MiB", "1.5GiB", "-1MiB", "1 MiB", "1MB", "99999999999999999999B"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for text in ["", "10", "m", "1.5h", "10min", "1 s"] {
            assert!(parse_duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_are_shown_in_their_largest_unit() {
        assert_eq!(
            [0, 1023, 1 << 10, 88 << 20, 7_623_566_336].map(show_bytes),
            ["0 B", "1023 B", "1.0 KiB", "88 MiB", "7.1 GiB"]
        );
        let shown = [31, 59_999, 240_000, 7_300_000, 90_000_000].map(show_duration_ms);
        assert_eq!(shown, ["31ms", "59s", "4m", "2h", "1d"]);
    }
}
