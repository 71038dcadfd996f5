//! Programs that this service itself runs inside a VPS: jobs, and the question whether it is busy.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use model::{ExitStatus, VpsName, VpsSpec};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{io::AsyncReadExt as _, net::unix::pipe};
use wire::{Fault, host};

use crate::shared::Control;

/// Bytes of its output that are kept, the last ones.
const KEPT: usize = 4096;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// None: it was killed when its time was over.
    pub status: Option<ExitStatus>,
    /// Why it could not be run.
    pub error: Option<String>,
    /// How long it ran.
    pub took: Duration,
    /// The end of what it wrote.
    pub output: String,
}

/// Runs `command` with the VPS's environment, as `user` or as its own program does, for `limit` at most.
pub async fn run(
    control: &Control,
    name: &VpsName,
    spec: &VpsSpec,
    command: &[String],
    user: Option<&str>,
    limit: Duration,
) -> Result<Ended, Fault> {
    let pipes = || -> io::Result<_> {
        let (input, _) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ours, output) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((input, output, pipe::Receiver::from_owned_fd(ours)?))
    };
    let no_pipe = |error: io::Error| Fault::new(model::api::ErrorKind::Failed, format!("a pipe: {error}"));
    let (input, output, mut reader) = pipes().map_err(no_pipe)?;
    let env: BTreeMap<_, _> = spec.env.clone();
    let method = host::Exec {
        name: name.clone(),
        command: command.to_vec(),
        env,
        user: user.unwrap_or(&spec.user).to_owned(),
        cwd: spec.cwd.clone(),
        terminal: None,
    };
    let began = Instant::now();
    let mut tail = Tail::default();
    let result = {
        let fds = [input.as_fd(), output.as_fd(), output.as_fd()];
        let call = tokio::time::timeout(limit, control.host.call_once(&method, &fds));
        tokio::pin!(call);
        let mut buffer = vec![0; 8192];
        let mut open = true;
        loop {
            tokio::select! {
                // In this order: what it wrote last must not wait behind its end.
                biased;
                read = reader.read(&mut buffer), if open => match read {
                    Ok(n @ 1..) => tail.add(&buffer[..n]),
                    _ => open = false,
                },
                result = &mut call => break result,
            }
        }
    };
    // A process it left behind may keep the pipe open for ever: what is in it now is all.
    let mut buffer = vec![0; 8192];
    for _ in 0..64 {
        match rustix::io::read(&reader, &mut buffer[..]) {
            Ok(n @ 1..) => tail.add(&buffer[..n]),
            _ => break,
        }
    }
    let took = began.elapsed();
    let output = tail.text();
    match result {
        Err(_) => Ok(Ended { status: None, error: None, took, output }),
        Ok(Err(fault)) => Err(fault),
        Ok(Ok(ended)) => Ok(Ended { status: Some(ended.status), error: ended.error, took, output }),
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > KEPT {
            self.cut = true;
            self.bytes.drain(..self.bytes.len() - KEPT);
        }
    }

    /// Whole lines where it was cut.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        match text.split_once('\n').filter(|_| self.cut) {
            Some((_, rest)) => format!("…\n{rest}"),
            None => text.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        let mut tail = Tail::default();
        tail.add(b"one\n");
        assert_eq!(tail.text(), "one\n");
        (0..2000).for_each(|n| tail.add(format!("line {n}\n").as_bytes()));
        let text = tail.text();
        assert!(text.starts_with("…\nline ") && text.ends_with("line 1999\n") && text.len() <= KEPT + 4, "{text}");
    }
}
