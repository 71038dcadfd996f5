//! The program as a person runs it, against a host that is played by this test.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// What the played host answers: `METHOD path` to status and body.
type Answers = BTreeMap<&'static str, (u16, String)>;
/// What it was asked: request line and body.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

struct Host {
    root: tempfile::TempDir,
    asked: Asked,
}

impl Host {
    fn play(answers: Answers) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("run")).expect("a directory");
        let listener = UnixListener::bind(root.path().join("run/api.sock")).expect("a socket");
        let asked = Asked::default();
        let record = asked.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = answer(stream, &answers, &record);
            }
        });
        Self { root, asked }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(self.root.path(), arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    fn asked(&self) -> Vec<(String, String)> {
        self.asked.lock().expect("the record").clone()
    }
}

fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bailiwick"));
    command.arg("--root").arg(root).args(arguments).stdin(Stdio::null());
    command
}

fn answer(stream: UnixStream, answers: &Answers, record: &Asked) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = request.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    record.lock().expect("the record").push((request.clone(), String::from_utf8_lossy(&body).into_owned()));
    // `control` is killed while it is asked the first time.
    if request == "GET /v1/routes" && record.lock().expect("the record").len() == 1 {
        return Ok(());
    }
    if request == "GET /v1/events?follow=true" && record.lock().expect("the record").len() == 1 {
        let first = answers[request.as_str()].1.lines().next().unwrap_or_default().to_owned();
        let mut stream = stream;
        return write!(stream, "HTTP/1.1 200 X\r\nContent-Length: 9999\r\n\r\n{first}\n{{");
    }
    if request.ends_with("/exec") {
        return echo(stream, reader);
    }
    let none = (404, json!({ "message": format!("no {request}"), "kind": "not-found", "next": "look" }).to_string());
    let (status, body) = answers.get(request.as_str()).unwrap_or(&none);
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// An `exec` of a program that gives its input back, complains and exits with 7.
fn echo(mut stream: UnixStream, mut reader: BufReader<UnixStream>) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: bailiwick-exec\r\n\r\n")?;
    loop {
        let mut head = [0; 5];
        reader.read_exact(&mut head)?;
        let mut data = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize];
        reader.read_exact(&mut data)?;
        if data.is_empty() {
            return stream.write_all(b"\x02\0\0\0\x04oops\x03\0\0\0\x017");
        }
        head[0] = 1;
        stream.write_all(&head)?;
        stream.write_all(&data)?;
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn row(name: &str, tenant: Option<&str>) -> Value {
    json!({
        "name": name, "tenant": tenant, "state": "asleep", "for_ms": 5000, "routes": {}, "memory": null,
        "memory_limit": null, "processes": null, "address": null, "pid": null, "last_wake": null, "failure": null,
    })
}

#[test]
fn without_a_host_the_next_step_is_said() {
    let root = tempfile::tempdir().expect("a directory");
    let output = command(root.path(), &["ps"]).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(6));
    let text = err(&output);
    assert!(text.starts_with("error: no host answers at ") && text.contains("run/api.sock\n  next: "), "{text}");
}

#[test]
fn ps_shows_designated_vpss_only_when_asked() {
    let rows = json!([row("control", None), row("blog", Some("acme")), row("shop", Some("beta"))]);
    let host = Host::play([("GET /v1/vps?all=true", (200, rows.to_string()))].into());
    let table = out(&host.run(&["ps", "--tenant", "acme"]));
    assert!(table.contains("blog") && !table.contains("shop") && !table.contains("control"), "{table}");
    let names = |arguments: &[&str]| -> Vec<String> {
        let rows: Value = serde_json::from_str(&out(&host.run(arguments))).expect("JSON");
        let rows = rows.as_array().expect("a list").iter();
        rows.map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&["ps", "--json"]), ["blog", "shop"]);
    assert_eq!(names(&["ps", "--all", "--json"]), ["control", "blog", "shop"]);
}

