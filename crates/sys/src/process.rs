//! Children made by fork(2), and what they do before exec.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

/// linux/sched.h; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child of this process. Dropping it neither ends nor reaps it.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: Pid,
    /// It, whatever becomes of the number (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

impl Child {
    /// Sends it SIGKILL and reaps it.
    pub fn kill(self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.wait();
    }

    /// Waits for its end; the exit code, or 128 + signal.
    pub fn wait(self) -> io::Result<i32> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    let code = status.exit_status();
                    return Ok(code.or_else(|| status.terminating_signal().map(|s| 128 + s)).unwrap_or(0));
                }
                Ok(None) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Forks; the child runs `run`, whose result is its exit code, and never returns to the caller's code. A panic in it is
/// exit code 101.
///
/// The child is a copy with one thread. In a process with more threads `run` must not take locks that another thread
/// may have held (standard output, the environment); the daemon and the shim have one thread.
pub fn spawn_child(run: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: glibc's fork leaves its own locks (malloc, stdio) usable in the child, and the child's only way out of
    // this branch is _exit, so that nothing of the parent's stack or its destructors runs twice.
    forked(unsafe { libc::fork() }, run)
}

/// What parent and child do after a fork that returned `pid`.
fn forked(pid: libc::pid_t, run: impl FnOnce() -> i32) -> io::Result<Child> {
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(101);
            // SAFETY: _exit has no precondition; it ends this process without running atexit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            // The child can't have been reaped by anyone else yet, so the number is still its.
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => Ok(Child { pid, pidfd }),
                Err(error) => {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    let _ = waitpid(Some(pid), WaitOptions::empty());
                    Err(error.into())
                }
            }
        }
    }
}

/// Like `spawn_child`, in the cgroup of the v2 hierarchy whose directory `cgroup` is (clone(2), CLONE_INTO_CGROUP): unlike a
/// move, this waits for nothing.
pub fn spawn_child_in(cgroup: BorrowedFd<'_>, run: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: as in `spawn_sibling`; the descriptor stays open during the call.
    let pid = unsafe {
        let mut args: libc::clone_args = std::mem::zeroed();
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = cgroup.as_raw_fd() as u64;
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    };
    forked(pid as i32, run)
}

/// Like `spawn_child`, but the new process becomes a child of this process's own parent, in the pid namespace that
/// was unshared for children (clone(2), CLONE_PARENT). Returns its number in the caller's pid namespace.
pub fn spawn_sibling(run: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: an all-zero clone_args means no stack, no pointers: the child goes on on a copy of this stack. Unlike fork
    // this runs none of glibc's handlers, which only reset locks that other threads held; here there is one thread.
    let pid = unsafe {
        let mut args: libc::clone_args = std::mem::zeroed();
        args.flags = libc::CLONE_PARENT as u64;
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(101);
            // SAFETY: _exit has no precondition; it ends this process without running atexit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidData)?),
    }
}

/// Closes all descriptors but `keep`, whoever owns them. Meant for the child of a fork, whose copied owners are never
/// dropped.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut first = 0;
    for end in numbers.into_iter().map(Some).chain([None]) {
        if end != Some(first) {
            let last = end.map_or(u32::MAX, |n| n - 1);
            // SAFETY: close_range takes integers; that owners of these descriptors are never used again is what this
            // function's documentation asks.
            if unsafe { libc::close_range(first, last, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = end.map_or(0, |n| n + 1);
    }
    Ok(())
}

/// Executes `path` (execve(2)); returns only when that failed.
pub fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        let mut all: Vec<_> = list.iter().map(|text| text.as_ptr()).collect();
        all.push(std::ptr::null());
        all
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: the path is NUL-terminated; argv and envp are null-terminated lists of pointers into `arguments` and
    // `environment`, which outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// A descriptor that is readable while children of this process have ended (signalfd(2)); SIGCHLD is blocked from here
/// on, until `default_signals`.
pub fn child_events() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and both calls only read it.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unblocks all signals and gives each its default action, as a program expects to find them, whatever this process or
/// who started it ignored.
pub fn default_signals() -> io::Result<()> {
    // As the kernel counts them: 64, of which the two that glibc keeps to itself can be ignored too.
    const SET: usize = size_of::<u64>();
    let (none, default) = (0u64, [0u64; 4]);
    for signal in 1..=64 {
        // SAFETY: `default` is a whole struct sigaction of the kernel's, whose zeroes mean SIG_DFL without flags; the
        // kernel only reads it. SIGKILL and SIGSTOP are refused, which is as it should be.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, std::ptr::null::<u64>(), SET) };
    }
    // SAFETY: the kernel reads one set of 64 bits.
    let done = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, std::ptr::null::<u64>(), SET)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes over the socket that this process inherited under `number`, once.
pub fn inherited_socket(number: i32) -> io::Result<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: F_SETFD takes integers; it fails when nothing is open under this number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open; whoever executed this program left it to it, and `TAKEN` lets one owner have it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(socket)
}

/// Sends a signal by its number (kill(2)), also one without a name.
pub fn send_signal(pid: Pid, number: i32) -> io::Result<()> {
    // SAFETY: kill takes integers.
    if unsafe { libc::kill(pid.as_raw_nonzero().get(), number) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes descriptor `number` a copy of `fd` without close-on-exec. Meant for a child between fork and exec: what was
/// open under that number is closed, whoever owns it.
pub fn place_fd(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: both calls take plain integers. That `number` may belong to an `OwnedFd` of the parent's copied state is
    // the documented purpose; such owners are never dropped in a child of `spawn_child`.
    let done = unsafe {
        if fd.as_raw_fd() == number {
            libc::fcntl(number, libc::F_SETFD, 0)
        } else {
            libc::dup2(fd.as_raw_fd(), number)
        }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks all descriptors from `first` on close-on-exec (close_range(2)).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing; it sets a flag on descriptors that are open.
    let done = unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Executes the file behind `file` (execveat(2), AT_EMPTY_PATH); returns only when that failed.
pub fn exec_fd(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        let mut all: Vec<_> = list.iter().map(|text| text.as_ptr()).collect();
        all.push(std::ptr::null());
        all
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: the empty path is NUL-terminated; argv and envp are null-terminated lists of pointers into `arguments` and
    // `environment`, which outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Takes all capabilities from the bounding set of the calling thread (capabilities(7)).
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: PR_CAPBSET_DROP takes an integer.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // The first number that the kernel does not know is past the last capability.
            return if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}
