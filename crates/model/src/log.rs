//! Lines of a VPS's log, as its shim stores them and as persons read them.
//!
//! Stored is `TIME out|err|vps TEXT`, `TIME log FACILITY.SEVERITY TAG[PID]: TEXT` or `TIME file PATH TEXT`, where what is no
//! plain character of a path is written `#OOO`, in octal.

use crate::api::LogLine;

/// Where lines come from: the program's streams, `/dev/log`, files of its own, and the shim.
pub const SOURCES: [&str; 5] = ["out", "err", "log", "file", "vps"];
/// Facilities of syslog(3), by number.
pub const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
/// Severities of syslog(3), by number.
pub const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
/// Characters of a tag at most; what is longer is text.
const TAG: usize = 64;

impl LogLine {
    /// From a stored line, without its end. What is no such line is one of the shim's, without a time.
    pub fn parse(stored: &[u8]) -> Self {
        let stored = String::from_utf8_lossy(stored);
        let mut parts = stored.splitn(3, ' ');
        let (at, stream, rest) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let (Some(at), Some(stream)) = (at, stream.filter(|stream| SOURCES.contains(stream))) else {
            return Self { stream: "vps".to_owned(), text: stored.into_owned(), ..Self::default() };
        };
        let mut line = Self { at: at.to_owned(), stream: stream.to_owned(), ..Self::default() };
        let mut text = rest;
        match stream {
            "log" => {
                if let Some((priority, after)) = rest.split_once(' ').or(Some((rest, "")))
                    && let Some((facility, severity)) = priority.split_once('.')
                    && FACILITIES.contains(&facility)
                    && SEVERITIES.contains(&severity)
                {
                    (line.facility, line.severity) = (Some(facility.to_owned()), Some(severity.to_owned()));
                    text = after;
                    if let Some((tag, pid, after)) = tag(after) {
                        (line.tag, line.pid, text) = (Some(tag.to_owned()), pid, after);
                    }
                }
            }
            "file" => {
                let (path, after) = rest.split_once(' ').unwrap_or((rest, ""));
                (line.file, text) = (Some(plain_path(path)), after);
            }
            _ => {}
        }
        line.text = text.to_owned();
        line
    }

    /// What a person reads after its time and its source: the text, and before it what else is known.
    pub fn shown(&self) -> String {
        if let Some(file) = &self.file {
            return format!("{file}: {}", self.text);
        }
        let mut shown = String::new();
        if let (Some(facility), Some(severity)) = (&self.facility, &self.severity) {
            shown.push_str(&format!("{facility}.{severity} "));
        }
        if let Some(tag) = &self.tag {
            shown.push_str(tag);
            shown.push_str(&self.pid.map(|pid| format!("[{pid}]")).unwrap_or_default());
            shown.push_str(": ");
        }
        shown + &self.text
    }
}

/// `TAG[PID]: TEXT`, as syslog(3) writes it.
fn tag(text: &str) -> Option<(&str, Option<u32>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_graphic() || "[]:\"\\".contains(c))?;
    let (tag, mut rest) = text.split_at(end);
    if tag.is_empty() || tag.len() > TAG {
        return None;
    }
    let mut pid = None;
    if let Some(inner) = rest.strip_prefix('[') {
        let (number, after) = inner.split_once(']')?;
        (pid, rest) = (Some(number.parse().ok()?), after);
    }
    let text = rest.strip_prefix(':')?;
    Some((tag, pid, text.strip_prefix(' ').unwrap_or(text)))
}

/// A path as it is stored: one word.
pub fn stored_path(path: &[u8]) -> String {
    let mut word = String::new();
    for byte in path {
        match byte {
            b'!'..=b'~' if *byte != b'#' => word.push(char::from(*byte)),
            byte => word.push_str(&format!("#{byte:03o}")),
        }
    }
    word
}

/// The path of that word.
fn plain_path(word: &str) -> String {
    let mut path = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'#').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_parts() {
        let line = LogLine::parse(b"2026-11-22T10:00:00.000000Z err it  broke");
        assert_eq!((line.stream.as_str(), line.text.as_str()), ("err", "it  broke"));
        assert_eq!(LogLine::parse(b"\xff strange").stream, "vps");
        assert_eq!(LogLine::parse(b"2026 out ").text, "");
        assert_eq!(LogLine::parse(b"2026 out").text, "");
    }

    #[test]
    fn messages_of_syslog_have_severity_and_tag() {
        let line = LogLine::parse(b"t log daemon.err sshd[12]: no: [x]");
        assert_eq!((line.facility.as_deref(), line.severity.as_deref()), (Some("daemon"), Some("err")));
        assert_eq!((line.tag.as_deref(), line.pid, line.text.as_str()), (Some("sshd"), Some(12), "no: [x]"));
        assert_eq!(line.shown(), "daemon.err sshd[12]: no: [x]");
        for (stored, tag, text) in [
            ("user.notice postfix/smtpd: a", Some("postfix/smtpd"), "a"),
            ("user.notice just words: a", None, "just words: a"),
            ("user.notice a[b]: c", None, "a[b]: c"),
            ("user.notice \": c", None, "\": c"),
            ("nothing.notice a: c", None, "nothing.notice a: c"),
            ("user.notice", None, ""),
        ] {
            let line = LogLine::parse(format!("t log {stored}").as_bytes());
            assert_eq!((line.tag.as_deref(), line.text.as_str()), (tag, text), "{stored}");
            assert_eq!(line.shown().trim_end(), stored);
        }
        let long = format!("t log user.info {}: x", "a".repeat(TAG + 1));
        assert_eq!(LogLine::parse(long.as_bytes()).tag, None);
    }

    #[test]
    fn a_path_is_one_word_whatever_it_holds() {
        for path in ["/var/log/a.log", "/a b\n#/ü", "/#", "/#012"] {
            let stored = stored_path(path.as_bytes());
            assert!(!stored.contains([' ', '\n']), "{stored}");
            let line = LogLine::parse(format!("t file {stored} one two").as_bytes());
            assert_eq!((line.file.as_deref(), line.text.as_str()), (Some(path), "one two"));
            assert_eq!(line.shown(), format!("{path}: one two"));
        }
    }
}
