//! For tests that run inside a VPS: `probe NUMBER [ARGUMENT…]` makes a system call and prints its result or, with a minus,
//! the errno; `probe notify TEXT` says something to `NOTIFY_SOCKET`; `probe listen PORT` listens there and waits.

use std::os::fd::AsRawFd;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["notify", text] => notify(text),
        ["listen", port] => listen(port.parse().expect("a port")),
        _ => call(&words),
    }
}

fn call(words: &[String]) {
    let mut arguments = [0 as libc::c_long; 7];
    for (slot, text) in arguments.iter_mut().zip(words) {
        *slot = text.parse().expect("a number");
    }
    let [number, a, b, c, d, e, f] = arguments;
    // SAFETY: tests pass numbers, never addresses, so that the kernel is given no memory of this process but null.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        println!("-{}", std::io::Error::last_os_error().raw_os_error().expect("an errno"));
    } else {
        println!("{result}");
    }
}

fn notify(text: &str) {
    let path = std::env::var("NOTIFY_SOCKET").expect("NOTIFY_SOCKET");
    let socket = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    socket.send_to(text.as_bytes(), path).expect("sent");
}

fn listen(port: u16) {
    let listener = std::net::TcpListener::bind(("0.0.0.0", port)).expect("bound");
    println!("listening on descriptor {}", listener.as_raw_fd());
    loop {
        let _ = listener.accept();
    }
}
