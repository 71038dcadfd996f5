//! Standard output: lines of text or JSON, harmless to a terminal, and quiet about a reader that went away.

use std::{
    io::{self, IsTerminal, Write},
    process,
};

use serde::Serialize;

use crate::failure::Result;

/// Whether standard output is a terminal.
pub fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether to use colors on standard output.
pub fn colored() -> bool {
    on_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `text` in a color (SGR parameters), or as it is.
pub fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Writes bytes. A reader that went away (`bailiwick ps | head -1`) has read what it wanted: the command ends.
pub fn raw(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        other => Ok(other?),
    }
}

/// Writes text and a line end. What it holds may come from a tenant, so on a terminal control characters are shown, not
/// obeyed.
pub fn line(text: &str) -> Result<()> {
    let text = if on_terminal() { harmless(text) } else { text.to_owned() };
    raw(format!("{text}\n").as_bytes())
}

/// Writes a text of our own making, which may hold colors.
pub fn own(text: &str) -> Result<()> {
    raw(text.as_bytes())
}

/// Writes a value as JSON.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    json_text(serde_json::to_string_pretty(value)?)
}

/// Writes a value as JSON in one line.
pub fn json_line<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    json_text(serde_json::to_string(value)?)
}

fn json_text(text: String) -> Result<()> {
    let text = if on_terminal() { harmless_json(&text) } else { text };
    raw(format!("{text}\n").as_bytes())
}

/// The same JSON with what JSON leaves as it is and a terminal might obey written as escapes; it can only be in strings.
fn harmless_json(text: &str) -> String {
    let escape = |c: char| if steers(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Whether a terminal might obey `c`, or turn the direction of writing by it, which could make a line look like another.
fn steers(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && c != '\n' && c != '\t')
}

/// `text` with control characters made visible, but for line ends and tabs.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !steers(c) => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(harmless("a\x1b[31m\tb\r\u{9b}1m\u{202e}\n"), "a\\x1b[31m\tb\\x0d\\u{9b}1m\\u{202e}\n");
        assert_eq!(harmless("grüße"), "grüße");
        let text = serde_json::to_string("\u{1b}\u{9b}1m\u{7f}ü").expect("JSON");
        assert_eq!(harmless_json(&text), r#""\u001b\u009b1m\u007fü""#);
    }
}
