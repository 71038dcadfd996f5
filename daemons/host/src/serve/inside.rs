//! Calls about what goes on inside a VPS: `Exec` and `Logs`.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use isolation::host::within;
use model::{ListenAddress, Transport, Verb, VpsName, api::ErrorKind};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};
use tokio::{
    net::{TcpSocket, UdpSocket},
    sync::oneshot,
    time::timeout,
};
use wire::{
    Fault, Replier, Request,
    host::{Exec, ExecEnded, Logs, Ports},
    shim::{TERMINALS, ToShim},
    varlink::Empty,
};

use super::Capability;
use crate::{life::Step, table::Vps};

/// Bytes that are read of a VPS's table of sockets.
const TABLE: u64 = 1 << 20;
/// How long a connection from inside may take, and what becomes of a datagram.
const PROBE: Duration = Duration::from_secs(5);
const ECHO: Duration = Duration::from_secs(1);
/// Programs that run inside one VPS at once by `Exec`.
const EXECS: usize = 64;

fn is_down(name: &VpsName) -> Fault {
    Fault::new(ErrorKind::Conflict, format!("vps \"{name}\" is not up"))
}

impl Capability {
    pub(super) async fn exec(&self, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let exec: Exec = request.parse()?;
        self.check(Verb::Exec, &exec.name)?;
        let needed = if exec.terminal.is_some() { 1 } else { 3 };
        if request.fds.len() != needed {
            let message = "exec needs three descriptors: stdin, stdout, stderr; with a terminal, one socket";
            return Err(Fault::new(ErrorKind::Invalid, message));
        }
        let name = exec.name.clone();
        let id = self.host.next_exec();
        let (run, ended) = self.begin_exec(id, exec, &request.fds)?;
        drop(request);
        tokio::select! {
            ended = ended => {
                let gone = |_| Fault::new(ErrorKind::Failed, format!("vps \"{name}\" ended while the program ran"));
                Ok(replier.done::<Exec>(&ended.map_err(gone)?, &[]).await?)
            }
            () = replier.gone() => {
                if let Some(up) = self.host.table().run_mut(&name, run).and_then(Vps::up_mut) {
                    up.execs.remove(&id);
                    let _ = up.say(&ToShim::ExecKill { id }, &[]);
                }
                Ok(())
            }
        }
    }

    /// Read in the network namespace of its first process (proc(5), `/proc/PID/net/tcp6`).
    pub(super) fn open_ports(&self, name: &VpsName) -> Result<Ports, Fault> {
        self.check(Verb::Watch, name)?;
        let pid = || self.first_process(name);
        let down = || is_down(name);
        let first = pid().ok_or_else(down)?;
        let [tcp6, udp, udp6] =
            [("tcp6", LISTEN), ("udp", UNCONNECTED), ("udp6", UNCONNECTED)].map(|(table, state)| {
                let mut text = String::new();
                // Without IPv6 there is no such table; of one that is longer the rest does not count.
                if let Ok(file) = File::open(format!("/proc/{first}/net/{table}")) {
                    let _ = file.take(TABLE).read_to_string(&mut text);
                }
                text.lines().filter_map(|line| open_port(line, state)).collect()
            });
        // Its number may have become another process's meanwhile.
        if pid() != Some(first) {
            return Err(down());
        }
        Ok(Ports { tcp6, udp, udp6 })
    }

    fn first_process(&self, name: &VpsName) -> Option<i32> {
        self.host.table().get(name).ok().and_then(|vps| vps.status(name, false).pid)
    }

    /// Connects from inside a VPS: why that failed.
    pub(super) async fn probe(
        &self,
        name: &VpsName,
        ListenAddress(to, transport): ListenAddress,
    ) -> Result<Option<String>, Fault> {
        self.check(Verb::Exec, name)?;
        let pid = || self.first_process(name);
        let down = || is_down(name);
        let failed = |error: io::Error| Fault::new(ErrorKind::Failed, format!("a socket in vps \"{name}\": {error}"));
        let first = pid().ok_or_else(down)?;
        let namespace = File::open(format!("/proc/{first}/ns/net")).map_err(|_| down())?;
        // Its number may have become another process's meanwhile.
        if pid() != Some(first) {
            return Err(down());
        }
        let (family, kind) = (
            if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 },
            if transport == Transport::Tcp { SocketType::STREAM } else { SocketType::DGRAM },
        );
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = within(namespace.as_fd(), || socket_with(family, kind, flags, None)).map_err(failed)?;
        let socket = socket.map_err(|error| failed(error.into()))?;
        let tried = async {
            match transport {
                Transport::Tcp => TcpSocket::from_std_stream(socket.into()).connect(to).await.map(drop),
                Transport::Udp => {
                    let socket = UdpSocket::from_std(socket.into())?;
                    socket.connect(to).await?;
                    socket.send(&[]).await?;
                    // What a router says of it comes as an error of the next call.
                    match timeout(ECHO, socket.recv(&mut [0])).await {
                        Ok(received) => received.map(drop),
                        Err(_) => Ok(()),
                    }
                }
            }
        };
        Ok(match timeout(PROBE, tried).await {
            Ok(done) => done.err().map(|error| error.to_string()),
            Err(_) => Some(format!("nothing came back in {} s", PROBE.as_secs())),
        })
    }

    fn begin_exec(&self, id: u64, exec: Exec, fds: &[OwnedFd]) -> Result<(u64, oneshot::Receiver<ExecEnded>), Fault> {
        let Exec { name, command, env, user, cwd, terminal } = exec;
        let conflict = |message: &str| Fault::new(ErrorKind::Conflict, format!("vps \"{name}\" {message}"));
        let mut table = self.host.table();
        let vps = table.get_mut(&name)?;
        let run = vps.run;
        let up = vps.up_mut().ok_or_else(|| conflict("is down; start it first"))?;
        if up.step == Step::Frozen {
            return Err(conflict("is frozen; thaw it first"));
        }
        if up.execs.len() >= EXECS {
            return Err(conflict("runs too many such programs already"));
        }
        if terminal.is_some() && up.shim_version < TERMINALS {
            return Err(conflict("has a shim from before terminals were; restart it, or run the program without one"));
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let said = up.say(&ToShim::Exec { id, command, env, user, cwd, terminal }, &fds);
        said.map_err(|e| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": its shim does not listen: {e}")))?;
        let (ended, waits) = oneshot::channel();
        up.execs.insert(id, ended);
        Ok((run, waits))
    }

    pub(super) async fn logs(&self, logs: Logs, replier: &mut Replier<'_>) -> Result<(), Fault> {
        self.check(Verb::Logs, &logs.name)?;
        let files = open_logs(&self.host.place.vps(&logs.name));
        let files =
            files.map_err(|e| Fault::new(ErrorKind::Failed, format!("vps \"{}\": its logs: {e}", logs.name)))?;
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        Ok(replier.done::<Logs>(&Empty {}, &files).await?)
    }
}

