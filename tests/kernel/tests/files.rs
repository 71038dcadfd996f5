//! `logs`: files inside whose lines are part of the log.

use std::fs;

use bailiwick_kernel_tests::{Builder, Vps};
use model::ExitStatus;
use wire::shim::ShimState;

fn following(patterns: &[&str], command: &str) -> Builder {
    let mut builder = Builder::shell(command);
    builder.run.logs = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    builder
}

fn idle(patterns: &[&str]) -> Vps {
    let vps = following(patterns, "exec sleep 1000000").start();
    vps.reach(ShimState::Ready);
    vps
}

/// What files said, in order: `PATH TEXT`.
fn lines(vps: &Vps) -> Vec<String> {
    let log = vps.log();
    log.lines().filter_map(|line| line.split_once(" file ")).map(|(_, rest)| rest.to_owned()).collect()
}

#[test]
fn lines_that_are_added_are_logged_over_rotations() {
    let mut builder = following(&["/var/log/*/*.log", "/tmp/x"], "exec sleep 1000000");
    builder.second_layer.insert("var/log/web/old.log".to_owned(), "from the image\n".to_owned());
    let mut vps = builder.start();
    vps.reach(ShimState::Ready);
    vps.sh("echo added >> /var/log/web/old.log; echo other > /var/log/web/other.txt");
    vps.said("file /var/log/web/old.log added");
    // What is not there yet, directory and all; a line in two pieces, an empty one, and one of a name with a space.
    vps.sh("mkdir /var/log/later; printf 'one\\ntw' > '/var/log/later/a b.log'; printf 'o\\n\\n' >> '/var/log/later/a b.log'");
    vps.said("file /var/log/later/a#040b.log two");
    // Renamed once it is followed: its writer goes on for a while, then there is a new one.
    vps.sh("echo 1 > /var/log/web/new.log");
    vps.said("file /var/log/web/new.log 1");
    vps.sh("cd /var/log/web; exec 5>>new.log; mv new.log new.log.1; echo 2 >&5; echo 3 > new.log; echo 4 >&5");
    vps.said("file /var/log/web/new.log 3");
    vps.said("file /var/log/web/new.log 4");
    // Copied and cut, by a writer that appends.
    vps.sh("cd /var/log/web; exec 5>>cut.log; echo before >&5; cp cut.log cut.1; : > cut.log; echo after >&5");
    vps.said("file /var/log/web/cut.log after");
    // Removed while it is written to, then there again.
    vps.sh("echo first > /tmp/x");
    vps.said("file /tmp/x first");
    vps.sh("exec 5>>/tmp/x; rm /tmp/x; echo unlinked >&5; echo again > /tmp/x");
    vps.said("file /tmp/x again");
    vps.said("file /tmp/x unlinked");
    let all = lines(&vps);
    let count = |line: &str| all.iter().filter(|l| *l == line).count();
    for line in ["/var/log/web/old.log added", "/var/log/later/a#040b.log one", "/var/log/later/a#040b.log "] {
        assert_eq!(count(line), 1, "{line}: {all:#?}");
    }
    for n in 1..=4 {
        assert_eq!(count(&format!("/var/log/web/new.log {n}")), 1, "{n}: {all:#?}");
    }
    assert!(!all.iter().any(|line| line.contains("image") || line.contains("other")), "{all:#?}");
}

#[test]
fn what_a_program_writes_last_is_logged() {
    let vps =
        following(&["/tmp/*.log"], "for i in 1 2 3; do echo $i >> /tmp/a.log; done; printf end >> /tmp/a.log; exit 3")
            .start();
    assert_eq!(vps.ended(), ExitStatus::Code(3));
    assert_eq!(lines(&vps), ["/tmp/a.log 1", "/tmp/a.log 2", "/tmp/a.log 3", "/tmp/a.log end"]);
    assert!(!vps.log().contains("not followed"), "{}", vps.log());
}

