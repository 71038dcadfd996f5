//! Starting, being ready, ending, and what is left.

use std::{fs, net::TcpListener, time::Duration};

use bailiwick_kernel_tests::{Builder, PATIENCE};
use model::{
    ExitStatus,
    run::{Ready, ReadyCheck},
};
use wire::shim::{FromShim, ShimState, ToShim};

#[test]
fn a_program_that_is_not_there_is_named() {
    let mut builder = Builder::shell("");
    builder.run.command = vec!["ngnix".to_owned()];
    let reason = builder.start().not_started();
    assert!(reason.contains("program \"ngnix\" not found in PATH inside the VPS"), "{reason}");
}

#[test]
fn a_user_that_is_not_there_is_named() {
    let mut builder = Builder::idle();
    builder.run.user = "nobody".to_owned();
    let reason = builder.start().not_started();
    assert!(reason.contains("\"nobody\" is not in /etc/passwd"), "{reason}");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let mut builder = Builder::idle();
    builder.run.files.insert("/bin/busybox/x".to_owned(), String::new());
    let reason = builder.start().not_started();
    assert!(reason.contains("writing /bin/busybox/x"), "{reason}");
}

#[test]
fn its_end_is_the_programs_and_takes_all_others() {
    let vps = Builder::shell("sleep 1000 & exit 3").start();
    assert_eq!(vps.ended(), ExitStatus::Code(3));
    vps.gone();
    let vps = Builder::shell("kill -9 $$").start();
    assert_eq!(vps.ended(), ExitStatus::Signal(9));
}

#[test]
fn stop_asks_first() {
    let mut vps = Builder::shell("trap 'exit 7' TERM; echo listening; while :; do sleep 1000 & wait; done").start();
    vps.reach(ShimState::Ready);
    vps.said("listening");
    vps.tell(&ToShim::Stop { grace_ms: 10_000 });
    vps.reach(ShimState::Stopping);
    assert_eq!(vps.ended(), ExitStatus::Code(7));
}

#[test]
fn stop_kills_after_the_grace() {
    let mut vps = Builder::shell("trap '' TERM; echo deaf; while :; do sleep 1000; done").start();
    vps.reach(ShimState::Ready);
    // Once its line is in the log, the trap is set.
    vps.said("deaf");
    let asked = std::time::Instant::now();
    vps.tell(&ToShim::Stop { grace_ms: 150 });
    assert_eq!(vps.ended(), ExitStatus::Signal(9));
    assert!(asked.elapsed() >= Duration::from_millis(150) && asked.elapsed() < Duration::from_secs(5));
    vps.gone();
}

#[test]
fn programs_can_be_run_and_killed() {
    let mut vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    let done = vps.exec_as("web", "echo out; echo err >&2; exit 5");
    assert_eq!((done.status, done.output.as_str(), done.error), (ExitStatus::Code(5), "out\nerr\n", None));
    let done = vps.run_as("root", &["nothere"]);
    assert_eq!(done.status, ExitStatus::Code(127));
    assert!(done.error.is_some_and(|e| e.contains("not found in PATH")));
    let done = vps.run_as("root", &["/etc/passwd"]);
    assert_eq!(done.status, ExitStatus::Code(126));
    let (id, _output) = vps.begin("root", &["sleep", "1000"]);
    vps.tell(&ToShim::ExecKill { id });
    loop {
        match vps.next() {
            Some(FromShim::ExecEnded { id: ended, status, .. }) if ended == id => {
                break assert_eq!(status, ExitStatus::Signal(9));
            }
            Some(_) => {}
            None => panic!("the shim ended"),
        }
    }
}

