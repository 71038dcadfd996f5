//! Images as a person sees them. Tests have no network, so what is here was built before (`make test-system`).

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    spec::{ECHO, perl, server},
};

#[test]
fn images_share_the_base_layer_and_say_who_uses_them() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &perl("user", 20500, &server("", ECHO), ""))?;
    let rows = host.json(&["images"])?;
    let row = |name: &str| {
        let found = rows.as_array().and_then(|rows| rows.iter().find(|row| row["reference"] == name));
        found.with_context(|| format!("no image {name} in {rows}"))
    };
    let (base, nginx) = (row("debian:")?, row("debian:nginx-light")?);
    ensure!(base["layers"][0] == nginx["layers"][0], "nginx stands on another base: {rows}");
    let small = nginx["own_size"].as_u64().context("own_size")?;
    let whole = nginx["size"].as_u64().context("size")?;
    ensure!(small > 0 && small < whole / 2, "{nginx}");
    ensure!(base["used_by"] == serde_json::json!(["user"]), "{base}");
    host.stop()
}

#[test]
fn an_image_in_use_is_not_removed() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &perl("user", 20510, &server("", ECHO), ""))?;
    let answer = host.cli(&["image", "rm", "debian:"])?;
    ensure!(answer.code == 4 && answer.err.contains("user"), "{answer:?}");
    let answer = host.cli(&["image", "rm", "debian:no-such-image"])?;
    ensure!(answer.code == 3 && answer.err.contains("no-such-image"), "{answer:?}");
    host.stop()
}

#[test]
fn a_missing_image_that_cannot_be_built_is_said_and_nothing_is_applied() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let path = host.root.join("a.toml");
    let spec = perl("none", 20520, &server("", ECHO), "").replace("\"debian:\"", "\"debian:no-such-package-anywhere\"");
    std::fs::write(&path, spec)?;
    let answer = host.cli(&["apply", path.to_str().context("a path")?])?;
    ensure!(answer.code != 0 && answer.err.contains("no-such-package-anywhere"), "{answer:?}");
    ensure!(answer.err.contains("nothing was changed"), "{}", answer.err);
    ensure!(host.json(&["ps"])?.as_array().is_some_and(Vec::is_empty), "it was applied all the same");
    host.stop()
}
