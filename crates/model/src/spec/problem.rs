//! What is wrong in a file a person wrote, and how it is shown.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong in a file a person wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// File name as the person gave it.
    pub file: String,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters are wrong, for the mark under them; at least 1.
    pub width: usize,
    /// The line's text, for showing; empty when the line is too long to be shown.
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What to write or do instead.
    pub hint: Option<String>,
}

/// The form a person reads: place and message, then the line with a mark and the hint under it.
///
/// ```text
/// blog.toml:11:1  unknown field `memory` in [vps.blog]
///   11 | memory = "512MiB"
///      | ^^^^^^ write: limits = { memory = "512MiB" }
/// ```
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}  {}", self.file, self.message)?;
        } else {
            write!(f, "{}:{}:{}  {}", self.file, self.line, self.column, self.message)?;
        }
        if self.line == 0 || self.text.is_empty() {
            return self.hint.iter().try_for_each(|hint| write!(f, "\n  next: {hint}"));
        }
        let number = self.line.to_string();
        let blank = " ".repeat(number.len());
        // A tab is one character of the file and as wide as the terminal likes: shown as one blank, the mark fits.
        let shown: String = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let before = " ".repeat(self.column.saturating_sub(1));
        let room = shown.chars().count().saturating_sub(self.column.saturating_sub(1)).max(1);
        let mark = "^".repeat(self.width.clamp(1, room));
        write!(f, "\n  {number} | {shown}\n  {blank} | {before}{mark}")?;
        self.hint.iter().try_for_each(|hint| write!(f, " {hint}"))
    }
}
