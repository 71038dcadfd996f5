use std::{fs::File, time::Duration};

use super::*;

fn log(directory: &tempfile::TempDir) -> Log {
    Log::open(OwnedFd::from(File::open(directory.path()).expect("the directory")))
}

fn text(directory: &tempfile::TempDir, name: &str) -> String {
    std::fs::read_to_string(directory.path().join(name)).expect("a log")
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, 123_456_789)
}

#[test]
fn times_are_civil() {
    assert_eq!(stamp(at(0)), "1970-01-01T00:00:00.123456Z");
    assert_eq!(stamp(at(951_782_399)), "2000-02-28T23:59:59.123456Z");
    assert_eq!(stamp(at(951_782_400)), "2000-02-29T00:00:00.123456Z");
    assert_eq!(stamp(at(1_795_352_400)), "2026-11-22T13:00:00.123456Z");
}

#[test]
fn lines_are_whole_and_say_where_they_come_from() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = log(&directory);
    log.take(Source::Out, b"one\ntw", at(0));
    log.take(Source::Err, b"bad\r\n", at(1));
    log.take(Source::Out, b"o\nrest", at(2));
    log.finish();
    let text = text(&directory, "log");
    let lines: Vec<&str> = text.lines().map(|l| l.split_once(' ').expect("a time").1).collect();
    assert_eq!(lines, ["out one", "err bad", "out two", "out rest"]);
}

#[test]
fn a_flood_without_line_ends_is_cut_and_rotated() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = log(&directory);
    let chunk = [b'x'; CHUNK];
    for _ in 0..(20 << 20) / CHUNK {
        log.take(Source::Out, &chunk, at(0));
        log.flush();
        assert!(log.partial[0].len() <= MAX_LINE && log.gathered.capacity() <= 4 * GATHER);
    }
    log.finish();
    assert!(text(&directory, "log").lines().all(|line| line.len() <= MAX_LINE + 64));
    for name in ["log", "log.1"] {
        assert!(directory.path().join(name).metadata().expect("a log").len() <= MAX_FILE + 4 * GATHER as u64);
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("the directory").count(), 2);
}

#[test]
fn a_log_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    log(&directory).say("one");
    log(&directory).say("two");
    assert_eq!(text(&directory, "log").lines().count(), 2);
}
