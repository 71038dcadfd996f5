//! When a job runs: at regular distances, once a day, or as crontab(5) says it. All times are UTC.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;
/// Days that are searched: 29 February on a given day of the week comes every 28 years, or 40 over a century's turn.
const SEARCHED_DAYS: u64 = 366 * 41;

/// When a job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// So many milliseconds apart. Each job has its own place between the multiples, so that not all run at once.
    Every(u64),
    /// Each day at this minute.
    At(TimeOfDay),
    /// Five fields of crontab(5).
    Cron(Cron),
}

impl Schedule {
    /// The first time after `after_ms` (Unix time in milliseconds). `phase` moves the times of `Every`; none: it never
    /// comes (30 February).
    pub fn next(&self, after_ms: u64, phase: u64) -> Option<u64> {
        match self {
            Self::Every(every) => {
                let phase = phase % every;
                let whole = after_ms.saturating_sub(phase) / every;
                let at = phase + whole * every;
                Some(if at > after_ms { at } else { at + every })
            }
            Self::At(time) => {
                let at = after_ms / DAY_MS * DAY_MS + u64::from(time.0) * MINUTE_MS;
                Some(if at > after_ms { at } else { at + DAY_MS })
            }
            Self::Cron(cron) => cron.next(after_ms),
        }
    }
}

/// A minute of a day, `03:30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

/// Why a text says no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not `HH:MM`.
    #[error("`{0}` is no time of day: write \"HH:MM\", UTC, such as \"03:30\"")]
    TimeOfDay(String),
    /// Not five fields.
    #[error(
        "`{0}` is no schedule: write five fields as crontab(5) does, \"MINUTE HOUR DAY MONTH WEEKDAY\", such as \"30 3 * * 1-5\""
    )]
    Fields(String),
    /// A field that holds what it can't.
    #[error("`{text}` is no {field}: from {min} to {max}, `*`, `a-b`, `*/n`, or several with commas")]
    Field {
        /// What was written.
        text: String,
        /// Which field.
        field: &'static str,
        /// Its least number.
        min: u8,
        /// Its greatest number.
        max: u8,
    },
    /// No such day.
    #[error("`{0}` never comes")]
    Never(String),
}

impl FromStr for TimeOfDay {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let illegal = || ScheduleError::TimeOfDay(text.to_owned());
        let two = |part: &str, below: u16| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            part.parse().ok().filter(|number: &u16| digits && *number < below)
        };
        let (hour, minute) = text.split_once(':').ok_or_else(illegal)?;
        Ok(Self(two(hour, 24).ok_or_else(illegal)? * 60 + two(minute, 60).ok_or_else(illegal)?))
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// A line of crontab(5) without its command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    /// One bit per number.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether both days are restricted; then one of them is enough.
    either: bool,
}