#[test]
fn ready_when_it_listens_on_the_port_and_not_before() {
    let mut builder = Builder::shell("probe listen 81 & probe listen 80");
    builder.run.ready = Ready::Listen(80);
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    // 0050 is 80; 0A is LISTEN
    assert_eq!(vps.sh("grep -c ':0050 00000000:0000 0A' /proc/net/tcp"), "1");
    // Calls after it are not held.
    let _server = vps.begin("root", &["probe", "listen", "82"]);
    vps.sh("until grep -q ':0052 00000000:0000 0A' /proc/net/tcp; do :; done");

    let mut builder = Builder::shell("probe listen 81");
    builder.run.ready = Ready::Listen(80);
    let mut vps = builder.start();
    vps.reach(ShimState::Started);
    vps.sh("until grep -q ':0051 00000000:0000 0A' /proc/net/tcp; do :; done");
    vps.tell(&ToShim::Report);
    assert!(matches!(vps.next(), Some(FromShim::State { state: ShimState::Started, .. })));
}

#[test]
fn a_listen_that_fails_fails_as_ever() {
    let mut builder = Builder::idle();
    builder.run.ready = Ready::Listen(80);
    let mut vps = builder.start();
    vps.reach(ShimState::Started);
    // EBADF, and ENOTSOCK for the null device
    assert_eq!(vps.sh("probe 50 99 5"), "-9");
    assert_eq!(vps.sh("probe 50 0 5"), "-88");
}

#[test]
fn ready_when_it_says_so() {
    let mut builder =
        Builder::shell("probe notify STATUS=wait; probe notify \"$(printf 'X=1\\nREADY=1')\"; exec sleep 1000");
    builder.run.ready = Ready::Notify;
    builder.run.user = "web".to_owned();
    let vps = builder.start();
    vps.reach(ShimState::Ready);
}

fn check(command: &str) -> Option<ReadyCheck> {
    let command = ["sh", "-c", command].map(str::to_owned).to_vec();
    Some(ReadyCheck { command, interval_ms: 10, timeout_ms: 200 })
}

#[test]
fn ready_when_its_command_succeeds_after_the_port_listens() {
    // It fails until the file is there, and would tell if it were run before the port listens.
    let mut builder = Builder::shell("read line < /tmp/go; exec probe listen 80");
    builder.run.env.insert("WORD".to_owned(), "loading".to_owned());
    builder.run.ready = Ready::Listen(80);
    builder.run.command[2] = format!("mkfifo /tmp/go; {}", builder.run.command[2]);
    builder.run.ready_check = check("echo run >> /tmp/runs; [ -e /tmp/loaded ] || { echo $WORD >&2; exit 3; }");
    let mut vps = builder.start();
    vps.reach(ShimState::Started);
    vps.sh("until [ -p /tmp/go ]; do :; done; [ ! -e /tmp/runs ]");
    vps.sh("echo now > /tmp/go");
    vps.sh("until [ $(cat /tmp/runs 2>/dev/null | wc -l) -ge 3 ]; do :; done");
    vps.said("vps not ready: `sh -c");
    assert_eq!(vps.log().matches(": exit 3: loading").count(), 1, "{}", vps.log());
    vps.sh("touch /tmp/loaded");
    vps.reach(ShimState::Ready);
    let runs = vps.sh("cat /tmp/runs");
    assert_eq!(vps.sh("cat /tmp/runs"), runs, "it is not run any more");
}

#[test]
fn a_ready_command_that_hangs_is_killed_and_named() {
    let mut builder = Builder::idle();
    builder.run.ready_check =
        check("echo begun; [ -e /tmp/again ] && exit 0; touch /tmp/again; sleep 1000 & sleep 1000");
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    assert!(vps.log().contains("signal 9"), "{}", vps.log());
    assert!(vps.log().contains(": begun / (killed after 200 ms)"), "{}", vps.log());
    assert_eq!(vps.sh("pidof sleep | wc -w"), "1", "what it started is gone");

    let mut builder = Builder::idle();
    builder.run.ready_check = check("cat /dev/zero");
    builder.run.ready_check.iter_mut().for_each(|check| check.timeout_ms = 60_000);
    let vps = builder.start();
    vps.reach(ShimState::Started);
    vps.tell(&ToShim::Stop { grace_ms: 5_000 });
    vps.ended();
    assert!(vps.log().contains("not ready: `sh -c cat /dev/zero` has not ended"), "{}", vps.log());
}

