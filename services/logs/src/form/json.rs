//! One JSON object a line.

use model::log::SEVERITIES;
use serde::Serialize;

use super::Record;

#[derive(Serialize)]
struct Line<'a> {
    at: &'a str,
    host: &'a str,
    vps: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    facility: Option<&'a str>,
    severity: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    text: &'a str,
}

/// Adds a record to `out`.
pub fn write(record: Record<'_>, out: &mut Vec<u8>) {
    let line = record.line;
    let object = Line {
        at: &line.at,
        host: record.node,
        vps: record.vps.as_str(),
        tenant: record.tenant.map(|tenant| tenant.as_str()),
        source: &line.stream,
        file: line.file.as_deref(),
        facility: line.facility.as_deref(),
        severity: SEVERITIES[record.severity()],
        tag: line.tag.as_deref(),
        pid: line.pid,
        text: &line.text,
    };
    // Texts and a number: nothing in it can't be written.
    out.extend(serde_json::to_vec(&object).unwrap_or_default());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::form::tests::with;

    fn written(stored: &[u8]) -> Value {
        let mut out = Vec::new();
        with(stored, |record| write(record, &mut out));
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1, "{}", String::from_utf8_lossy(&out));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn fields_are_the_hosts_and_the_text_is_the_tenants() {
        let message = written(b"2026-11-22T10:00:00.000000Z log daemon.err sshd[12]: no");
        let expected = json!({
            "at": "2026-11-22T10:00:00.000000Z", "host": "host1", "vps": "blog", "tenant": "acme", "source": "log",
            "facility": "daemon", "severity": "err", "tag": "sshd", "pid": 12, "text": "no",
        });
        assert_eq!(message, expected);
        let text = "\",\"tenant\":\"beta\",\"x\":\"\u{2028}\r\u{0}\u{1b}[2J";
        let hostile = written(format!("t out {text}").as_bytes());
        assert_eq!((hostile["tenant"].as_str(), hostile["text"].as_str()), (Some("acme"), Some(text)));
        assert_eq!(written(b"t out \xff\xfe")["text"], "\u{fffd}\u{fffd}");
    }
}