#[test]
fn links_pipes_and_devices_are_not_followed() {
    let mut vps = idle(&["/tmp/*.log", "/home/sub/*.log"]);
    vps.sh("echo secret > /etc/hidden; ln -s /etc/hidden /tmp/link.log; mkfifo /tmp/fifo.log; mkdir /tmp/dir.log");
    vps.sh("mkdir /etc/deep; ln -s /etc/deep /home/sub; echo secret > /etc/deep/a.log; ln -s /dev/zero /tmp/zero.log");
    vps.said("/tmp/link.log is a symbolic link and not followed");
    vps.said("/tmp/fifo.log is not followed: it is no regular file");
    vps.said("/home/sub is a symbolic link and not followed");
    vps.sh("echo more >> /etc/hidden; echo more >> /etc/deep/a.log; echo fine > /tmp/good.log");
    vps.said("file /tmp/good.log fine");
    // Who opens such a pipe waits for a reader: nobody has become one.
    assert_ne!(vps.exec_as("root", "timeout 0.2 sh -c 'echo x > /tmp/fifo.log'").status, ExitStatus::Code(0));
    let all = vps.log();
    assert!(!all.contains("secret") && !all.contains("more"), "{all}");
    // Once each.
    assert_eq!(all.matches("/tmp/link.log is").count(), 1, "{all}");
}

#[test]
fn a_thousand_files_and_long_lines_come_whole() {
    let mut vps = idle(&["/tmp/many/*"]);
    vps.sh("mkdir /tmp/many; for i in $(seq 1000); do echo line-$i. > /tmp/many/$i; done");
    for n in [1, 500, 1000] {
        vps.said(&format!("file /tmp/many/{n} line-{n}."));
    }
    vps.sh("for i in $(seq 1000); do echo again-$i. >> /tmp/many/$i; done");
    while lines(&vps).len() < 2000 {
        vps.sh("true");
    }
    vps.sh("head -c 100000 /dev/zero | tr '\\0' x > /tmp/many/1; echo >> /tmp/many/1");
    vps.sh("echo done > /tmp/many/2");
    vps.said("file /tmp/many/2 done");
    let xs = |vps: &Vps| vps.log().bytes().filter(|b| *b == b'x').count();
    while xs(&vps) < 100_000 {
        vps.sh("true");
    }
    assert!(vps.log().lines().all(|line| line.len() < 9000));
    // Each once.
    assert_eq!(vps.log().matches("again-").count(), 1000);
}

#[test]
fn a_flood_of_a_file_is_bounded_and_counted_and_the_others_go_on() {
    let mut vps = idle(&["/tmp/*.log"]);
    vps.sh("yes 'a line of a flood' | head -c 40000000 > /tmp/flood.log; echo here > /tmp/other.log");
    vps.said("file /tmp/other.log here");
    vps.said("bytes of /tmp/flood.log were dropped");
    let size = |name: &str| fs::metadata(vps.log_directory().join(name)).map_or(0, |file| file.len());
    assert!(size("log") + size("log.1") < 20 << 20);
    // A stop does not wait for what is left.
    vps.tell(&wire::shim::ToShim::Stop { grace_ms: 0 });
    vps.ended();
}

#[test]
fn who_ends_the_follower_ends_the_lines_of_files_and_nothing_else() {
    let mut vps = idle(&["/tmp/*.log"]);
    vps.sh("echo one > /tmp/a.log");
    vps.said("file /tmp/a.log one");
    let others = "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || grep -q sleep /proc/$p/cmdline || [ $p = $$ ] || echo $p; done";
    let pid = vps.sh(others).lines().next().expect("the follower").to_owned();
    // It belongs to root inside, who may end it, but neither trace nor read it.
    assert_ne!(vps.exec_as("root", &format!("cat /proc/{pid}/environ")).status, ExitStatus::Code(0));
    vps.sh(&format!("kill -9 {pid}"));
    vps.said("the files of `logs` are not followed any more");
    assert_eq!(vps.sh("echo still here"), "still here");
}