#[test]
fn listening_sockets_are_passed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let mut builder = Builder::shell(
        "echo $LISTEN_FDS $LISTEN_FDNAMES $(($LISTEN_PID-$$)); ls /proc/self/fd | xargs; exec sleep 1000",
    );
    builder.listeners = vec![("web".to_owned(), listener.into())];
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    vps.said("0 1 2 3");
    assert!(vps.log().contains("out 1 web 0"), "{}", vps.log());
    assert_eq!(vps.sh("ls /proc/self/fd | xargs"), "0 1 2 3", "an exec gets none; 3 is ls's own");
}

#[test]
fn both_streams_are_logged() {
    let vps = Builder::shell("echo one; echo two >&2; printf three").start();
    vps.ended();
    let log = vps.log();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 3, "{log}");
    for (text, line) in [("out one", 0), ("err two", 1), ("out three", 2)] {
        let found = lines.iter().find(|l| l.ends_with(text)).unwrap_or_else(|| panic!("{line}: no {text} in {log}"));
        assert!(found.starts_with("20") && found.contains("Z "), "{found}");
    }
}

#[test]
fn messages_of_dev_log_are_logged_and_a_flood_of_them_is_counted() {
    let mut vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    let done = vps.exec_as("web", "logger -t app -p daemon.err 'it broke'; stat -c %a /dev/log");
    assert_eq!((done.status, done.output.trim()), (ExitStatus::Code(0), "666"), "{done:?}");
    vps.said("log daemon.err app: it broke");
    let flood = "seq 3000 | logger -t flood";
    vps.sh(flood);
    vps.sh("sleep 1; logger -t flood over");
    vps.said("log user.notice flood: over");
    let log = vps.log();
    let kept = log.matches("user.notice flood: ").count();
    assert!((1000..3000).contains(&kept), "{kept} are kept");
    let told: usize = log
        .lines()
        .filter_map(|l| l.split("vps ").nth(1)?.split(" messages of /dev/log").next()?.parse::<usize>().ok())
        .sum();
    assert_eq!(kept + told, 3001, "each is kept or counted");
}

#[test]
fn a_flood_is_bounded_on_disk_and_in_memory() {
    let mut vps = Builder::shell("echo begin; cat /dev/zero | tr '\\0' 'x' | fold -w 200").start();
    vps.reach(ShimState::Ready);
    while !vps.log_directory().join("log.1").exists() {
        vps.sh("true");
    }
    let size = |name: &str| fs::metadata(vps.log_directory().join(name)).expect("a log").len();
    assert!(size("log.1") <= 9 << 20 && size("log") <= 9 << 20);
    let status = fs::read_to_string(format!("/proc/{}/status", vps.shim_pid())).expect("its status");
    let rss = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("a line");
    let kib: u64 = rss.split_whitespace().next().expect("a number").parse().expect("a number");
    assert!(kib < 2048, "the shim holds {kib} KiB");
    vps.tell(&ToShim::Stop { grace_ms: 0 });
    vps.ended();
}

#[test]
fn it_ends_with_its_shim() {
    let mut vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    assert!(!vps.processes().is_empty());
    vps.kill_shim();
    vps.gone();
}

#[test]
fn it_ends_when_nobody_could_stop_it_any_more() {
    let mut vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    vps.disconnect();
    assert_eq!(vps.shim_exit(), 0);
    vps.gone();
}

#[test]
fn its_processes_are_in_its_cgroup() {
    let vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    let members = vps.cgroup().usage().processes.expect("a count");
    assert!((2..=3).contains(&members), "{members} processes");
    for pid in vps.processes() {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        assert!(groups.contains("/blog"), "process {pid}: {groups}");
    }
}

#[test]
fn nothing_is_left() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count();
    let before = mounts();
    let vps = Builder::idle().start();
    vps.reach(ShimState::Ready);
    assert_eq!(mounts(), before, "its mounts are its own");
    vps.tell(&ToShim::Stop { grace_ms: PATIENCE.as_millis() as u64 });
    vps.ended();
    vps.gone();
    let directory = vps.log_directory().parent().expect("a parent").to_owned();
    // Fails itself when a cgroup is left.
    drop(vps);
    assert!(!directory.exists());
    assert_eq!(mounts(), before);
}
