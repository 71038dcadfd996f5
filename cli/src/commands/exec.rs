//! `exec`: a program inside a VPS, with this process's standard streams and its exit status.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use model::api::{ErrorKind, ExecRequest};
use tokio::sync::mpsc;

use crate::{
    arguments::Exec,
    client::Host,
    failure::{Failure, Result},
    frame::{self, Frame},
    output,
};

/// Bytes of input sent at once.
const CHUNK: usize = 64 << 10;

/// Runs it.
pub async fn run(host: &Host, exec: Exec) -> Result<ExitCode> {
    let Exec { name, user, env, cwd, command } = exec;
    let request = ExecRequest { command, env: env.into_iter().collect(), user, cwd };
    let stream = host.upgrade(&format!("/v1/vps/{name}/exec"), &request).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let mut input = stdin();
    let sending = tokio::spawn(async move {
        while let Some(data) = input.recv().await {
            // A program that ended does not read; its exit comes on the other half.
            if frame::write_stdin(&mut to, &data).await.is_err() || data.is_empty() {
                break;
            }
        }
        // Kept until the program has ended: dropping it would shut the connection down.
        to
    });
    let code = loop {
        match frame::read(&mut from).await? {
            Some(Frame::Stdout(data)) => output::raw(&data)?,
            Some(Frame::Stderr(data)) => io::stderr().write_all(&data)?,
            Some(Frame::Exit(code)) => break code,
            Some(Frame::Stdin(_)) => {}
            None => {
                let message = format!("the connection ended before the program in vps \"{name}\" did");
                return Err(Failure::new(ErrorKind::Unavailable, message).next(format!("bailiwick why {name}")));
            }
        }
    };
    sending.abort();
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}

/// Standard input, read by a thread of its own, since a read of a terminal can't be taken back; its end is an empty chunk.
fn stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = match io::stdin().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            if sender.blocking_send(buffer[..read].to_vec()).is_err() || read == 0 {
                return;
            }
        }
    });
    receiver
}
