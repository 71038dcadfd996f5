//! Makes system calls by number, for tests that run inside a VPS: `probe NUMBER [ARGUMENT…]` prints the result or, with
//! a minus, the errno.

fn main() {
    let mut arguments = [0 as libc::c_long; 7];
    for (slot, text) in arguments.iter_mut().zip(std::env::args().skip(1)) {
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
