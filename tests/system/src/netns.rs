//! Tests in a network namespace of their own, which is their host's, and peers in others.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

const IN_NAMESPACE: &str = "BAILIWICK_TEST_NETNS";

/// Runs this test's program once more, in a network namespace of its own, and `test` there. `name` is the test's.
pub fn in_own_network(name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return test();
    }
    let program = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    command.arg("--net").arg(program).args(["--exact", name, "--nocapture"]).env(IN_NAMESPACE, "1");
    let output = command.output().context("unshare")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("1 passed"), "{said}");
    Ok(())
}

/// What a shell script prints; an error where it fails.
pub fn sh(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The host's addresses at `eth0`.
pub const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The client's.
pub const CLIENT: [&str; 2] = ["192.0.2.9", "2001:db8::9"];

/// A namespace for clients, joined by `eth0` to the test's.
#[derive(Debug)]
pub struct Client(Child);

impl Client {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        BufReader::new(holder.stdout.as_mut().context("stdout")?).read_line(&mut String::new())?;
        let client = Self(holder);
        let pid = client.0.id();
        sh(&format!(
            "ip link set lo up; ip link add eth0 type veth peer name out0 netns {pid}; ip addr add {}/24 dev eth0
             ip addr add {}/64 dev eth0 nodad; ip link set eth0 up",
            HOST[0], HOST[1]
        ))?;
        client.sh(&format!(
            "ip link set lo up; ip addr add {}/24 dev out0; ip addr add {}/64 dev out0 nodad; ip link set out0 up",
            CLIENT[0], CLIENT[1]
        ))?;
        Ok(client)
    }

    /// What a shell script prints there; an error where it fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        sh(&format!("nsenter -t {} -n sh -ec '{script}'", self.0.id()))
    }

    /// What runs `program` there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string(), "-n", program]);
        command
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
