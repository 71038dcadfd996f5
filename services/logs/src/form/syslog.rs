//! RFC 5424, and the counted frames of RFC 6587 on streams.
//!
//! The host name is the VPS's, as if it sent its lines itself; whose it is, stands in structured data beside it.

use super::Record;

/// Names our structured data. 32473 is the number that RFC 5612 gives to who has none of his own.
const ELEMENT: &str = "bailiwick@32473";

/// Adds a record to `out`; on a stream, counted.
pub fn write(record: Record<'_>, stream: bool, out: &mut Vec<u8>) {
    let message = message(record);
    if stream {
        out.extend(format!("{} ", message.len()).as_bytes());
    }
    out.extend(message.as_bytes());
}

/// One message.
pub fn message(record: Record<'_>) -> String {
    let Record { node, vps, tenant, line } = record;
    let at = if is_time(&line.at) { line.at.as_str() } else { "-" };
    // 48 characters at most, each of those that are seen.
    let tag = line.tag.as_deref().filter(|tag| tag.bytes().all(|b| b.is_ascii_graphic())).unwrap_or(vps.as_str());
    let tag = &tag[..tag.len().min(48)];
    let pid = line.pid.map_or("-".to_owned(), |pid| pid.to_string());
    let mut data = String::new();
    let fields = [("vps", Some(vps.as_str())), ("tenant", tenant.map(|tenant| tenant.as_str()))];
    let more = [("source", Some(line.stream.as_str())), ("file", line.file.as_deref()), ("host", Some(node))];
    for (name, value) in fields.into_iter().chain(more) {
        if let Some(value) = value {
            data.push_str(&format!(" {name}=\"{}\"", quoted(value)));
        }
    }
    let priority = record.facility() * 8 + record.severity();
    format!("<{priority}>1 {at} {vps} {tag} {pid} {} [{ELEMENT}{data}] {}", line.stream, seen(&line.text))
}

/// Whether it is a time as a shim writes it, which is one of RFC 5424's.
fn is_time(text: &str) -> bool {
    let shape = b"0000-00-00T00:00:00.000000Z";
    let fits = |(shape, byte): (&u8, u8)| if *shape == b'0' { byte.is_ascii_digit() } else { *shape == byte };
    text.len() == shape.len() && shape.iter().zip(text.bytes()).all(fits)
}

/// A value of structured data.
fn quoted(value: &str) -> String {
    let mut quoted = String::new();
    for c in seen(value).chars() {
        if "\"\\]".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// A text without control characters, which are written as rsyslog does: no receiver can take one message for two.
fn seen(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => seen.push(c),
            c if c.is_control() => seen.push_str(&format!("#{:03o}", c as u32)),
            c => seen.push(c),
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form::tests::with;

    #[test]
    fn a_message_has_its_parts() {
        let said = with(b"2026-11-22T10:00:00.000000Z log mail.warning postfix/smtpd[7]: slow", message);
        let expected = "<20>1 2026-11-22T10:00:00.000000Z blog postfix/smtpd 7 log \
                        [bailiwick@32473 vps=\"blog\" tenant=\"acme\" source=\"log\" host=\"host1\"] slow";
        assert_eq!(said, expected);
        let said = with(b"2026-11-22T10:00:00.000000Z file /a\"b]\\c#012 x", message);
        assert!(said.starts_with("<30>1 2026-11-22T10:00:00.000000Z blog blog - file ["), "{said}");
        assert!(said.contains(" file=\"/a\\\"b\\]\\\\c#012\" "), "{said}");
    }

    #[test]
    fn no_text_looks_like_two_messages() {
        let mut out = Vec::new();
        let hostile = b"not a time out x\n9 <0>1 - beta - - - - forged\0\x1b[2J\r";
        with(hostile, |record| write(record, true, &mut out));
        with(hostile, |record| write(record, true, &mut out));
        // As RFC 6587 says: a length, a space, so many bytes.
        let mut rest = out.as_slice();
        for _ in 0..2 {
            let space = rest.iter().position(|b| *b == b' ').unwrap();
            let length: usize = std::str::from_utf8(&rest[..space]).unwrap().parse().unwrap();
            let message = std::str::from_utf8(&rest[space + 1..][..length]).unwrap();
            assert!(
                message.starts_with("<29>1 - blog blog - vps [bailiwick@32473 vps=\"blog\" tenant=\"acme\""),
                "{message}"
            );
            assert!(!message.chars().any(char::is_control), "{message:?}");
            rest = &rest[space + 1 + length..];
        }
        assert!(rest.is_empty());
    }
}
