//! Sockets that came with the process (sd_listen_fds(3)).

use std::{
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first passed descriptor.
const FIRST: RawFd = 3;
/// Passed descriptors at most.
const MOST: RawFd = 64;

/// The descriptors that were passed, with their names from `LISTEN_FDNAMES` (`unknown` where there is none), made
/// close-on-exec. Call it before anything else opens or closes descriptors; a second call answers nothing.
pub fn listen_fds() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<RawFd>().ok());
    let own = std::process::id();
    if number("LISTEN_PID").is_some_and(|pid| u32::try_from(pid) != Ok(own)) || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').filter(|_| !names.is_empty());
    let mut list = Vec::new();
    for fd in FIRST..FIRST + count {
        let name = names.next().unwrap_or("unknown").to_owned();
        // SAFETY: the borrow lasts for this one call, which answers EBADF when nothing is open under that number.
        if fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::CLOEXEC).is_ok() {
            // SAFETY: the number is open (checked above), was passed for this process to own (LISTEN_FDS), and no one
            // else takes it: TAKEN lets one call through, and nothing in the process knows the number otherwise.
            list.push((name, unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::io::fcntl_getfd;

    use super::*;

    /// Descriptors can only be passed to a new process: this test runs itself again, behind a shell that opens them.
    #[test]
    fn passed_descriptors_have_names_and_close_on_exec() {
        const AGAIN: &str = "BAILIWICK_TEST_LISTEN_FDS";
        if std::env::var_os(AGAIN).is_some() {
            let list = listen_fds();
            let names: Vec<_> = list.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["control", "api", "unknown"]);
            assert!(list.iter().all(|(_, fd)| fcntl_getfd(fd).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC))));
            assert!(listen_fds().is_empty(), "taken twice");
            return;
        }
        let script = "exec 3</dev/null 4</dev/null 5</dev/null 6<&-; \
                      LISTEN_FDS=4 LISTEN_FDNAMES=control:api exec \"$0\" --exact \"$1\"";
        let output = Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().expect("this program"))
            .arg("listen_fds::tests::passed_descriptors_have_names_and_close_on_exec")
            .env(AGAIN, "1")
            .output()
            .expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
