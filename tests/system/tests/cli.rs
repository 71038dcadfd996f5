//! What a person types, and what goes wrong with it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const SLEEPER: &str = r#"
tenant = "acme"

[vps.sleeper]
image   = "debian:"
command = ["perl", "-e", "$| = 1; print qq(hello out\n); print STDERR qq(hello err\n); sleep 1000"]
"#;

#[test]
fn a_vps_is_applied_started_looked_into_and_deleted() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let path = host.root.join("s.toml");
    std::fs::write(&path, SLEEPER)?;
    let path = path.to_str().context("a path")?;

    let dry = host.run(&["apply", "--dry-run", path])?;
    ensure!(dry.contains("sleeper"), "{dry}");
    ensure!(host.json(&["ps"])?.as_array().is_some_and(Vec::is_empty), "a dry run changed something");
    host.run(&["apply", path])?;
    host.run(&["start", "sleeper"])?;
    ensure!(host.state("sleeper")? == "running");

    let out = host.run(&["exec", "sleeper", "--", "sh", "-c", "hostname; id -u; echo err >&2; cat /proc/1/comm"])?;
    ensure!(out.starts_with("sleeper\n0\n"), "{out}");
    ensure!(host.cli(&["exec", "sleeper", "--", "sh", "-c", "exit 7"])?.code == 7);
    ensure!(host.cli(&["exec", "sleeper", "--", "no-such-program"])?.code == 127);

    let logs = host.run(&["logs", "sleeper"])?;
    ensure!(logs.contains("hello out") && logs.contains("hello err"), "{logs}");

    let first = host.pid_of("sleeper")?;
    host.run(&["restart", "sleeper"])?;
    ensure!(host.pid_of("sleeper")? != first);
    host.run(&["freeze", "sleeper"])?;
    ensure!(host.state("sleeper")? == "frozen");
    host.run(&["thaw", "sleeper"])?;
    ensure!(host.state("sleeper")? == "running");

    let inspect = host.json(&["inspect", "sleeper"])?;
    ensure!(inspect["processes"].as_u64().is_some_and(|n| n >= 2), "{inspect}");
    let get = host.run(&["get", "sleeper"])?;
    std::fs::write(path, &get)?;
    let again = host.run(&["apply", path])?;
    ensure!(!again.contains("create"), "`get` does not give back what was applied: {get}\n{again}");

    host.run(&["stop", "sleeper"])?;
    ensure!(host.state("sleeper")? == "asleep");
    host.run(&["delete", "--yes", "sleeper"])?;
    ensure!(host.cli(&["get", "sleeper"])?.code == 3);
    host.stop()
}

#[test]
fn listings_are_json_too() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("s.toml", SLEEPER)?;
    for listing in ["ps", "images", "routes", "services", "events"] {
        ensure!(host.json(&[listing])?.is_array(), "{listing}");
    }
    let all = host.json(&["ps", "--all"])?;
    let names: Vec<_> = all.as_array().context("rows")?.iter().filter_map(|row| row["name"].as_str()).collect();
    for name in ["control", "gateway", "network", "apps", "sleeper"] {
        ensure!(names.contains(&name), "{name} is not in {names:?}");
    }
    let doctor = host.cli(&["doctor"])?;
    ensure!(doctor.out.contains("kernel"), "{doctor:?}");
    for shell in ["bash", "zsh", "fish"] {
        ensure!(host.run(&["completions", shell])?.contains("bailiwick"));
    }
    host.stop()
}

/// A bad spec: what is put in place of what, the exit status, and what the message must say.
const BAD: &[(&str, &str, i32, &[&str])] = &[
    ("command =", "comand =", 2, &["s.toml:6:1", "unknown field `comand`", "command"]),
    ("command =", "memory = \"1MiB\"\ncommand =", 2, &["s.toml:6:1", "limits = { memory"]),
    ("command =", "class = \"microvm\"\ncommand =", 2, &["`class`", "not there yet"]),
    ("vps.sleeper", "vps.Sleeper", 2, &["s.toml:4", "`Sleeper`", "a-z"]),
    ("vps.sleeper", "vps.control", 4, &["s.toml:4", "control"]),
    ("debian:", "oci:x", 2, &["s.toml:5", "debian:PACKAGE"]),
    ("command =", "limits = { memory = \"900TiB\" }\ncommand =", 7, &["900", "memory"]),
    ("command =", "routes = { \"htp://x\" = 80 }\ncommand =", 2, &["s.toml:6", "htp://x", "tcp://"]),
    ("tenant = \"acme\"", "", 2, &["tenant"]),
];

#[test]
fn a_bad_spec_is_refused_with_its_place_and_changes_nothing() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    for (from, to, code, says) in BAD {
        let path = host.root.join("s.toml");
        std::fs::write(&path, SLEEPER.replace(from, to))?;
        let answer = host.cli(&["apply", path.to_str().context("a path")?])?;
        ensure!(answer.code == *code, "{from} -> {to}: exit {}\n{}{}", answer.code, answer.out, answer.err);
        for part in *says {
            ensure!(answer.err.contains(part), "{from} -> {to}: no {part:?} in\n{}", answer.err);
        }
        ensure!(answer.err.contains("nothing was changed"), "{}", answer.err);
        ensure!(host.json(&["ps"])?.as_array().is_some_and(Vec::is_empty), "{to} left something behind");
    }
    host.stop()
}