#[test]
fn missing_images_are_built_before_anything_changes() {
    let planned = json!({ "changes": [{ "vps": "blog", "kind": "create" }], "missing_images": ["debian:a"] });
    let image = json!({ "reference": "debian:a", "layers": [], "size": 1, "own_size": 1, "built": 0, "used_by": [] });
    let lines = [json!({ "progress": { "step": "packages", "done": 1, "total": 2 } }), json!({ "done": image })];
    let host = Host::play(
        [
            ("POST /v1/apply", (200, planned.to_string())),
            ("POST /v1/images/build", (200, lines.map(|line| format!("{line}\n")).concat())),
        ]
        .into(),
    );
    let path = host.root.path().join("s.toml");
    std::fs::write(&path, "tenant = \"acme\"\n").expect("a file");
    let output = host.run(&["apply", path.to_str().expect("a path")]);
    assert_eq!((out(&output).as_str(), output.status.code()), ("+ blog\n1 created\n", Some(0)), "{}", err(&output));
    assert_eq!(err(&output), "image debian:a  packages\n");
    let asked = host.asked();
    let requests: Vec<_> = asked.iter().map(|(request, _)| request.as_str()).collect();
    assert_eq!(requests, ["POST /v1/apply", "POST /v1/images/build", "POST /v1/apply"]);
    assert!(asked[0].1.contains("\"dry_run\":true") && asked[2].1.contains("\"dry_run\":false"), "{asked:?}");
}

#[test]
fn a_refused_build_changes_nothing_and_has_its_exit_status() {
    let planned = json!({ "changes": [], "missing_images": ["debian:a"] });
    let failed = json!({ "failed": { "message": "no package a", "kind": "lacking" } });
    let host = Host::play(
        [("POST /v1/apply", (200, planned.to_string())), ("POST /v1/images/build", (200, failed.to_string()))].into(),
    );
    let mut apply = host.command(&["apply", "-"]);
    let output = apply.stdin(Stdio::null()).output().expect("the program runs");
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(7), "error: no package a\n"));
    assert_eq!(host.asked().len(), 2);
}

#[test]
fn problems_are_shown_with_their_lines() {
    let problem = json!({
        "file": "s.toml", "line": 7, "column": 14, "width": 3, "text": "", "hint": "bailiwick delete old",
        "message": "route http://a belongs to vps \"old\"",
    });
    let answer = json!({ "message": "1 problem", "kind": "conflict", "problems": [problem] });
    let host = Host::play([("POST /v1/apply", (409, answer.to_string()))].into());
    let output = host.run(&["apply", "-"]);
    let expected = "error: 1 problem in s.toml; nothing was changed\n\n\
        s.toml:7:14  route http://a belongs to vps \"old\"\n  next: bailiwick delete old\n";
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(4), expected));
}

#[test]
fn exec_passes_streams_and_the_exit_status_on() {
    let host = Host::play(Answers::new());
    let mut child = host
        .command(&["exec", "blog", "--user", "www-data", "-e", "A=b", "--", "cat", "-u"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let input = "0123456789".repeat(50_000);
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()).map(|()| input));
    let output = child.wait_with_output().expect("its end");
    let input = writer.join().expect("a thread").expect("all is read");
    assert!(out(&output) == input, "{} of {} bytes came back", output.stdout.len(), input.len());
    assert_eq!((err(&output).as_str(), output.status.code()), ("oops", Some(7)));
    let expected =
        json!({ "command": ["cat", "-u"], "env": { "A": "b" }, "user": "www-data", "cwd": null, "terminal": null });
    let asked = host.asked();
    assert_eq!(asked[0].0, "POST /v1/vps/blog/exec");
    assert_eq!(serde_json::from_str::<Value>(&asked[0].1).expect("JSON"), expected);
}

#[test]
fn a_question_is_asked_again_when_its_answer_broke_off() {
    let host = Host::play([("GET /v1/routes", (200, "[]".to_owned()))].into());
    let output = host.run(&["routes", "--json"]);
    assert_eq!((out(&output).as_str(), output.status.code()), ("[]\n", Some(0)), "{}", err(&output));
    assert_eq!(host.asked().len(), 2);
}

#[test]
fn a_stream_that_broke_off_goes_on_where_it_was() {
    let event = |at: u64, what: &str| json!({ "at_ms": at, "vps": "blog", "what": what, "detail": "", "actor": "" });
    let events = [event(1, "one"), event(1, "two"), event(2, "three")];
    let body = events.iter().map(|event| format!("{event}\n")).collect::<String>();
    let host = Host::play([("GET /v1/events?follow=true", (200, body))].into());
    let output = host.run(&["events", "-f", "--json"]);
    let text = out(&output);
    let shown: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((shown.as_slice(), host.asked().len()), (events.as_slice(), 2), "{}", err(&output));
}

