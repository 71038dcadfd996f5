//! Messages of `/dev/log`, as libc's syslog(3) writes them: `<PRIORITY>Mmm dd hh:mm:ss TAG[PID]: TEXT` (RFC 3164 without
//! the host). In the log they are `FACILITY.SEVERITY TAG[PID]: TEXT`, one line each; the time is the shim's.

use std::time::{Duration, Instant};

use model::log::{FACILITIES, SEVERITIES};

/// Messages of a second that are kept.
pub const PER_SECOND: u32 = 1000;

/// user.notice, which a message without a priority has.
const DEFAULT: usize = 13;

/// The line of a message. A line end in it is written as rsyslog does, so that no message can look like two.
pub fn line(message: &[u8]) -> Vec<u8> {
    let (priority, rest) = priority(message).unwrap_or((DEFAULT, message));
    let text = if is_stamp(rest) { &rest[16..] } else { rest };
    let end = text.iter().rposition(|b| !matches!(b, 0 | b'\n' | b'\r')).map_or(0, |at| at + 1);
    let mut line = format!("{}.{} ", FACILITIES[priority >> 3], SEVERITIES[priority & 7]).into_bytes();
    for byte in &text[..end] {
        match byte {
            0 | b'\n' | b'\r' => line.extend_from_slice(format!("#{byte:03o}").as_bytes()),
            byte => line.push(*byte),
        }
    }
    line
}

fn priority(message: &[u8]) -> Option<(usize, &[u8])> {
    let rest = message.strip_prefix(b"<")?;
    let end = rest.iter().take(4).position(|b| *b == b'>')?;
    let number: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    (number >> 3 < FACILITIES.len()).then_some((number, &rest[end + 1..]))
}

/// `Nov 24 21:00:00 `, where the day may begin with a space.
fn is_stamp(text: &[u8]) -> bool {
    let shape = b"Aaa 00 00:00:00 ";
    text.len() >= shape.len()
        && shape.iter().zip(text).all(|(shape, byte)| match shape {
            b'A' => byte.is_ascii_uppercase(),
            b'a' => byte.is_ascii_lowercase(),
            b'0' => byte.is_ascii_digit() || *byte == b' ',
            shape => shape == byte,
        })
}

/// How many messages of this second are still kept, and how many were not.
#[derive(Debug, Default)]
pub struct Budget {
    since: Option<Instant>,
    taken: u32,
    missed: u64,
}

impl Budget {
    /// Whether one more is kept; and how many were missed before, when a new second begins.
    pub fn take(&mut self, now: Instant) -> (bool, u64) {
        let mut before = 0;
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            before = self.rest();
            (self.since, self.taken) = (Some(now), 0);
        }
        if self.taken == PER_SECOND {
            self.missed += 1;
            return (false, before);
        }
        self.taken += 1;
        (true, before)
    }

    /// How many were missed that nobody has been told of.
    pub fn rest(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(message: &[u8]) -> String {
        String::from_utf8_lossy(&line(message)).into_owned()
    }

    #[test]
    fn messages_keep_severity_and_tag_in_one_line() {
        assert_eq!(said(b"<27>Nov 24 21:00:00 sshd[12]: no\n"), "daemon.err sshd[12]: no");
        assert_eq!(
            said(b"<13>Nov  4 21:00:00 me: a\n2026-01-01T00:00:00.000000Z out b"),
            "user.notice me: a#0122026-01-01T00:00:00.000000Z out b"
        );
        assert_eq!(said(b"plain"), "user.notice plain");
        assert_eq!(said(b"<191>x\0"), "local7.debug x");
        for odd in [&b"<192>x"[..], b"<>x", b"<99999>x", b"<-1>x", b"<1", b""] {
            assert_eq!(said(odd), format!("user.notice {}", String::from_utf8_lossy(odd)));
        }
    }

    #[test]
    fn a_flood_is_counted() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let kept = (0..5000).filter(|_| budget.take(start).0).count();
        assert_eq!(kept, PER_SECOND as usize);
        assert_eq!(budget.take(start + Duration::from_secs(1)), (true, 4000));
        assert_eq!(budget.rest(), 0);
    }

    proptest! {
        #[test]
        fn any_message_is_one_line_and_hardly_longer(
            head in "(<[0-9]{0,5}>?)?([A-Z][a-z]{2} [0-9 ]{2} [0-9:]{8} )?",
            // RFC 5424's form is taken as text.
            form in prop_oneof![Just(""), Just("1 2026-11-24T21:00:00Z host app 7 ID [x@1 y=\"z\"] ")],
            rest in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let message = [head.as_bytes(), form.as_bytes(), &rest].concat();
            let line = line(&message);
            prop_assert!(!line.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')));
            prop_assert!(line.len() <= 4 * message.len() + 32);
            let (source, _) = line.split_at(line.iter().position(|byte| *byte == b' ').expect("a facility"));
            let (facility, severity) = std::str::from_utf8(source).expect("text").split_once('.').expect("two");
            prop_assert!(FACILITIES.contains(&facility) && SEVERITIES.contains(&severity));
        }
    }
}