/// A VPS's log files, oldest first. The directory is the shim's, who has read what the tenant wrote: no link in it is followed.
pub fn open_logs(vps: &Path) -> Result<Vec<OwnedFd>, Errno> {
    let directory = vps.join("log");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, &directory, flags, Mode::empty())?;
    let mut files = Vec::new();
    for file in ["log.1", "log"] {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match openat2(&directory, file, flags, Mode::empty(), resolve) {
            Ok(fd) if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::RegularFile => files.push(fd),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// States in tables of sockets (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// The port of a line of such a table, where its socket is in that state and not at a loopback address.
fn open_port(line: &str, state: &str) -> Option<u16> {
    const LOOPBACK6: &str = "00000000000000000000000001000000";
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    // An IPv4 address is one number, its first byte last.
    let loopback = address == LOOPBACK6 || (address.len() == 8 && address.ends_with("7F"));
    let open = fields.nth(1)? == state && !loopback;
    open.then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink, process::Command};

    use super::*;

    /// What is read of the logs of a VPS whose log directory `make` fills.
    fn read(make: impl FnOnce(&Path)) -> Result<Vec<String>, Errno> {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("vps/log");
        fs::create_dir_all(&log).unwrap();
        fs::write(place.path().join("outside"), "outside").unwrap();
        make(&log);
        let text = |fd: OwnedFd| {
            let mut text = String::new();
            fs::File::from(fd).read_to_string(&mut text).unwrap();
            text
        };
        Ok(open_logs(&place.path().join("vps"))?.into_iter().map(text).collect())
    }

    #[test]
    fn a_log_is_a_file_and_no_link() {
        let whole = |log: &Path| {
            fs::write(log.join("log.1"), "older").unwrap();
            fs::write(log.join("log"), "newer").unwrap();
        };
        assert_eq!(read(whole), Ok(vec!["older".to_owned(), "newer".to_owned()]));
        assert_eq!(read(|_| ()), Ok(Vec::new()));
        for to in ["../../outside", "/etc/passwd", "/proc/self/environ", "log.1", "nowhere"] {
            for name in ["log", "log.1"] {
                assert_eq!(read(|log| symlink(to, log.join(name)).unwrap()), Err(Errno::LOOP), "{name} -> {to}");
            }
        }
        // Neither waits for who would write, nor reads what is no file.
        assert_eq!(read(|log| fs::create_dir(log.join("log")).unwrap()), Ok(Vec::new()));
        assert_eq!(
            read(|log| assert!(Command::new("mkfifo").arg(log.join("log")).status().unwrap().success())),
            Ok(Vec::new())
        );
        let elsewhere = |log: &Path| {
            fs::remove_dir(log).unwrap();
            symlink("..", log).unwrap();
            fs::write(log.join("../log2"), "").unwrap();
        };
        assert_eq!(read(elsewhere), Err(Errno::NOTDIR));
    }

    #[test]
    fn a_line_of_a_table_says_whether_a_port_is_open() {
        let line = |address: &str, state: &str| {
            format!("   0: {address}:0050 0000:0000 {state} 00:00 00:0 0     0        0 1 1")
        };
        let any = "00000000000000000000000000000000";
        assert_eq!(open_port(&line(any, "0A"), LISTEN), Some(80));
        assert_eq!(open_port(&line(any, "01"), LISTEN), None);
        assert_eq!(open_port(&line("00000000000000000000000001000000", "0A"), LISTEN), None);
        assert_eq!(open_port(&line("00000000", "07"), UNCONNECTED), Some(80));
        assert_eq!(open_port(&line("0100007F", "07"), UNCONNECTED), None);
        assert_eq!(open_port("  sl  local_address                         remote_address", LISTEN), None);
        assert_eq!(open_port("", LISTEN), None);
    }
}
