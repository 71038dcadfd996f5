//! The messages of keeper and shims, between two ends in one process.

use std::os::fd::AsFd;

use bailiwick_wire::{
    keeper::{self, Word},
    shim::{self, FromShim, ShimState},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn pair() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair")
}

#[test]
fn a_descriptor_is_kept_under_its_name() {
    let (a, b) = pair();
    keeper::send(a.as_fd(), Word::Keep, "listen/[::]:80", Some(b.as_fd())).expect("send");
    keeper::send(a.as_fd(), Word::End, "", None).expect("send");
    let (word, name, fd) = keeper::recv(&b).expect("receive").expect("a message");
    assert_eq!((word, name.as_str(), fd.is_some()), (Word::Keep, "listen/[::]:80", true));
    assert_eq!(keeper::recv(&b).expect("receive").expect("a message").0, Word::End);
    drop(a);
    assert!(keeper::recv(&b).expect("receive").is_none());
    assert!(keeper::send(b.as_fd(), Word::Keep, &"x".repeat(keeper::NAME + 1), None).is_err());
}

#[test]
fn what_is_no_keeper_message_is_refused() {
    let (a, b) = pair();
    for junk in [&b"x"[..], &[9; 129], &[1, 255, 0], &[0; 129], &{
        let mut not_utf8 = [0xff; 129];
        not_utf8[0] = 1;
        not_utf8[1] = 4;
        not_utf8
    }] {
        rustix::net::send(&a, junk, rustix::net::SendFlags::NOSIGNAL).expect("send");
        assert!(keeper::recv(&b).is_err(), "{junk:?}");
    }
}

#[test]
fn a_shim_message_of_another_version_is_understood_or_refused() {
    #[derive(serde::Serialize)]
    enum Newer {
        State { version: u16, state: ShimState, pid: Option<i32>, since: u64 },
        Invented {},
    }
    let (a, b) = pair();
    let newer = Newer::State { version: 2, state: ShimState::Ready, pid: Some(7), since: 1 };
    shim::send(a.as_fd(), &newer, &[]).expect("send");
    let (message, _) = shim::recv::<FromShim>(b.as_fd()).expect("receive").expect("a message");
    assert!(
        matches!(message, FromShim::State { version: 2, state: ShimState::Ready, pid: Some(7), .. }),
        "{message:?}"
    );
    #[derive(serde::Serialize)]
    enum Older {
        State { version: u16, state: ShimState, pid: Option<i32> },
    }
    let older = Older::State { version: 2, state: ShimState::Ready, pid: None };
    shim::send(a.as_fd(), &older, &[]).expect("send");
    let (message, _) = shim::recv::<FromShim>(b.as_fd()).expect("receive").expect("a message");
    assert!(
        matches!(message, FromShim::State { times, .. } if times == model::state::ShimTimes::default()),
        "{message:?}"
    );
    shim::send(a.as_fd(), &Newer::Invented {}, &[]).expect("send");
    assert!(shim::recv::<FromShim>(b.as_fd()).is_err());
    rustix::net::send(&a, b"\xff\xffjunk", rustix::net::SendFlags::NOSIGNAL).expect("send");
    assert!(shim::recv::<FromShim>(b.as_fd()).is_err());
}
