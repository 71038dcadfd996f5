//! The seccomp profile, `policy/seccomp.toml`, as a filter.

use sys::seccomp::{Action, Filter, Refusal};

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// One more than the highest number the profile names.
const COUNT: usize = {
    let (mut highest, mut n) = (0, 0);
    while n < CALLS.len() {
        if CALLS[n].0 > highest {
            highest = CALLS[n].0;
        }
        n += 1;
    }
    highest as usize + 1
};

/// The action of each number, made by the compiler.
static ACTIONS: [Action; COUNT] = {
    let mut actions = [UNLISTED; COUNT];
    let mut n = 0;
    while n < CALLS.len() {
        actions[CALLS[n].0 as usize] = CALLS[n].1;
        n += 1;
    }
    actions
};

/// The filter of every VPS; with `listen`, `listen` calls wait for the shim. `None` only if the profile outgrew what
/// the kernel takes, which a test would show.
pub fn filter(listen: bool) -> Option<Filter> {
    let mut actions = ACTIONS;
    if listen {
        actions[libc::SYS_listen as usize] = Action::Notify;
    }
    Filter::new(&actions, ARGUMENTS, UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_fits_and_says_what_it_should() {
        assert!(filter(true).is_some());
        let action = |call: libc::c_long| ACTIONS[call as usize];
        assert_eq!(action(libc::SYS_read), Action::Allow);
        assert_eq!(action(libc::SYS_clone3), Action::Allow);
        assert_eq!(action(libc::SYS_io_uring_setup), Action::Errno(libc::EPERM as u16));
        assert_eq!(action(libc::SYS_kexec_load), Action::Errno(libc::EPERM as u16));
        assert_eq!(UNKNOWN, Action::Errno(libc::ENOSYS as u16));
    }
}
