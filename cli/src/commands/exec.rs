//! `exec`: a program inside a VPS, with this process's standard streams or its terminal, and its exit status.

use std::{
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};

use model::api::{ErrorKind, ExecRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    arguments::Exec,
    client::Host,
    failure::{Failure, Result},
    frame::{self, Frame},
    output,
};

mod terminal;

use terminal::{Heard, Terminal};

/// Bytes of input sent at once.
const CHUNK: usize = 64 << 10;
/// What is run where no command is given: the better of the shells that are there.
const SHELL: &str = "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi";
/// Variables of the terminal that its programs draw by.
const ABOUT_TERMINALS: [&str; 2] = ["TERM", "COLORTERM"];

/// Runs it.
pub async fn run(host: &Host, exec: Exec) -> Result<ExitCode> {
    let Exec { name, user, env, cwd, tty, interactive: _, mut command } = exec;
    let attended = io::stdin().is_terminal() && io::stdout().is_terminal();
    if tty && !io::stdin().is_terminal() {
        let message = "standard input is no terminal, so there is none to hand on";
        return Err(Failure::new(ErrorKind::Invalid, message).next("leave -t out"));
    }
    if command.is_empty() {
        if !attended {
            let message = "exec needs a command where standard input and output are no terminal";
            return Err(Failure::new(ErrorKind::Invalid, message).next(format!("bailiwick exec {name} -- COMMAND")));
        }
        command = ["sh", "-c", SHELL].map(str::to_owned).to_vec();
    } else if !tty {
        let request = ExecRequest { command, env: env.into_iter().collect(), user, cwd, terminal: None };
        return plain(host, &name, &request).await;
    }
    let variable = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
    let env = ABOUT_TERMINALS.iter().filter_map(variable).chain(env).collect();
    let request = ExecRequest { command, env, user, cwd, terminal: Some(terminal::size()?) };
    let stream = host.upgrade(&format!("/v1/vps/{name}/exec"), &request).await?;
    let (from, to) = tokio::io::split(stream);
    // From here on until it is dropped.
    let terminal = Terminal::raw()?;
    let ended = attend(from, to, terminal.heard()?).await;
    drop(terminal);
    match ended? {
        Some(code) => Ok(exit(code)),
        None => Err(broken_off(&name)),
    }
}

/// At the terminal, until the program has ended (its code) or the connection (none), or a signal ends this process.
async fn attend(
    mut from: impl AsyncRead + Send + Unpin + 'static,
    mut to: impl AsyncWrite + Unpin,
    mut heard: terminal::Signals,
) -> Result<Option<i32>> {
    let (frames, mut coming) = mpsc::channel(4);
    tokio::spawn(async move {
        // A frame is read in pieces, which must not be dropped between two of them.
        while let Ok(Some(frame)) = frame::read(&mut from).await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut input = stdin();
    let mut reads = true;
    loop {
        let sent = tokio::select! {
            frame = coming.recv() => match frame {
                Some(Frame::Stdout(data)) => { show(&data)?; Ok(()) }
                Some(Frame::Stderr(data)) => { io::stderr().write_all(&data)?; Ok(()) }
                Some(Frame::Exit(code)) => return Ok(Some(code)),
                Some(Frame::Stdin(_)) => Ok(()),
                None => return Ok(None),
            },
            data = input.recv(), if reads => match data {
                Some(data) if !data.is_empty() => frame::write_stdin(&mut to, &data).await,
                _ => { reads = false; Ok(()) }
            },
            heard = heard.next() => match heard {
                Heard::Size(size) => frame::write_size(&mut to, size).await,
                Heard::End(signal) => return Ok(Some(128 + signal)),
            },
        };
        // The end of the connection comes on the other half, after what the program said.
        reads &= sent.is_ok();
    }
}

/// Unlike `output::raw` it never ends this process, whose terminal has to be given back.
fn show(data: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(data)?;
    out.flush()
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

fn broken_off(name: &model::VpsName) -> Failure {
    let message = format!("the connection ended before the program in vps \"{name}\" did");
    Failure::new(ErrorKind::Unavailable, message).next(format!("bailiwick why {name}"))
}

/// With the three standard streams.
async fn plain(host: &Host, name: &model::VpsName, request: &ExecRequest) -> Result<ExitCode> {
    let stream = host.upgrade(&format!("/v1/vps/{name}/exec"), request).await?;
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
            None => return Err(broken_off(name)),
        }
    };
    sending.abort();
    Ok(exit(code))
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
