//! Lines as targets want them. What a tenant wrote stays what it is: a text, in one message.

use model::{
    TenantName, VpsName,
    api::LogLine,
    log::{FACILITIES, SEVERITIES},
};

pub mod journald;
pub mod json;
pub mod syslog;

/// What is sent: a line, and whose it is.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The host's name.
    pub node: &'a str,
    pub vps: &'a VpsName,
    /// None: the VPS is a designated one.
    pub tenant: Option<&'a TenantName>,
    pub line: &'a LogLine,
}

impl Record<'_> {
    /// As syslog(3) numbers it: what a message of `/dev/log` says, else by where the line comes from.
    pub fn severity(&self) -> usize {
        let said = self.line.severity.as_ref().and_then(|word| SEVERITIES.iter().position(|known| known == word));
        said.unwrap_or(match self.line.stream.as_str() {
            "err" => 3,
            "vps" => 5,
            _ => 6,
        })
    }

    /// As syslog(3) numbers it. The kernel's is for the kernel.
    pub fn facility(&self) -> usize {
        let (user, daemon) = (1, 3);
        let said = self.line.facility.as_ref().and_then(|word| FACILITIES.iter().position(|known| known == word));
        said.map_or(daemon, |number| number.max(user))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A hostile line of a tenant's: each form must keep it one.
    pub fn with<T>(stored: &[u8], check: impl FnOnce(Record<'_>) -> T) -> T {
        let (vps, tenant) = ("blog".parse().unwrap(), "acme".parse().unwrap());
        let line = LogLine::parse(stored);
        check(Record { node: "host1", vps: &vps, tenant: Some(&tenant), line: &line })
    }

    #[test]
    fn severities_are_known_or_follow_from_the_source() {
        let numbers = |stored: &[u8]| with(stored, |record| (record.facility(), record.severity()));
        assert_eq!(numbers(b"t out x"), (3, 6));
        assert_eq!(numbers(b"t err x"), (3, 3));
        assert_eq!(numbers(b"t vps x"), (3, 5));
        assert_eq!(numbers(b"t log mail.warning x: y"), (2, 4));
        assert_eq!(numbers(b"t log kern.emerg x: y"), (1, 0));
    }
}