const FIELDS: [(&str, u8, u8); 5] =
    [("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7)];

impl FromStr for Cron {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let parts: Vec<_> = text.split_ascii_whitespace().collect();
        let parts: [&str; 5] = parts.try_into().map_err(|_| ScheduleError::Fields(text.to_owned()))?;
        let mut bits = [0; 5];
        for ((bits, part), of) in bits.iter_mut().zip(parts).zip(FIELDS) {
            *bits = field(part, of)?;
        }
        let [minutes, hours, days, months, weekdays] = bits;
        // Sunday is 0 and 7.
        let weekdays = (weekdays | weekdays >> 7) & 0x7f;
        let either = !parts[2].starts_with('*') && !parts[4].starts_with('*');
        let cron = Self { text: parts.join(" "), minutes, hours, days, months, weekdays, either };
        cron.next(0).ok_or_else(|| ScheduleError::Never(text.to_owned()))?;
        Ok(cron)
    }
}

fn field(part: &str, (field, min, max): (&'static str, u8, u8)) -> Result<u64, ScheduleError> {
    let illegal = || ScheduleError::Field { text: part.to_owned(), field, min, max };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u8>().ok().filter(|n| digits && (min..=max).contains(n)).ok_or_else(illegal)
    };
    let mut bits = 0;
    for item in part.split(',') {
        let (range, step) = item.split_once('/').map_or((item, None), |(range, step)| (range, Some(step)));
        let step = match step {
            Some(step) => step.parse::<u8>().ok().filter(|step| (1..=max).contains(step)).ok_or_else(illegal)?,
            None => 1,
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (min, max),
            Some((first, last)) => (number(first)?, number(last)?),
            None if item.contains('/') => (number(range)?, max),
            None => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(illegal());
        }
        bits |= (first..=last).step_by(usize::from(step)).fold(0, |bits, n| bits | 1 << n);
    }
    Ok(bits)
}

impl Cron {
    fn next(&self, after_ms: u64) -> Option<u64> {
        let today = after_ms / DAY_MS;
        let has = |bits: u64, number: u64| bits >> number & 1 == 1;
        for day in (today..today + SEARCHED_DAYS).filter(|day| self.day(*day)) {
            for hour in (0..24).filter(|hour| has(self.hours, *hour)) {
                for minute in (0..60).filter(|minute| has(self.minutes, *minute)) {
                    let at = day * DAY_MS + (hour * 60 + minute) * MINUTE_MS;
                    if at > after_ms {
                        return Some(at);
                    }
                }
            }
        }
        None
    }

    fn day(&self, day: u64) -> bool {
        let (_, month, of_month) = date(day);
        // 1970-01-01 was a Thursday.
        let by_month = self.days >> of_month & 1 == 1;
        let by_week = self.weekdays >> ((day + 4) % 7) & 1 == 1;
        self.months >> month & 1 == 1 && if self.either { by_month || by_week } else { by_month && by_week }
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = ScheduleError;
            fn try_from(text: String) -> Result<Self, ScheduleError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}
as_text!(TimeOfDay, Cron);

/// Year, month and day of a day since 1970-01-01. Years begin in March here, so that the leap day is the last.
pub fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24T20:23:00Z, a Tuesday.
    const NOW: u64 = 1_795_551_780_000;

    fn next(schedule: &Schedule, after: u64) -> String {
        let at = schedule.next(after, 7_000).unwrap();
        let ((year, month, day), minute) = (date(at / DAY_MS), at % DAY_MS / MINUTE_MS);
        format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", minute / 60, minute % 60, at % MINUTE_MS / 1000)
    }

    #[test]
    fn times_come_after_the_one_before() {
        let cron = |text: &str| Schedule::Cron(text.parse().unwrap());
        for (schedule, expected) in [
            (Schedule::Every(15 * MINUTE_MS), "2026-11-24 20:30:07"),
            (Schedule::At("20:23".parse().unwrap()), "2026-11-25 20:23:00"),
            (Schedule::At("20:24".parse().unwrap()), "2026-11-24 20:24:00"),
            (cron("*/20 * * * *"), "2026-11-24 20:40:00"),
            (cron("30 3 * * 1-5"), "2026-11-25 03:30:00"),
            (cron("0 0 * * 7"), "2026-11-29 00:00:00"),
            (cron("0 12 1,15 * 5"), "2026-11-27 12:00:00"),
            (cron("5/50 22 29 2 *"), "2028-02-29 22:05:00"),
        ] {
            assert_eq!(next(&schedule, NOW), expected, "{schedule:?}");
            let first = schedule.next(NOW, 7_000).unwrap();
            assert!(schedule.next(first, 7_000).unwrap() > first, "{schedule:?} stands still");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "3:30", "24:00", "12:60", "0330", "+1:00", "12:30:00"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "a * * * *",
            "+1 * * * *",
            "0 0 30 2 *",
        ] {
            assert!(text.parse::<Cron>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_stored_is_read_again() {
        for schedule in
            [Schedule::Every(1), Schedule::At("00:07".parse().unwrap()), Schedule::Cron("1 2 3 4 5".parse().unwrap())]
        {
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
        }
    }
}
