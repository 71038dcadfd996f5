//! systemd-journald's native protocol: one datagram a record, each value with its length before it, so that no text is
//! taken for a field (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use super::Record;

/// One datagram.
pub fn message(record: Record<'_>) -> Vec<u8> {
    let Record { node, vps, tenant, line } = record;
    let mut out = Vec::new();
    let mut field = |name: &str, value: &str| {
        out.extend(name.as_bytes());
        out.push(b'\n');
        out.extend((value.len() as u64).to_le_bytes());
        out.extend(value.as_bytes());
        out.push(b'\n');
    };
    field("MESSAGE", &line.text);
    field("PRIORITY", &record.severity().to_string());
    field("SYSLOG_FACILITY", &record.facility().to_string());
    field("SYSLOG_IDENTIFIER", vps.as_str());
    if let Some(pid) = line.pid {
        field("SYSLOG_PID", &pid.to_string());
    }
    field("BAILIWICK_VPS", vps.as_str());
    if let Some(tenant) = tenant {
        field("BAILIWICK_TENANT", tenant.as_str());
    }
    field("BAILIWICK_SOURCE", &line.stream);
    field("BAILIWICK_TIME", &line.at);
    field("BAILIWICK_HOST", node);
    for (name, value) in [("BAILIWICK_FILE", &line.file), ("BAILIWICK_TAG", &line.tag)] {
        if let Some(value) = value {
            field(name, value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::form::tests::with;

    /// As journald reads it.
    fn parsed(mut rest: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut fields = BTreeMap::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'\n').unwrap();
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            rest = &rest[end + 1..];
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name, value.as_bytes().to_vec()),
                None => {
                    let (length, after) = rest.split_first_chunk().unwrap();
                    let (value, after) = after.split_at(u64::from_le_bytes(*length) as usize);
                    rest = after.strip_prefix(b"\n").unwrap();
                    (line, value.to_vec())
                }
            };
            assert!(fields.insert(name.to_owned(), value).is_none(), "{name} twice");
        }
        fields
    }

    #[test]
    fn a_text_is_no_field() {
        let hostile = "x\nBAILIWICK_TENANT=beta\nPRIORITY=0\nMESSAGE\n\u{1}\0";
        let fields = parsed(&with(format!("t log daemon.err a[3]: {hostile}").as_bytes(), message));
        let text = |name: &str| fields.get(name).map(|value| std::str::from_utf8(value).unwrap());
        assert_eq!(text("MESSAGE"), Some(hostile));
        assert_eq!((text("BAILIWICK_TENANT"), text("PRIORITY")), (Some("acme"), Some("3")));
        assert_eq!((text("SYSLOG_IDENTIFIER"), text("BAILIWICK_TAG")), (Some("blog"), Some("a")));
        assert_eq!((text("SYSLOG_PID"), text("BAILIWICK_FILE")), (Some("3"), None));
    }
}
