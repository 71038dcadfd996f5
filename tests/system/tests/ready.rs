//! `ready = { run = … }` with servers that listen before they can answer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const REDIS: &str = r#"tenant = "acme"
[vps.cache]
image   = "debian:redis-server"
command = ["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/var/lib/redis", "--enable-debug-command", "yes"]
user    = "redis"
ready   = { listen = 6379, run = ["redis-cli", "-e", "ping"] }
"#;

/// Its checkpoints are far between, so that what was written is recovered from its log.
const POSTGRES: &str = r#"tenant = "acme"
[vps.db]
image   = "debian:postgresql"
command = ["sh", "-c", "cd /usr/lib/postgresql/*/bin; exec ./postgres -D /var/lib/postgresql/*/main -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf) -c checkpoint_timeout=1h -c max_wal_size=4GB -c unix_socket_directories=/tmp -c ssl=off"]
user    = "postgres"
ready   = { listen = 5432, run = ["pg_isready", "-h", "/tmp"] }
start_deadline = "60s"
"#;

fn inside(host: &Host, name: &str, user: &str, words: &[&str]) -> Result<String> {
    Ok(host.run(&[&["exec", name, "--user", user, "--"], words].concat())?.trim().to_owned())
}

#[test]
fn redis_is_ready_when_it_has_loaded() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", REDIS)?;
    host.run(&["start", "cache"])?;
    inside(&host, "cache", "redis", &["redis-cli", "debug", "populate", "2000000"])?;
    inside(&host, "cache", "redis", &["redis-cli", "save"])?;
    host.run(&["stop", "cache"])?;
    host.run(&["start", "cache"])?;
    let size = inside(&host, "cache", "redis", &["redis-cli", "dbsize"])?;
    ensure!(size == "2000000", "{size}");
    // It did listen before: the first run of the command found it loading.
    let why = host.run(&["why", "cache"])?;
    let log = host.run(&["logs", "cache"])?;
    ensure!(log.contains("not ready: `redis-cli -e ping`: exit 1") && log.contains("LOADING"), "{why}\n{log}");

    // Without it the first client is refused.
    host.apply("a.toml", &REDIS.replace(", run = [\"redis-cli\", \"-e\", \"ping\"]", ""))?;
    host.run(&["restart", "cache"])?;
    let early = inside(&host, "cache", "redis", &["redis-cli", "dbsize"])?;
    ensure!(early.contains("LOADING"), "this redis loads too fast to tell: {early}");
    host.stop()
}

#[test]
fn postgresql_is_ready_when_it_has_recovered() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", POSTGRES)?;
    host.run(&["start", "db"])?;
    let sql = |host: &Host, text: &str| inside(host, "db", "postgres", &["psql", "-h", "/tmp", "-qAtc", text]);
    sql(&host, "create table t as select n, md5(n::text) from generate_series(1, 600000) n")?;
    // Nobody asks it to end.
    let pid = host.pid_of("db")?;
    host.kill(pid)?;
    // It is started again by itself.
    let until = Instant::now() + Duration::from_secs(20);
    while host.row("db")?["pid"].as_i64().is_none_or(|now| now == i64::from(pid)) {
        ensure!(Instant::now() < until, "{}", host.run(&["why", "db"])?);
    }
    host.await_state("db", "running", Duration::from_secs(60))?;
    ensure!(sql(&host, "select count(*) from t")? == "600000");
    let log = host.run(&["logs", "-n", "200", "db"])?;
    ensure!(log.contains("redo starts"), "it was not recovered:\n{log}");
    ensure!(log.contains("not ready: `pg_isready -h /tmp`"), "it was never asked while it recovered:\n{log}");
    host.stop()
}

#[test]
fn a_command_that_never_succeeds_is_told_by_why() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = r#"tenant = "acme"
[vps.never]
image   = "debian:"
command = ["sleep", "1000"]
ready   = { run = ["sh", "-c", "echo the moon is not full; exit 7"] }
start_deadline = "3s"
restart = "never"
"#;
    host.apply("a.toml", spec)?;
    let answer = host.cli(&["start", "never"])?;
    ensure!(answer.code == 1 && answer.err.contains("did not succeed"), "{answer:?}");
    let why = host.run(&["why", "never"])?;
    ensure!(why.contains("exit 7: the moon is not full") && why.contains("not ready within 3s"), "{why}");
    host.stop()
}
