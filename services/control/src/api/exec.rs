//! `POST /v1/vps/{name}/exec`: a program inside, its streams as frames on the upgraded connection.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{
        StatusCode,
        header::{CONNECTION, UPGRADE},
    },
    response::Response,
};
use hyper_util::rt::TokioIo;
use model::{
    VpsName,
    api::{ErrorKind, ExecRequest, State as VpsState},
};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::unix::pipe,
    sync::oneshot,
};
use wire::{
    Fault,
    host::{self, ExecEnded},
};

use super::{
    ACTOR,
    error::{ApiError, parse, vps_name},
    vps::reach,
};
use crate::{busy::Busy, life::Input, shared::Control};

mod terminal;

const PROTOCOL: &str = "bailiwick-exec";
/// Bytes of the request's body.
const REQUEST: usize = 1 << 20;
/// Bytes of one frame.
const FRAME: usize = 64 << 10;
/// The exit status when nobody could be asked to run the program.
const NOT_RUN: i32 = 125;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;

/// Wakes the VPS, answers the upgrade, and runs the program on the upgraded connection.
pub async fn exec(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let name = vps_name(&name)?;
    let asked = request.headers().get(UPGRADE).is_some_and(|value| value == PROTOCOL);
    if !asked {
        let message = format!("exec needs `Connection: upgrade` and `Upgrade: {PROTOCOL}`");
        return Err(ApiError::new(ErrorKind::Invalid, message));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), REQUEST).await;
    let body = body.map_err(|error| ApiError::new(ErrorKind::Invalid, error.to_string()))?;
    let wanted: ExecRequest = parse(&body)?;
    if wanted.command.first().is_none_or(String::is_empty) {
        return Err(ApiError::new(ErrorKind::Invalid, "exec needs a command"));
    }
    let busy = match control.get(&name) {
        Some(vps) => {
            let by = format!("exec by {ACTOR}");
            let busy = Busy::begin(vps.clone()).await;
            reach(&vps, Input::Need(by), VpsState::Running).await?;
            Some(busy)
        }
        None if control.config.designated.contains_key(&name) => None,
        None => return Err(ApiError::no_vps(&control, &name)),
    };
    control.history.record(Some(&name), "exec", wanted.command.join(" "), ACTOR);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                if let Err(error) = session(&control, &name, wanted, TokioIo::new(upgraded)).await {
                    tracing::debug!(vps = %name, %error, "an exec ended early");
                }
            }
            Err(error) => tracing::debug!(vps = %name, %error, "an exec was not taken up"),
        }
        drop(busy);
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(Body::empty());
    response.map_err(|error| ApiError::new(ErrorKind::Failed, error.to_string()))
}

/// Runs the program between the pipes. When the client goes away the call is dropped, and the host kills the program.
async fn session(
    control: &Control,
    name: &VpsName,
    wanted: ExecRequest,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> std::io::Result<()> {
    if wanted.terminal.is_some() {
        let (ours, theirs) = terminal::pair()?;
        let (reader, writer) = tokio::io::split(stream);
        return terminal::run(ours, reader, writer, call(control, name, wanted, vec![theirs])).await;
    }
    let (input, input_ours) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output_ours, output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors_ours, errors) = pipe_with(PipeFlags::CLOEXEC)?;
    let (reader, writer) = tokio::io::split(stream);
    let (ended, end) = oneshot::channel();
    let outputs = Outputs {
        stdout: Some(pipe::Receiver::from_owned_fd(output_ours)?),
        stderr: Some(pipe::Receiver::from_owned_fd(errors_ours)?),
        writer,
    };
    let mut outputs = tokio::spawn(outputs.run(end));
    let gone = stdin(reader, pipe::Sender::from_owned_fd(input_ours)?);
    let call = call(control, name, wanted, vec![input, output, errors]);
    tokio::select! {
        result = call => {
            let _ = ended.send(result);
            outputs.await?
        }
        () = gone => {
            outputs.abort();
            Ok(())
        }
        // It ends by itself only when nobody reads.
        result = &mut outputs => result?,
    }
}

async fn call(control: &Control, name: &VpsName, wanted: ExecRequest, fds: Vec<OwnedFd>) -> Result<ExecEnded, Fault> {
    let method = host::Exec {
        name: name.clone(),
        command: wanted.command,
        env: wanted.env,
        user: wanted.user.unwrap_or_else(|| "root".to_owned()),
        cwd: wanted.cwd.unwrap_or_else(|| "/".to_owned()),
        terminal: wanted.terminal,
    };
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // A command that may have run is not run again.
    control.host.call_once(&method, &borrowed).await
}

