//! An unmodified web application with its database in a VPS of its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use bailiwick_system_tests::{Host, HostOptions, site};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_first_page_wakes_the_application_and_its_database_and_later_a_connection_does() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("site.toml", &site::spec(20500)?.replace("\"5s\"", "\"1s\""))?;
    for name in site::VPSS {
        ensure!(host.state(name)? == "asleep", "{}", host.row(name)?);
    }
    site::install(20500)?;
    for name in site::VPSS {
        host.await_state(name, "asleep", LONG)?;
    }
    site::page(20500)?;
    let rows = (host.row("site")?, host.row("db")?);
    ensure!(rows.0["last_wake"]["by"] == "GET / from 127.0.0.1", "{}", rows.0);
    ensure!(rows.1["last_wake"]["by"] == "wanted by site", "{}", rows.1);
    // Only the database sleeps, and what was written is there when it is back.
    host.run(&["stop", "db"])?;
    site::page(20500)?;
    let db = host.row("db")?;
    ensure!(db["last_wake"]["by"] == "connection from site", "{db}");
    for name in site::VPSS {
        host.await_state(name, "asleep", LONG)?;
    }
    host.stop()
}
