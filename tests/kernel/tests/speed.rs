//! How long steps 5 to 9 take.
use bailiwick_kernel_tests::{Builder, note};
use wire::shim::ShimState;

#[test]
fn starts_are_quick() {
    let mut times: Vec<_> = (0..15)
        .map(|_| {
            let vps = Builder::shell("true").start();
            vps.reach(ShimState::Ready);
            let time = vps.started.elapsed();
            vps.ended();
            time
        })
        .collect();
    times.sort();
    note(&format!("start message to ready: median {:?}, least {:?}", times[times.len() / 2], times[0]));
}