/// Frames from the client into the program's input; completes when the client is gone.
async fn stdin(mut reader: impl AsyncRead + Unpin, input: pipe::Sender) {
    let mut input = Some(input);
    loop {
        let mut head = [0; 5];
        if reader.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if head[0] != STDIN || length > FRAME {
            return;
        }
        let mut bytes = vec![0; length];
        if reader.read_exact(&mut bytes).await.is_err() {
            return;
        }
        if length == 0 {
            input = None;
        } else if let Some(pipe) = &mut input
            && pipe.write_all(&bytes).await.is_err()
        {
            // The program does not read any more; what it still says counts.
            input = None;
        }
    }
}

struct Outputs<W> {
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    writer: W,
}

async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

impl<W: AsyncWrite + Unpin> Outputs<W> {
    async fn run(mut self, mut end: oneshot::Receiver<Result<ExecEnded, Fault>>) -> std::io::Result<()> {
        let (mut out, mut err) = (vec![0; FRAME], vec![0; FRAME]);
        let result = loop {
            tokio::select! {
                n = read(&mut self.stdout, &mut out) => match n? {
                    0 => self.stdout = None,
                    n => self.frame(STDOUT, &out[..n]).await?,
                },
                n = read(&mut self.stderr, &mut err) => match n? {
                    0 => self.stderr = None,
                    n => self.frame(STDERR, &err[..n]).await?,
                },
                result = &mut end => break result,
            }
        };
        // All it wrote is in the pipes by now; a process it left behind may keep them open for ever.
        self.drain(&mut out).await?;
        finish(&mut self.writer, STDERR, result).await
    }

    async fn drain(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        for (kind, pipe) in [(STDOUT, self.stdout.take()), (STDERR, self.stderr.take())] {
            let Some(pipe) = pipe else { continue };
            // Past tokio, which asks the kernel only after it was told that there is something.
            while let Ok(n @ 1..) = rustix::io::read(&pipe, &mut *buffer) {
                self.frame(kind, &buffer[..n]).await?;
            }
        }
        Ok(())
    }

    async fn frame(&mut self, kind: u8, bytes: &[u8]) -> std::io::Result<()> {
        frame(&mut self.writer, kind, bytes).await
    }
}

async fn frame(writer: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> std::io::Result<()> {
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind);
    frame.extend((bytes.len() as u32).to_be_bytes());
    frame.extend(bytes);
    writer.write_all(&frame).await?;
    writer.flush().await
}

/// Says how the program ended; why it could not be run goes where its errors go.
async fn finish(
    writer: &mut (impl AsyncWrite + Unpin),
    errors: u8,
    result: Result<Result<ExecEnded, Fault>, oneshot::error::RecvError>,
) -> std::io::Result<()> {
    let (code, error) = match result {
        Ok(Ok(ended)) => (ended.status.shell_code(), ended.error),
        Ok(Err(fault)) => (NOT_RUN, Some(fault.to_string())),
        Err(_) => (NOT_RUN, None),
    };
    if let Some(error) = error {
        frame(writer, errors, format!("bailiwick: {error}\n").as_bytes()).await?;
    }
    frame(writer, EXIT, code.to_string().as_bytes()).await?;
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use model::ExitStatus;

    use super::*;

    #[tokio::test]
    async fn output_comes_in_frames_and_the_exit_last() {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let outputs =
            Outputs { stdout: Some(pipe::Receiver::from_owned_fd(ours).unwrap()), stderr: None, writer: server };
        let (ended, end) = oneshot::channel();
        rustix::io::write(&theirs, b"hello").unwrap();
        ended.send(Ok(ExecEnded { status: ExitStatus::Code(7), error: None })).unwrap();
        // The other end stays open, as a process left behind would keep it.
        outputs.run(end).await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"\x01\0\0\0\x05hello\x03\0\0\0\x017");
        drop(theirs);
    }

    #[tokio::test]
    async fn input_ends_with_an_empty_frame() {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let frames: &[u8] = b"\0\0\0\0\x02hi\0\0\0\0\0";
        stdin(frames, pipe::Sender::from_owned_fd(ours).unwrap()).await;
        let mut text = String::new();
        pipe::Receiver::from_owned_fd(theirs).unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hi");
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_ends_the_session() {
        let (_theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let frames: &[u8] = b"\0\xff\xff\xff\xff";
        stdin(frames, pipe::Sender::from_owned_fd(ours).unwrap()).await;
    }
}
