//! seccomp(2): filters as data, loading one, and answering the calls it holds (seccomp_unotify(2)).
//!
//! A filter is a search tree over the call numbers: the kernel runs it for every number when it is loaded, so that a
//! flat list of 350 comparisons would cost each start.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libc::sock_filter;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Allow,
    /// It fails with this errno.
    Errno(u16),
    /// It waits for an answer of who holds the listener.
    Notify,
}

impl Action {
    const fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            Self::Notify => libc::SECCOMP_RET_USER_NOTIF,
        }
    }
}

/// An allowed call that fails when the low 32 bits of one argument have this value.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// Its number.
    pub call: u32,
    /// Which argument, from 0.
    pub argument: u8,
    /// The value.
    pub value: u32,
    /// With which errno.
    pub errno: u16,
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// A filter that can be loaded.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<sock_filter>,
}

impl Filter {
    /// The filter of a table: `actions[n]` for call number n, `unknown` for numbers past its end and for calls in the
    /// way of another architecture. `None` when it does not fit the kernel's 4,096 instructions.
    pub fn new(actions: &[Action], refusals: &[Refusal], unknown: Action) -> Option<Self> {
        let mut ranges: Vec<(u32, Leaf)> = Vec::new();
        for (number, &action) in (0u32..).zip(actions) {
            let leaf = Leaf { action, refusals: refusals.iter().filter(|r| r.call == number).copied().collect() };
            if ranges.last().is_none_or(|(_, last)| *last != leaf || !leaf.refusals.is_empty()) {
                ranges.push((number, leaf));
            }
        }
        ranges.push((actions.len() as u32, Leaf { action: unknown, refusals: Vec::new() }));
        let mut program = vec![
            op(LOAD, 0, 0, ARCH_AT),
            op(EQUAL, 1, 0, ARCH),
            op(RETURN, 0, 0, unknown.value()),
            op(LOAD, 0, 0, NUMBER_AT),
        ];
        program.extend(tree(&ranges));
        (program.len() <= 4096).then_some(Self { program })
    }

    /// Loads it for the calling thread and all that it starts, without `no_new_privs`: the caller needs CAP_SYS_ADMIN
    /// in its user namespace. With `listen`, returns the descriptor that `Notify` calls come out of.
    pub fn load(&self, listen: bool) -> io::Result<Option<OwnedFd>> {
        let program = libc::sock_fprog { len: self.program.len() as u16, filter: self.program.as_ptr().cast_mut() };
        let load = |flags: libc::c_ulong| {
            // SAFETY: `program` points to `len` instructions that outlive the call; the kernel copies them and writes
            // nothing through the pointer.
            let done =
                unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
        };
        if !listen {
            return load(0).map(|_| None);
        }
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        let fd = load(flags)?;
        // SAFETY: with NEW_LISTENER the call returned a new descriptor that nobody else knows.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

#[derive(Debug, Clone)]
struct Leaf {
    action: Action,
    refusals: Vec<Refusal>,
}

impl PartialEq for Leaf {
    fn eq(&self, other: &Self) -> bool {
        self.action == other.action && self.refusals.is_empty() && other.refusals.is_empty()
    }
}

/// Instructions that decide among `ranges`, each from its number to the next one's.
fn tree(ranges: &[(u32, Leaf)]) -> Vec<sock_filter> {
    if let [(_, leaf)] = ranges {
        let mut ops = Vec::new();
        for refusal in &leaf.refusals {
            ops.push(op(LOAD, 0, 0, ARGUMENTS_AT + 8 * u32::from(refusal.argument)));
            ops.push(op(EQUAL, 0, 1, refusal.value));
            ops.push(op(RETURN, 0, 0, Action::Errno(refusal.errno).value()));
        }
        ops.push(op(RETURN, 0, 0, leaf.action.value()));
        return ops;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (tree(low), tree(high));
    let mut ops = match u8::try_from(below.len()) {
        Ok(short) => vec![op(AT_LEAST, short, 0, high[0].0)],
        // Conditional jumps reach 255 instructions, plain ones any.
        Err(_) => vec![op(AT_LEAST, 0, 1, high[0].0), op(JUMP, 0, 0, below.len() as u32)],
    };
    ops.extend(below);
    ops.extend(above);
    ops
}

/// A call that waits for an answer. Its arguments were copied when it was made; what they point to may change.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Names this call in answers.
    pub id: u64,
    /// The calling thread, as the receiver's pid namespace numbers it; 0 when it is not in it.
    pub thread: i32,
    /// The call's number.
    pub call: i32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// What a waiting call gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It returns this.
    Value(i64),
    /// It fails with this errno.
    Errno(i32),
    /// The kernel makes the call, with whatever its arguments are by then: never a security verdict.
    Continue,
}

/// Takes the next waiting call; `None` when the caller was killed in the meantime. Call it when poll(2) says readable.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    // SAFETY: a seccomp_notif is integers only, for which zero is a value; the kernel demands zeroes.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the ioctl writes one seccomp_notif, which `notification` is, and keeps no pointer.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notification) } < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT | libc::EINTR) => Ok(None),
            _ => Err(error),
        };
    }
    Ok(Some(Notification {
        id: notification.id,
        thread: notification.pid as i32,
        call: notification.data.nr,
        arguments: notification.data.args,
    }))
}

