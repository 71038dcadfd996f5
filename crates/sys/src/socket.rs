//! What a stream socket still holds.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Bytes that were written to a stream socket and that the other end has not acknowledged (TCP), or not read (unix;
/// SIOCOUTQ, tcp(7)).
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which has the number of TIOCOUTQ, writes one int to the pointer, which leads to one.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    #[test]
    fn what_was_read_is_not_counted() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(super::unsent(ours.as_fd()).unwrap(), 0);
        ours.write_all(&[0; 100]).unwrap();
        assert!(super::unsent(ours.as_fd()).unwrap() > 0);
        theirs.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(super::unsent(ours.as_fd()).unwrap(), 0);
    }
}
