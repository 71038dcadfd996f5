//! Runs a program and reads what it says, line by line and bounded.

use std::{collections::VecDeque, process::Stdio};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::BuildError;

/// Bytes of a line that are kept.
const LINE: usize = 4096;
/// Last lines that are kept for a message.
const LAST: usize = 40;
/// How long a stray process may keep a finished program's output open.
const STRAY: std::time::Duration = std::time::Duration::from_secs(2);

/// A line of a program's output.
#[derive(Debug, Clone, Copy)]
pub enum Line<'a> {
    /// Standard output.
    Out(&'a str),
    /// Standard error.
    Error(&'a str),
}

/// Runs `command` to its end. When it fails, the error carries the last lines of its standard error.
pub async fn run(doing: &str, mut command: Command, mut heard: impl FnMut(Line<'_>)) -> Result<(), BuildError> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| BuildError::NoProgram { program: name, source })?;
    let mut out = child.stdout.take().map(Lines::new);
    let mut error = child.stderr.take().map(Lines::new);
    let mut last = VecDeque::new();
    let mut read = async || {
        loop {
            tokio::select! {
                line = next(&mut out) => match line {
                    Some(line) => heard(Line::Out(&line)),
                    None => out = None,
                },
                line = next(&mut error) => match line {
                    Some(line) => {
                        heard(Line::Error(&line));
                        last.push_back(line);
                        if last.len() > LAST {
                            last.pop_front();
                        }
                    }
                    None => error = None,
                },
                else => return,
            }
            if out.is_none() && error.is_none() {
                return;
            }
        }
    };
    let status = {
        let mut reading = std::pin::pin!(read());
        tokio::select! {
            () = &mut reading => child.wait().await,
            status = child.wait() => {
                let _ = tokio::time::timeout(STRAY, reading).await;
                status
            }
        }
    };
    let status = status.map_err(|source| BuildError::File { doing: doing.to_owned(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(BuildError::Program { doing: doing.to_owned(), said: said(&last, status) })
}

/// The lines that say why: errors when there are some, the last ones otherwise.
fn said(last: &VecDeque<String>, status: std::process::ExitStatus) -> String {
    let is_error = |line: &&String| line.starts_with("E:") || line.contains("error:");
    let mut lines: Vec<&str> = last.iter().filter(is_error).map(String::as_str).collect();
    if lines.is_empty() {
        lines = last.iter().map(String::as_str).filter(|line| !line.trim().is_empty()).collect();
    }
    let lines = &lines[lines.len().saturating_sub(8)..];
    if lines.is_empty() { format!("it said nothing ({status})") } else { lines.join("\n") }
}

async fn next<R: AsyncRead + Unpin>(lines: &mut Option<Lines<R>>) -> Option<String> {
    match lines {
        Some(lines) => lines.next().await,
        None => std::future::pending().await,
    }
}

struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Where unread bytes begin.
    start: usize,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), start: 0, line: Vec::new() }
    }

    /// The next line, cut at `LINE` bytes; `None` at the end. Nothing is lost when it is dropped while it waits.
    async fn next(&mut self) -> Option<String> {
        loop {
            let unread = &self.buffer[self.start..];
            let end = unread.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &unread[..end.unwrap_or(unread.len())];
            let room = LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if let Some(end) = end {
                self.start += end + 1;
                return Some(self.take());
            }
            self.buffer.clear();
            self.start = 0;
            self.buffer.reserve(8192);
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) if self.line.is_empty() => return None,
                Ok(0) | Err(_) => return Some(self.take()),
                Ok(_) => {}
            }
        }
    }

    fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str) -> (Vec<String>, Result<(), BuildError>) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut heard = Vec::new();
        let ended = run("testing", command, |line| {
            heard.push(match line {
                Line::Out(line) => format!("out {line}"),
                Line::Error(line) => format!("error {line}"),
            });
        });
        let ended = ended.await;
        (heard, ended)
    }

    #[tokio::test]
    async fn lines_of_both_streams_are_heard_and_bounded() {
        let (mut heard, ended) =
            sh("echo a; echo b >&2; head -c 100000 /dev/zero | tr '\\0' x; echo; printf end").await;
        ended.expect("it succeeds");
        heard.sort();
        let long = format!("out {}", "x".repeat(LINE));
        assert_eq!(heard, ["error b", "out a", "out end", &long]);
    }

    #[tokio::test]
    async fn a_failure_carries_the_lines_that_say_why() {
        let (_, ended) = sh("echo noise >&2; echo 'E: no such thing' >&2; echo after >&2; exit 3").await;
        assert_eq!(ended.expect_err("it fails").to_string(), "testing failed:\nE: no such thing");
        let (_, ended) = sh("for n in 1 2 3 4 5 6 7 8 9; do echo $n >&2; done; exit 3").await;
        assert_eq!(ended.expect_err("it fails").to_string(), "testing failed:\n2\n3\n4\n5\n6\n7\n8\n9");
    }

    #[tokio::test]
    async fn a_process_that_keeps_the_output_open_holds_nobody_up() {
        let (heard, ended) = sh("sleep 60 & echo $!").await;
        ended.expect("it succeeds");
        let pid = heard[0].strip_prefix("out ").expect("a pid");
        let killed = std::process::Command::new("sh").args(["-c", "kill \"$0\"", pid]).status().expect("running sh");
        assert!(killed.success());
    }
}
