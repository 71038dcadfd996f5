//! Where a host ships its VPSs' logs.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::DesignatedNetwork;

/// Where journald takes messages.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// What can be written, for messages.
pub const EXAMPLES: &str = "\"syslog+tcp://HOST:PORT\", \"syslog+udp://HOST:PORT\", \"syslog+unix:/dev/log\", \"journald\", \
                            \"json:/PATH\", \"json+tcp://HOST:PORT\", \"json+unix:/PATH\"";

/// One target of `logs.ship`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogTarget {
    /// How lines are written.
    pub form: Form,
    /// Where to.
    pub place: Place,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// RFC 5424; on streams counted as RFC 6587 says.
    Syslog,
    /// systemd-journald's native protocol.
    Journald,
    /// A JSON object a line.
    Json,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Host and port.
    Tcp(String, u16),
    /// Host and port.
    Udp(String, u16),
    /// A socket of the host's.
    Unix(PathBuf),
    /// A file of the host's.
    File(PathBuf),
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {why}")]
pub struct LogTargetError {
    text: String,
    why: String,
}

impl LogTarget {
    /// The network that who ships there needs.
    pub fn network(&self) -> DesignatedNetwork {
        match self.place {
            Place::Tcp(..) | Place::Udp(..) => DesignatedNetwork::Host,
            Place::Unix(_) | Place::File(_) => DesignatedNetwork::None,
        }
    }
}

impl FromStr for LogTarget {
    type Err = LogTargetError;

    fn from_str(text: &str) -> Result<Self, LogTargetError> {
        let fail = |why: String| LogTargetError { text: text.to_owned(), why };
        if text == "journald" {
            return Ok(Self { form: Form::Journald, place: Place::Unix(JOURNALD.into()) });
        }
        let (scheme, rest) =
            text.split_once(':').ok_or_else(|| fail(format!("is no target for logs: write {EXAMPLES}")))?;
        let path = || {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            let legal = path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') && path.len() <= 4095;
            let parts = || path.split('/').all(|part| part != "..");
            (legal && parts()).then(|| PathBuf::from(path)).ok_or_else(|| fail("needs an absolute path".to_owned()))
        };
        let address = || {
            let whole = rest.strip_prefix("//").unwrap_or_default();
            let (host, port) = whole.rsplit_once(':').unwrap_or_default();
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let byte = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
            let legal = !bare.is_empty() && bare.len() <= 253 && bare.bytes().all(byte);
            let legal = legal && (bare.contains(':') == (bare != host));
            match port.parse::<u16>() {
                Ok(port) if port > 0 && legal => Ok((bare.to_owned(), port)),
                _ => Err(fail(format!("needs a host and a port: write \"{scheme}://HOST:PORT\""))),
            }
        };
        let (form, place) = match scheme {
            "syslog+tcp" => (Form::Syslog, address().map(|(host, port)| Place::Tcp(host, port))?),
            "syslog+udp" => (Form::Syslog, address().map(|(host, port)| Place::Udp(host, port))?),
            "syslog+unix" => (Form::Syslog, Place::Unix(path()?)),
            "json+tcp" => (Form::Json, address().map(|(host, port)| Place::Tcp(host, port))?),
            "json+unix" => (Form::Json, Place::Unix(path()?)),
            "json" => (Form::Json, Place::File(path()?)),
            // One of a namespace: /run/systemd/journal.NAME/socket.
            "journald" => (Form::Journald, Place::Unix(path()?)),
            _ => return Err(fail(format!("is no target for logs: write {EXAMPLES}"))),
        };
        Ok(Self { form, place })
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Journald if self.place == Place::Unix(JOURNALD.into()) => return f.write_str("journald"),
            Form::Journald => "journald",
            Form::Syslog => "syslog",
            Form::Json => "json",
        };
        let host = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match &self.place {
            Place::Tcp(name, port) => write!(f, "{form}+tcp://{}:{port}", host(name)),
            Place::Udp(name, port) => write!(f, "{form}+udp://{}:{port}", host(name)),
            Place::Unix(path) if self.form == Form::Journald => write!(f, "{form}:{}", path.display()),
            Place::Unix(path) => write!(f, "{form}+unix:{}", path.display()),
            Place::File(path) => write!(f, "{form}:{}", path.display()),
        }
    }
}

impl TryFrom<String> for LogTarget {
    type Error = LogTargetError;
    fn try_from(text: String) -> Result<Self, LogTargetError> {
        text.parse()
    }
}

impl From<LogTarget> for String {
    fn from(target: LogTarget) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for (text, again) in [
            ("journald", "journald"),
            ("journald:/run/systemd/journal/socket", "journald"),
            ("journald:/run/systemd/journal.web/socket", "journald:/run/systemd/journal.web/socket"),
            ("syslog+tcp://logs.example.org:601", "syslog+tcp://logs.example.org:601"),
            ("syslog+udp://[fd00::1]:514", "syslog+udp://[fd00::1]:514"),
            ("syslog+unix:///dev/log", "syslog+unix:/dev/log"),
            ("json:/var/log/bailiwick.jsonl", "json:/var/log/bailiwick.jsonl"),
            ("json+unix:/run/vector.sock", "json+unix:/run/vector.sock"),
            ("json+tcp://192.0.2.1:5170", "json+tcp://192.0.2.1:5170"),
        ] {
            let target: LogTarget = text.parse().expect(text);
            assert_eq!(target.to_string(), again);
            assert_eq!(again.parse(), Ok(target));
        }
        for text in [
            "",
            "syslog",
            "json",
            "json:",
            "json:a",
            "json:/a/../b",
            "json:/a/",
            "syslog+tcp://h",
            "syslog+tcp://:1",
            "syslog+tcp://h:0",
            "syslog+tcp://fd00::1:514",
            "syslog+tcp://h /:1",
            "syslog+tcp:h:1",
            "json+udp://h:1",
            "tcp://h:1",
        ] {
            assert!(text.parse::<LogTarget>().is_err(), "{text}");
        }
    }
}
