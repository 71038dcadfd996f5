//! A program with a terminal: its master comes from inside, and is read and written here for the client.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::run::WindowSize;
use rustix::{
    fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat, major, minor},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, unix::AsyncFd},
    sync::Notify,
};
use wire::{Fault, host::ExecEnded, seqpacket::recv_with_fds};

use super::{FRAME, STDIN, STDOUT, finish, frame};

/// Kind of a frame with the window's new size.
const SIZE: u8 = 4;
/// Bytes of input that wait for a program that does not read; what is more is lost, as at any terminal.
const WAITING: usize = 1 << 20;
/// How long a program has to end after the hang-up before it is killed.
const HANG_UP: Duration = Duration::from_secs(2);

/// `fd` in the event loop.
// What made this constructor unsound is a type that answers another descriptor each time; `OwnedFd` answers its own. Its
// successor can be called in unsafe code only.
#[allow(deprecated)]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Both ends of the way that the master comes.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Runs until the program has ended or the client is gone. `call` starts it and says how it ended; dropped, it is killed.
pub async fn run(
    ours: OwnedFd,
    reader: impl AsyncRead + Send + Unpin + 'static,
    mut writer: impl AsyncWrite + Unpin,
    call: impl Future<Output = Result<ExecEnded, Fault>>,
) -> io::Result<()> {
    let input = Arc::new(Input::default());
    let mut gone = tokio::spawn(input.clone().hear(reader));
    tokio::pin!(call);
    let ours = watch(ours)?;
    let master = tokio::select! {
        master = receive(&ours) => watch(master?)?,
        result = &mut call => return finish(&mut writer, STDOUT, Ok(result)).await,
        _ = &mut gone => return Ok(()),
    };
    let (mut buffer, mut open) = (vec![0; FRAME], true);
    let result = loop {
        tokio::select! {
            read = read(&master, &mut buffer), if open => match read? {
                0 => open = false,
                n => frame(&mut writer, STDOUT, &buffer[..n]).await?,
            },
            // It ends only by a failure, which the reading half sees too.
            () = input.write(&master) => {}
            result = &mut call => break result,
            _ = &mut gone => {
                // The end of its last holder is the terminal's hang-up.
                drop(master);
                let _ = tokio::time::timeout(HANG_UP, &mut call).await;
                return Ok(());
            }
        }
    };
    gone.abort();
    // All it wrote can be read by now; a process that it left behind may hold the terminal for ever.
    while let Ok(n @ 1..) = rustix::io::read(&master, buffer.as_mut_slice()) {
        frame(&mut writer, STDOUT, &buffer[..n]).await?;
    }
    finish(&mut writer, STDOUT, Ok(result)).await
}

/// The master of the terminal; what else comes is refused, since it came from inside.
async fn receive(ours: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    let fds = loop {
        let mut guard = ours.readable().await?;
        let Ok(received) = guard.try_io(|socket| recv_with_fds(socket.as_fd(), &mut [0; 1])) else { continue };
        match received? {
            // It was not made; the call says why.
            (0, _) => std::future::pending().await,
            (_, fds) => break fds,
        }
    };
    let refused = || io::Error::new(io::ErrorKind::InvalidData, "what came from inside is no terminal");
    let master = fds.into_iter().next().ok_or_else(refused)?;
    let stat = fstat(&master)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    // /dev/ptmx: its driver answers every call on it at once, whoever holds the other end.
    if !device || (major(stat.st_rdev), minor(stat.st_rdev)) != (5, 2) {
        return Err(refused());
    }
    fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    rustix::io::write(ours.get_ref(), b"t")?;
    Ok(master)
}

/// Reads once; 0 when nobody has the terminal any more.
async fn read(master: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = master.readable().await?;
        match guard.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
            Ok(read) => return read,
            Err(_) => {}
        }
    }
}

/// What the client sends.
#[derive(Default)]
struct Input {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    size: Option<WindowSize>,
}

impl Input {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes frames; completes when the client is gone, or sends what is none.
    async fn hear(self: Arc<Self>, mut reader: impl AsyncRead + Unpin) {
        loop {
            let mut head = [0; 5];
            if reader.read_exact(&mut head).await.is_err() {
                return;
            }
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > FRAME {
                return;
            }
            let mut bytes = vec![0; length];
            if reader.read_exact(&mut bytes).await.is_err() {
                return;
            }
            match (head[0], bytes.as_slice()) {
                (STDIN, bytes) => {
                    let mut waiting = self.waiting();
                    let free = WAITING - waiting.bytes.len();
                    waiting.bytes.extend(&bytes[..bytes.len().min(free)]);
                }
                (SIZE, &[a, b, c, d]) => {
                    let (rows, columns) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    self.waiting().size = Some(WindowSize { rows, columns });
                }
                _ => return,
            }
            self.more.notify_one();
        }
    }

    /// Gives the terminal what waits for it. May be dropped and called again.
    async fn write(&self, master: &AsyncFd<OwnedFd>) {
        loop {
            if let Some(size) = self.waiting().size.take() {
                let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
                let _ = tcsetwinsize(master, size);
            }
            if self.waiting().bytes.is_empty() {
                self.more.notified().await;
                continue;
            }
            let ready = tokio::select! {
                ready = master.writable() => ready,
                // A new size does not wait for a program that does not read.
                () = self.more.notified() => continue,
            };
            let Ok(mut guard) = ready else { return std::future::pending().await };
            let mut waiting = self.waiting();
            let written = guard.try_io(|fd| Ok(rustix::io::write(fd, waiting.bytes.as_slices().0)?));
            match written {
                Ok(Ok(n)) => drop(waiting.bytes.drain(..n)),
                Ok(Err(_)) => waiting.bytes.clear(),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_terminal_is_refused() {
        let (ours, theirs) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        wire::seqpacket::send_with_fds(theirs.as_fd(), b"t", &[null.as_fd()]).unwrap();
        let error = receive(&watch(ours).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("no terminal"), "{error}");
    }

    #[tokio::test]
    async fn input_and_sizes_are_taken_and_bounded() {
        let input = Arc::new(Input::default());
        let mut frames = vec![SIZE, 0, 0, 0, 4, 0, 24, 0, 80, STDIN, 0, 0, 0, 2, b'h', b'i'];
        for _ in 0..20 {
            frames.extend([STDIN, 0, 1, 0, 0]);
            frames.extend(vec![b'x'; FRAME]);
        }
        input.clone().hear(frames.as_slice()).await;
        let waiting = input.waiting();
        assert_eq!(waiting.size, Some(WindowSize { rows: 24, columns: 80 }));
        assert_eq!(waiting.bytes.len(), WAITING);
    }
}
