//! Tests in a network namespace of their own, which is their host's, and peers in others.

use std::process::Command;

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
