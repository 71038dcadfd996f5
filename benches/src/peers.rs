//! How the peers are run: the same root filesystem, the same program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::Host;

/// A copy of the base image's layer, for peers that want a directory.
pub fn root_directory(host: &Host, image: &str, into: &Path) -> Result<PathBuf> {
    let rows = host.json(&["images"])?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["reference"] == image)).cloned();
    let layer = row.and_then(|row| row["layers"][0].as_str().map(str::to_owned)).context("the base image")?;
    let root = into.join("rootfs");
    let from = bailiwick_system_tests::host::layers_store().join("layers").join(layer);
    run(Command::new("cp").arg("-a").arg(from).arg(&root))?;
    // Layers belong to a range of ids of their own; peers run this one as root.
    run(Command::new("chown").args(["-R", "0:0"]).arg(&root))?;
    Ok(root)
}

/// Milliseconds from exec to exit.
pub fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    run(command)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{:?}", command.get_program()))?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&said).trim());
    Ok(())
}

/// `runc run` of a bundle made by `runc spec`.
pub fn runc(bundle: &Path) -> Result<impl FnMut() -> Result<f64> + use<>> {
    run(Command::new("runc").arg("spec").current_dir(bundle))?;
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    config["linux"]["cgroupsPath"] = "/bailiwick-bench-runc".into();
    fs::write(&path, serde_json::to_vec(&config)?)?;
    let bundle = bundle.to_owned();
    let state = bundle.join("runc");
    let mut number = 0;
    Ok(move || {
        number += 1;
        let name = format!("bailiwick-bench-{}-{number}", std::process::id());
        timed(Command::new("runc").arg("--root").arg(&state).args(["run", &name]).current_dir(&bundle))
    })
}

/// `lxc-start -F`, without a network, as its start-up alone is meant.
pub fn lxc(directory: &Path, root: &Path) -> Result<impl FnMut() -> Result<f64> + use<>> {
    let config = directory.join("lxc.conf");
    let text = format!(
        "lxc.uts.name = bench\nlxc.rootfs.path = dir:{}\nlxc.net.0.type = empty\nlxc.cgroup.dir = bailiwick-bench-lxc\n",
        root.display()
    );
    fs::write(&config, text)?;
    let directory = directory.to_owned();
    Ok(move || {
        let mut command = Command::new("lxc-start");
        command.args(["-F", "-n", "bench"]).arg("-P").arg(&directory).arg("-f").arg(&config);
        timed(command.args(["--", "/bin/true"]))
    })
}

/// `bwrap --unshare-all`.
pub fn bwrap(root: &Path) -> impl FnMut() -> Result<f64> + use<> {
    let root = root.to_owned();
    move || {
        let mut command = Command::new("bwrap");
        command.arg("--unshare-all").arg("--bind").arg(&root).arg("/");
        timed(command.args(["--proc", "/proc", "--dev", "/dev", "/bin/true"]))
    }
}

/// Removes the cgroups that lxc leaves in each hierarchy.
pub fn clean_up() {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join("bailiwick-bench-lxc");
        for left in [group.join("lxc.pivot"), group] {
            // What was not made there, or is still in use, stays.
            let _ = fs::remove_dir(left);
        }
    }
}
