//! What a tenant sees and can do.
use bailiwick_kernel_tests::Builder;
use model::ExitStatus;
use wire::shim::ShimState;

#[test]
fn first() {
    let mut vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    eprintln!("{:?}", vps.started.elapsed());
    eprintln!(
        "{}",
        vps.sh("ps; id; hostname; mount; cat /etc/hosts; ls -la /dev /proc/self/fd; cat /proc/self/status")
    );
    let _ = ExitStatus::Code(0);
}