#[test]
fn every_failure_of_several_is_told() {
    let host = Host::play([("POST /v1/vps/b/stop", (200, row("b", Some("acme")).to_string()))].into());
    let output = host.run(&["stop", "a", "b", "c"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(out(&output), "b: stopped\n");
    assert_eq!(err(&output).matches("error: no POST /v1/vps/").count(), 2, "{}", err(&output));
}

#[test]
fn a_delete_nobody_confirmed_is_none() {
    let answers = [("DELETE /v1/vps/blog", (204, String::new())), ("GET /v1/vps/blog/spec", (200, String::new()))];
    let host = Host::play(answers.into());
    let output = host.run(&["delete", "blog"]);
    assert!(output.status.code() == Some(2) && err(&output).contains("--yes"), "{output:?}");
    assert_eq!(host.run(&["delete", "blgo"]).status.code(), Some(3), "what is not there is not asked about");
    assert!(host.asked().iter().all(|(line, _)| line.starts_with("GET ")), "{:?}", host.asked());
    assert_eq!(out(&host.run(&["delete", "--yes", "blog"])), "blog: deleted\n");
}

#[test]
fn bash_completes_the_names_of_vpss() {
    let row = |name: &str| {
        json!({
            "name": name, "tenant": "acme", "state": "asleep", "for_ms": 0, "routes": {}, "memory": null,
            "memory_limit": null, "processes": null, "address": null, "pid": null, "last_wake": null, "failure": null,
        })
    };
    let rows = json!([row("blog"), row("blue"), row("shop")]).to_string();
    let host = Host::play([("GET /v1/vps?all=true", (200, rows))].into());
    let program = env!("CARGO_BIN_EXE_bailiwick");
    let complete = |words: &str| {
        let script = format!(
            "source <({program} completions bash)\nCOMP_WORDS=({program} {words} \"$1\")\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             _bailiwick_and_names {program} \"$1\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"\necho \"${{COMPREPLY[*]}}\""
        );
        let root = host.root.path();
        move |last: &str| {
            let mut bash = Command::new("bash");
            bash.args(["-c", &script, "bash", last]).env("BAILIWICK_ROOT", root);
            out(&bash.output().expect("bash runs")).trim_end().to_owned()
        }
    };
    assert_eq!(complete("why")("bl"), "blog blue");
    assert_eq!(complete("logs -f")(""), "blog blue shop");
    assert_eq!(complete("stop blog")("s"), "shop");
    assert_eq!(complete("image")("b"), "build", "sub-commands stay");
    assert!(complete("logs")("--f").contains("--follow"), "options stay");
    assert_eq!(complete("exec blog")("s"), "", "a program is no VPS");
}

#[test]
fn streams_are_printed_line_by_line() {
    let line = |text: &str| model::api::LogLine::parse(format!("2026-11-22T13:58:00.123456Z out {text}").as_bytes());
    let lines = ["one", "two"].map(|text| json!(line(text)));
    let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let host = Host::play(
        [
            ("GET /v1/vps/blog/logs?follow=false&lines=2", (200, body.clone())),
            ("GET /v1/vps/blog/logs?follow=true", (200, body)),
        ]
        .into(),
    );
    let text = out(&host.run(&["logs", "-n", "2", "blog"]));
    assert_eq!(text, "2026-11-22T13:58:00.123Z out one\n2026-11-22T13:58:00.123Z out two\n");
    let json: Value = serde_json::from_str(&out(&host.run(&["logs", "-n", "2", "blog", "--json"]))).expect("a list");
    assert_eq!(json, json!(lines));
    assert_eq!(out(&host.run(&["logs", "-f", "blog", "--json"])).lines().count(), 2);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let body = format!("{}\n", json!({ "at": "", "stream": "out", "text": "x".repeat(1000) })).repeat(5000);
    let host = Host::play([("GET /v1/vps/blog/logs?follow=false", (200, body))].into());
    let mut child = host
        .command(&["logs", "blog"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut first = [0; 10];
    child.stdout.take().expect("a pipe").read_exact(&mut first).expect("a beginning");
    let output = child.wait_with_output().expect("its end");
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
}
