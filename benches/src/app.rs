//! The first page of a web application whose database is asleep too: in two VPSs, against both started bare.
//!
//! Bare means: the same programs from the same images' files with the same configuration, started side by side by exec in a
//! root directory of their own (chroot(8)); the page is asked for when both listen.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::{
        fs::{MetadataExt, lchown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions, host::layers_store, site};

use crate::{
    cold::ASLEEP,
    measure::{Measure, Samples},
};

const RUNS: usize = 12;
const OURS: u16 = 18082;
const WEB: u16 = 18083;
const DATABASE: u16 = 18306;
/// Where ids of image layers begin on disk.
const LAYERS: u32 = 700_000;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let host = Host::start(HostOptions::default())?;
    host.apply("site.toml", &site::spec(OURS)?.replace("\"5s\"", "\"10m\""))?;
    site::install(OURS)?;
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir_in("/var/tmp")?;
    let bare = Bare::new(&host, directory.path())?;
    drop(bare.start()?.installed()?);
    let samples = Samples::take(
        RUNS,
        vec![("ours", Box::new(|| ours(&host))), ("both bare", Box::new(|| bare.start()?.first_page()))],
    );
    let (ours, bare) = (samples.median("ours"), samples.median("both bare"));
    Ok(vec![Measure {
        measure: "first page, web application and database both asleep".to_owned(),
        unit: "ms".to_owned(),
        ours,
        peers: samples.peers(),
        ratio: ours - bare,
        must: "<= bare + 40 ms".to_owned(),
        aim: "<= bare + 15 ms".to_owned(),
        ok: ours <= bare + 40.0,
        runs: RUNS,
        failed: samples.failed,
    }])
}

fn ours(host: &Host) -> Result<f64> {
    for name in site::VPSS {
        host.run(&["stop", name])?;
    }
    std::thread::sleep(ASLEEP);
    page(OURS, Instant::now())
}

fn page(port: u16, start: Instant) -> Result<f64> {
    site::page(port)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The roots of both programs.
struct Bare {
    site: PathBuf,
    db: PathBuf,
}

impl Bare {
    fn new(host: &Host, directory: &Path) -> Result<Self> {
        let this = Self { site: root(host, "site", directory)?, db: root(host, "db", directory)? };
        let change = |path: &Path, from: &str, to: &str| -> Result<()> {
            let text = fs::read_to_string(path)?;
            ensure!(text.contains(from), "{} has no {from}", path.display());
            Ok(fs::write(path, text.replace(from, to))?)
        };
        let apache = this.site.join("etc/apache2");
        change(&apache.join("ports.conf"), "Listen 80", &format!("Listen 127.0.0.1:{WEB}"))?;
        change(&apache.join("sites-available/000-default.conf"), "*:80", &format!("*:{WEB}"))?;
        let config = this.site.join("etc/wordpress/config-default.php");
        change(&config, "'db'", &format!("'127.0.0.1:{DATABASE}'"))?;
        let mariadb = this.db.join("etc/mysql/mariadb.conf.d/99-site.cnf");
        change(&mariadb, "= *", &format!("= 127.0.0.1\nport = {DATABASE}\nuser = mysql"))?;
        Ok(this)
    }

    fn start(&self) -> Result<Running> {
        let start = Instant::now();
        let run = |root: &Path, words: &[&str]| {
            let mut command = Command::new("chroot");
            command.arg(root).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(ENVIRONMENT);
            // apache2 ends its whole process group, which must not be ours.
            command.process_group(0).spawn().context("chroot")
        };
        let both = [run(&self.db, &["mariadbd"])?, run(&self.site, &["apache2", "-D", "FOREGROUND"])?];
        let mut running = Running { start, both };
        running.listen()?;
        Ok(running)
    }
}

const ENVIRONMENT: [(&str, &str); 6] = [
    ("APACHE_RUN_DIR", "/run"),
    ("APACHE_LOCK_DIR", "/run"),
    ("APACHE_LOG_DIR", "/var/log/apache2"),
    ("APACHE_PID_FILE", "/run/apache2.pid"),
    ("APACHE_RUN_USER", "www-data"),
    ("APACHE_RUN_GROUP", "www-data"),
];

/// Both of them, until this is dropped.
struct Running {
    start: Instant,
    both: [Child; 2],
}

impl Running {
    fn listen(&mut self) -> Result<()> {
        for port in [WEB, DATABASE] {
            while TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
                for child in &mut self.both {
                    ensure!(child.try_wait()?.is_none(), "one of them ended");
                }
                ensure!(self.start.elapsed() < Duration::from_secs(30), "nobody listens on port {port}");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    fn installed(self) -> Result<Self> {
        site::install(WEB)?;
        Ok(self)
    }

    fn first_page(self) -> Result<f64> {
        page(WEB, self.start)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.both {
            // SIGTERM, so that data are whole and ports free for the next run.
            let _ = Command::new("sh").args(["-c", "kill \"$0\"", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}

/// A copy of the files of a VPS's image, as the program sees them, with the small files of its spec.
fn root(host: &Host, vps: &str, directory: &Path) -> Result<PathBuf> {
    let spec = site::vps(vps)?;
    let rows = host.json(&["images"])?;
    let image = spec.image.to_string();
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["reference"] == image)).cloned();
    let row = row.with_context(|| format!("image {image} in {rows}"))?;
    let root = directory.join(vps);
    fs::create_dir(&root)?;
    for layer in row["layers"].as_array().into_iter().flatten().filter_map(|layer| layer.as_str()) {
        let from = layers_store().join("layers").join(layer).join(".");
        sh(Command::new("cp").arg("-a").arg(from).arg(&root))?;
    }
    own(&root)?;
    for (path, content) in &spec.files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(path, content)?;
    }
    for (node, minor) in [("null", "3"), ("urandom", "9"), ("random", "8")] {
        let path = root.join("dev").join(node);
        if !path.exists() {
            sh(Command::new("mknod").args(["-m", "666"]).arg(path).args(["c", "1", minor]))?;
        }
    }
    Ok(root)
}

/// Layers belong to a range of ids of their own.
fn own(path: &Path) -> Result<()> {
    let meta = path.symlink_metadata()?;
    if meta.uid() >= LAYERS {
        let modes = fs::symlink_metadata(path)?.permissions();
        lchown(path, Some(meta.uid() - LAYERS), Some(meta.gid().saturating_sub(LAYERS)))?;
        if !meta.is_symlink() {
            fs::set_permissions(path, modes)?; // a change of owner takes setuid bits away
        }
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path())?;
        }
    }
    Ok(())
}

fn sh(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
