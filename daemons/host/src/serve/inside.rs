//! Calls about what goes on inside a VPS: `Exec` and `Logs`.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use model::{Verb, api::ErrorKind};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};
use tokio::sync::oneshot;
use wire::{
    Fault, Replier, Request,
    host::{Exec, ExecEnded, Logs},
    shim::{TERMINALS, ToShim},
    varlink::Empty,
};

use super::Capability;
use crate::{life::Step, table::Vps};

/// Programs that run inside one VPS at once by `Exec`.
const EXECS: usize = 64;

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
    let directory = openat(CWD, &directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
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
