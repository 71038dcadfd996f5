//! The web application of `examples/site.toml`, as its clients see it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use model::VpsSpec;

use crate::{
    host::project,
    load::{Ended, exchange},
};

/// Its VPSs: the application, and the database it connects to.
pub const VPSS: [&str; 2] = ["site", "db"];
/// The port of the example's route.
pub const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

/// The example with its route on another port.
pub fn spec(port: u16) -> Result<String> {
    let text = std::fs::read_to_string(project().join("examples/site.toml"))?;
    Ok(text.replace(&format!("site.test:{PORT}"), &format!("site.test:{port}")))
}

/// One of its VPSs, as the example says it.
pub fn vps(name: &str) -> Result<VpsSpec> {
    let told = |problems: Vec<_>| anyhow::anyhow!("examples/site.toml: {problems:?}");
    let file = model::spec::parse("site.toml", &spec(PORT)?).map_err(told)?;
    file.vps.get(name).cloned().with_context(|| format!("no vps {name} in examples/site.toml"))
}

/// Does what its installer asks a person for: a title, a name, a password. That makes its tables.
pub fn install(port: u16) -> Result<()> {
    let form = "weblog_title=A+page+from+two+VPSs&user_name=admin&admin_email=admin%40site.test&blog_public=0&language=\
                &admin_password=correct-horse-battery-staple&admin_password2=correct-horse-battery-staple&pw_weak=1";
    let text = request(port, "POST /wp-admin/install.php?step=2", form)?;
    ensure!(text.contains("Success!"), "it could not be installed: {text}");
    Ok(())
}

/// Its first page, which comes out of the database.
pub fn page(port: u16) -> Result<String> {
    let text = request(port, "GET /", "")?;
    ensure!(text.starts_with("HTTP/1.1 200 ") && text.contains("A page from two VPSs"), "no page: {text}");
    Ok(text)
}

fn request(port: u16, what: &str, form: &str) -> Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // One name whatever the port: the application sends whoever comes by another one there.
    let request = format!(
        "{what} HTTP/1.1\r\nHost: site.test:{PORT}\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    match exchange(address, request.as_bytes(), PATIENCE) {
        Ended::Answer(answer) => String::from_utf8(answer).context("an answer in UTF-8"),
        other => bail!("{what}: {other:?}"),
    }
}
