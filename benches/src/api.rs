//! Just enough HTTP for the API socket, so that no client library is measured with it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

/// `POST path`, with an answer of 2xx.
pub fn post(socket: &Path, path: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "POST {path} HTTP/1.1\r\nHost: host\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 2"), "POST {path}: {answer}");
    Ok(())
}

/// `GET /v1/events?follow=true`.
#[derive(Debug)]
pub struct Events {
    lines: std::io::Lines<BufReader<UnixStream>>,
}

impl Events {
    /// Follows from now on.
    pub fn follow(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        write!(stream, "GET /v1/events?follow=true HTTP/1.1\r\nHost: host\r\n\r\n")?;
        Ok(Self { lines: BufReader::new(stream).lines() })
    }

    /// Waits until one of `words` is said of `vps`.
    pub fn await_any(&mut self, vps: &str, words: &[&str]) -> Result<Value> {
        for line in self.lines.by_ref() {
            // Heads and chunk sizes are lines of their own, and no JSON objects.
            let Ok(event) = serde_json::from_str::<Value>(&line?) else { continue };
            if event["vps"] == vps && words.iter().any(|word| event["what"] == *word) {
                return Ok(event);
            }
        }
        bail!("the events ended")
    }
}
