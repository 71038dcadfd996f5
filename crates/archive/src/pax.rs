//! Records before a member: `LENGTH KEY=VALUE\n` (pax(1)).

use std::collections::BTreeMap;

use crate::read::Attributes;

/// Bytes of all records of one member at most: a few attributes of the kernel's largest size.
pub const RECORDS: u64 = 1 << 20;
/// Bytes of all records that are meant for every member at most: they are copied for each.
pub const GLOBALS: u64 = 16 << 10;

/// Records by their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pax(BTreeMap<Vec<u8>, Vec<u8>>);

const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Adds the records in `text`; false: there is something else in it, or it makes them more than `limit` bytes.
    pub fn parse(&mut self, mut text: &[u8], limit: u64) -> bool {
        let size: usize = self.0.iter().map(|(key, value)| key.len() + value.len()).sum();
        // One header after the other may add to them.
        if (size + text.len()) as u64 > limit {
            return false;
        }
        while !text.is_empty() {
            let record = || {
                let digits = text.iter().position(|byte| *byte == b' ')?;
                let length: usize = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
                let (record, rest) = text.split_at_checked(length)?;
                let body = record.get(digits + 1..)?.strip_suffix(b"\n")?;
                let equals = body.iter().position(|byte| *byte == b'=')?;
                Some((&body[..equals], &body[equals + 1..], rest))
            };
            let Some((key, value, rest)) = record() else { return false };
            self.0.insert(key.to_vec(), value.to_vec());
            text = rest;
        }
        true
    }

    /// One value.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// One value as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        std::str::from_utf8(self.get(key)?).ok()?.parse().ok()
    }

    /// When the member was changed last: seconds and nanoseconds.
    pub fn modified(&self) -> Option<(i64, u32)> {
        let text = std::str::from_utf8(self.get("mtime")?).ok()?;
        let (seconds, part) = text.split_once('.').unwrap_or((text, ""));
        let digit =
            |at: usize| part.as_bytes().get(at).filter(|byte| byte.is_ascii_digit()).map_or(0, |byte| byte - b'0');
        let nanoseconds = (0..9).fold(0, |sum, at| sum * 10 + u32::from(digit(at)));
        Some((seconds.parse().ok()?, nanoseconds))
    }

    /// Extended attributes.
    pub fn attributes(&self) -> Attributes {
        let attribute =
            |(key, value): (&Vec<u8>, &Vec<u8>)| Some((key.strip_prefix(ATTRIBUTE)?.to_vec(), value.clone()));
        self.0.iter().filter_map(attribute).collect()
    }

    /// Adds one.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key.to_vec(), value.to_vec());
    }

    /// Adds an extended attribute.
    pub fn put_attribute(&mut self, name: &[u8], value: &[u8]) {
        self.put(&[ATTRIBUTE, name].concat(), value);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they are written.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in &self.0 {
            // A space, an equals sign and a newline; the length counts its own digits.
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length.to_string().len() + body != length {
                length = length.to_string().len() + body;
            }
            text.extend(length.to_string().into_bytes());
            text.extend([b" ", key.as_slice(), b"=", value, b"\n"].concat());
        }
        text
    }
}