#[test]
fn what_two_vpss_claim_is_refused_for_the_second() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = |name: &str| {
        SLEEPER.replace("vps.sleeper]", &format!("vps.{name}]\nroutes = {{ \"tcp://127.0.0.1:20300\" = 7 }}"))
    };
    host.apply("a.toml", &spec("first"))?;
    let path = host.root.join("b.toml");
    std::fs::write(&path, spec("second"))?;
    let answer = host.cli(&["apply", path.to_str().context("a path")?])?;
    ensure!(answer.code == 4 || answer.code == 2, "{answer:?}");
    ensure!(
        answer.err.contains("belongs to") && answer.err.contains("first") && answer.err.contains("--take-routes"),
        "{}",
        answer.err
    );
    host.run(&["apply", "--take-routes", path.to_str().context("a path")?])?;
    let routes = host.json(&["routes"])?;
    ensure!(routes[0]["vps"] == "second", "{routes}");
    host.stop()
}

#[test]
fn a_port_in_use_is_said_and_nothing_is_applied() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let taken = std::net::TcpListener::bind("127.0.0.1:20310")?;
    let path = host.root.join("s.toml");
    let spec = SLEEPER.replace("vps.sleeper]", "vps.sleeper]\nroutes = { \"tcp://127.0.0.1:20310\" = 7 }");
    std::fs::write(&path, spec)?;
    let answer = host.cli(&["apply", path.to_str().context("a path")?])?;
    ensure!(answer.code == 4 && answer.err.contains("20310") && answer.err.contains("in use"), "{answer:?}");
    ensure!(host.json(&["ps"])?.as_array().is_some_and(Vec::is_empty));
    drop(taken);
    host.run(&["apply", path.to_str().context("a path")?])?;
    host.stop()
}

#[test]
fn without_a_host_the_next_step_is_said() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let program = bailiwick_system_tests::host::programs().join("bailiwick");
    let output = std::process::Command::new(program).arg("--root").arg(directory.path()).arg("ps").output()?;
    let err = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(6) && err.contains("api.sock") && err.contains("bailiwickd"), "{output:?}");
    Ok(())
}

#[test]
fn without_root_it_is_said_and_nothing_is_made() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("host");
    let daemon = bailiwick_system_tests::host::programs().join("bailiwickd");
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).arg(daemon).arg("--root").arg(&root);
    let output = command.output()?;
    let err = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && err.contains("only root") && err.contains("sudo"), "{output:?}");
    ensure!(!root.exists(), "it made {}", root.display());
    Ok(())
}

#[test]
fn a_second_host_on_one_root_and_a_bad_host_toml_are_refused() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let daemon = bailiwick_system_tests::host::programs().join("bailiwickd");
    let start = |root: &Path| std::process::Command::new(&daemon).arg("--root").arg(root).output();
    let second = start(&host.root)?;
    let err = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && err.contains("another host"), "{second:?}");
    host.stop()?;
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("host.toml"), "[designated.x]\nservises = []\n")?;
    let bad = start(directory.path())?;
    let err = String::from_utf8_lossy(&bad.stderr);
    ensure!(!bad.status.success() && err.contains("host.toml:2") && err.contains("services"), "{bad:?}");
    Ok(())
}

#[test]
fn an_env_file_is_read_beside_its_spec() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = host.root.join("s.toml");
    std::fs::write(&spec, format!("{SLEEPER}env_file = \"s.env\"\nenv = {{ A = \"spec\" }}\n"))?;
    let path = spec.to_str().context("a path")?;
    let missing = host.cli(&["apply", path])?;
    ensure!(missing.code == 2 && missing.err.contains("/s.env: No such file"), "{missing:?}");
    std::fs::write(host.root.join("s.env"), "A=file\nB=$A 'x\n")?;
    let wrong = host.cli(&["apply", path])?;
    ensure!(wrong.code == 2 && wrong.err.contains("/s.env:2:6  a quote within a bare value"), "{wrong:?}");
    std::fs::write(host.root.join("s.env"), "# for tests\nA=file\nB='$A x'\n")?;
    host.run(&["apply", path])?;
    ensure!(host.run(&["exec", "sleeper", "--", "true"])?.is_empty());
    let environ = host.run(&["exec", "sleeper", "--", "sh", "-c", "tr '\\0' '\\n' < /proc/2/environ"])?;
    ensure!(environ.contains("A=spec\n") && environ.contains("B=$A x\n"), "{environ}");
    let get = host.run(&["get", "sleeper"])?;
    ensure!(get.contains("env = { A = \"spec\", B = \"$A x\" }") && !get.contains("env_file"), "{get}");
    host.stop()
}