/// Whether that call still waits, so that what was learnt from its thread's number was learnt from the right thread.
pub fn still_waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the ioctl reads one u64.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
}

/// Answers a waiting call; `false` when its caller has been killed.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<bool> {
    let (val, error, flags) = match answer {
        Answer::Value(value) => (value, 0, 0),
        Answer::Errno(errno) => (0, -errno, 0),
        Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let response = libc::seccomp_notif_resp { id, val, error, flags };
    // SAFETY: the ioctl reads one seccomp_notif_resp.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn run(filter: &Filter, arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let op = filter.program[at];
            at += 1;
            match op.code {
                LOAD if op.k == NUMBER_AT => accumulator = number,
                LOAD if op.k == ARCH_AT => accumulator = arch,
                LOAD => accumulator = arguments[(op.k - ARGUMENTS_AT) as usize / 8] as u32,
                EQUAL => at += usize::from(if accumulator == op.k { op.jt } else { op.jf }),
                AT_LEAST => at += usize::from(if accumulator >= op.k { op.jt } else { op.jf }),
                JUMP => at += op.k as usize,
                RETURN => return op.k,
                code => panic!("code {code}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_action() {
        let actions: Vec<Action> = (0..470)
            .map(|n| match n % 7 {
                0 => Action::Errno(1),
                3 => Action::Notify,
                _ => Action::Allow,
            })
            .collect();
        let filter = Filter::new(&actions, &[], Action::Errno(38)).expect("fits");
        for (number, action) in (0..).zip(&actions) {
            assert_eq!(run(&filter, ARCH, number, [0; 6]), action.value(), "call {number}");
        }
        for number in [470, 471, 0x4000_0000, u32::MAX] {
            assert_eq!(run(&filter, ARCH, number, [0; 6]), Action::Errno(38).value(), "call {number}");
        }
        assert_eq!(run(&filter, 0x4000_0003, 1, [0; 6]), Action::Errno(38).value());
    }

    #[test]
    fn an_argument_can_be_refused() {
        let refusals = [
            Refusal { call: 2, argument: 1, value: 7, errno: 1 },
            Refusal { call: 2, argument: 1, value: 8, errno: 2 },
        ];
        let filter = Filter::new(&[Action::Allow; 5], &refusals, Action::Errno(38)).expect("fits");
        let get = |number, second| run(&filter, ARCH, number, [0, second, 0, 0, 0, 0]);
        assert_eq!(get(2, 7), Action::Errno(1).value());
        assert_eq!(get(2, 8), Action::Errno(2).value());
        assert_eq!(get(2, 7 | 1 << 32), Action::Errno(1).value());
        assert_eq!(get(2, 9), Action::Allow.value());
        assert_eq!(get(3, 7), Action::Allow.value());
    }
}
