//! Files that persons write: TOML with places, checked against a table of fields, which also makes the JSON schema.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::spec::Problem;

mod check;
mod field;
mod nearest;
mod schema;

pub(crate) use check::check;
pub(crate) use field::{Field, Fields, Kind, Word, words};
pub use nearest::nearest;
pub(crate) use schema::schema;

/// A value with its place in the file.
pub(crate) type Value<'d> = Spanned<DeValue<'d>>;

/// Bytes of a file at most.
const MAX_FILE: usize = 1 << 20;
/// Problems told at once.
const MAX_PROBLEMS: usize = 50;
/// Characters of a line that is still shown.
const MAX_SHOWN: usize = 200;
/// Characters of a message, which may hold what was written.
const MAX_MESSAGE: usize = 500;

/// A file's name and text, which give each problem its place.
pub(crate) struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl<'a> Source<'a> {
    /// The document, or what is wrong with its syntax.
    pub fn parse(&self) -> Result<Spanned<DeTable<'a>>, Vec<Problem>> {
        if self.text.len() > MAX_FILE {
            return Err(vec![self.whole("the file is larger than 1 MiB", None)]);
        }
        let (document, errors) = DeTable::parse_recoverable(self.text);
        if errors.is_empty() {
            return Ok(document);
        }
        let mut twice = None;
        let told = errors.iter().filter(|e| !self.is_in_table_written_twice(&mut twice, e.message(), e.span()));
        Err(told
            .take(MAX_PROBLEMS)
            .map(|e| self.problem(e.span().unwrap_or(0..0), syntax_message(e.message()), None))
            .collect())
    }

    /// Whether an error only repeats that a table is written twice, which makes each of its keys a duplicate. `twice` is
    /// where the last such table begins.
    fn is_in_table_written_twice(&self, twice: &mut Option<usize>, message: &str, span: Option<Range<usize>>) -> bool {
        let Some(start) = span.map(|span| span.start).filter(|_| message == "duplicate key") else { return false };
        let line = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        if self.text[line..].trim_start().starts_with('[') {
            *twice = Some(start);
            return false;
        }
        twice.and_then(|table| self.text.get(table..start)).is_some_and(|between| !between.contains("\n["))
    }

    /// A problem with the file as a whole.
    pub fn whole(&self, message: impl Into<String>, hint: Option<String>) -> Problem {
        let (file, message) = (self.file.to_owned(), message.into());
        Problem { file, line: 0, column: 0, width: 1, text: String::new(), message, hint }
    }

    /// A problem with the part of the text at `span`.
    pub fn problem(&self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) -> Problem {
        let start = self.text.floor_char_boundary(span.start.min(self.text.len()));
        let first = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let last = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let end = self.text.floor_char_boundary(span.end.clamp(start, last));
        let column = self.text[first..start].chars().count() + 1;
        let width = self.text[start..end].trim_end().chars().count().max(1);
        let line = self.text[first..last].trim_end();
        // The mark must be under what it means, so a line too long for it is not shown at all.
        let shown = if column + width <= MAX_SHOWN { line.chars().take(MAX_SHOWN).collect() } else { String::new() };
        Problem {
            file: self.file.to_owned(),
            line: self.text[..start].matches('\n').count() + 1,
            column,
            width,
            text: shown,
            message: message.into(),
            hint,
        }
    }

    /// The text of a value as it is written, when that is short enough to be shown in a hint.
    pub fn written(&self, span: Range<usize>) -> Option<&'a str> {
        self.text.get(span).filter(|text| text.len() <= 60 && !text.contains('\n') && !text.is_empty())
    }
}

fn syntax_message(message: &str) -> String {
    format!("not TOML: {}", message.lines().collect::<Vec<_>>().join(", "))
}

/// Problems as they are found: so many and no more, since finding the place of each costs a look at the whole file.
pub(crate) struct Problems<'a> {
    pub source: &'a Source<'a>,
    list: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub fn new(source: &'a Source<'a>) -> Self {
        Self { source, list: Vec::new() }
    }

    /// Adds one with the part of the text at `span`.
    pub fn tell(&mut self, span: Range<usize>, message: impl AsRef<str>, hint: Option<String>) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(self.source.problem(span, shorten(message.as_ref(), MAX_MESSAGE), hint));
        }
    }

    /// Adds one with the file as a whole.
    pub fn tell_whole(&mut self, message: String, hint: Option<String>) {
        self.list.push(self.source.whole(message, hint));
    }

    /// `value` where there is no problem, else all of them in the order of the file.
    pub fn or<T>(mut self, value: impl FnOnce() -> Option<T>) -> Result<T, Vec<Problem>> {
        if self.list.is_empty() {
            return value().ok_or_else(|| vec![self.source.whole("not understood", None)]);
        }
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        Err(self.list)
    }
}

/// The beginning of a text that is too long.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a table holds under a name, once `check` has told all that does not fit: then a wrong value is as good as none.
pub(crate) trait Get {
    fn text(&self, name: &str) -> Option<&str>;
    fn integer(&self, name: &str) -> Option<i64>;
    fn boolean(&self, name: &str) -> Option<bool>;
    fn table(&self, name: &str) -> Option<&DeTable<'_>>;
    fn texts(&self, name: &str) -> Option<Vec<String>>;

    /// A text that means something.
    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }
}

impl Get for DeTable<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.get_ref().as_str()
    }
    fn integer(&self, name: &str) -> Option<i64> {
        integer(self.get(name)?)
    }
    fn boolean(&self, name: &str) -> Option<bool> {
        self.get(name)?.get_ref().as_bool()
    }
    fn table(&self, name: &str) -> Option<&DeTable<'_>> {
        self.get(name)?.get_ref().as_table()
    }
    fn texts(&self, name: &str) -> Option<Vec<String>> {
        let list = self.get(name)?.get_ref().as_array()?;
        list.iter().map(|value| value.get_ref().as_str().map(str::to_owned)).collect()
    }
}

/// A whole number.
pub(crate) fn integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A number, whole or not.
pub(crate) fn number(value: &Value<'_>) -> Option<f64> {
    match value.get_ref() {
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => integer(value).map(|n| n as f64),
    }
}
