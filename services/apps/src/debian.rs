//! Images of Debian packages: one base layer of the host's release, made by mmdebstrap; over it, for each set of packages,
//! one layer with what `apt-get install` adds.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use image::Store;
use model::{ImageRef, LayerId, image::ImageInfo};
use tokio::process::Command;

use crate::{
    BuildError,
    builds::Progress,
    program::{self, Line},
    sources, suggest,
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const INSTALL: &str = include_str!("install.sh");
/// mmdebstrap says these in this order, each before it does it.
const BASE_STEPS: [&str; 6] = [
    "running apt-get update",
    "downloading packages",
    "extracting archives",
    "installing essential packages",
    "installing remaining packages",
    "cleaning package lists",
];

/// Builds images of Debian packages.
#[derive(Debug)]
pub struct Debian {
    store: Arc<Store>,
    work: PathBuf,
    cache: PathBuf,
}

struct Layer {
    id: LayerId,
    size: u64,
}

fn file(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> BuildError {
    let doing = format!("{doing} {}", path.display());
    move |source| BuildError::File { doing, source }
}

impl Debian {
    /// Works below `data`; removes what a killed build left there.
    pub fn open(store: Arc<Store>, data: &Path) -> Result<Self, BuildError> {
        let this = Self { store, work: data.join("work"), cache: data.join("cache") };
        this.empty_work()?;
        std::fs::create_dir_all(&this.cache).map_err(file("making", &this.cache))?;
        Ok(this)
    }

    fn empty_work(&self) -> Result<(), BuildError> {
        image::remove_tree(&self.work)?;
        std::fs::create_dir_all(&self.work).map_err(file("making", &self.work))
    }

    /// Builds an image. `refresh` of the image without packages makes a new base, which later builds use.
    pub async fn build(
        &self,
        packages: &[String],
        refresh: bool,
        progress: &Progress,
    ) -> Result<ImageInfo, BuildError> {
        self.empty_work()?;
        let base = self.base(refresh && packages.is_empty(), progress).await?;
        let mut layers = vec![base];
        if !packages.is_empty() {
            layers.push(self.install(&layers[0].id, packages, progress).await?);
        }
        self.empty_work()?;
        let (layers, sizes) = layers.into_iter().map(|layer| (layer.id, layer.size)).unzip();
        let built = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        Ok(ImageInfo { reference: ImageRef::Debian(packages.to_vec()), layers, sizes, built })
    }

    /// The base layer: the one that is there when it is of the host's release, or a new one.
    async fn base(&self, refresh: bool, progress: &Progress) -> Result<Layer, BuildError> {
        let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let release = sources::codename(&os_release).ok_or(BuildError::NotDebian)?;
        let reference = ImageRef::Debian(Vec::new());
        if !refresh
            && let Some(info) = self.store.image(&reference)?
            && let ([id], [size]) = (&info.layers[..], &info.sizes[..])
            && self.release_of(id).as_deref() == Some(&release)
        {
            return Ok(Layer { id: id.clone(), size: *size });
        }
        let root = self.work.join("base");
        let step = format!("making the Debian {release} base");
        progress.say(&step, 0, BASE_STEPS.len() as u64);
        let mut command = isolated().await;
        command.args(["mmdebstrap", "--variant=minbase", "--mode=root", "--format=directory"]);
        // mmdebstrap copies these from the host
        command.arg(r#"--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname""#);
        let entries = sources::entries(Path::new("/etc/apt"), &release);
        if entries.iter().any(|entry| entry.contains(" https://")) {
            command.arg("--include=ca-certificates");
        }
        command.arg(&release).arg(&root).args(entries).env("TMPDIR", &self.work);
        let doing = format!("making the Debian {release} base layer");
        program::run(&doing, command, |line| {
            if let Line::Error(line) = line
                && let Some(done) = BASE_STEPS.iter().position(|words| line.contains(words))
            {
                progress.say(&step, done as u64, BASE_STEPS.len() as u64);
            }
        })
        .await?;
        let layer = self.keep(root, progress).await?;
        // known from here on, whatever becomes of the packages
        let built = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        let info = ImageInfo { reference, layers: vec![layer.id.clone()], sizes: vec![layer.size], built };
        self.store.put_image(&info)?;
        Ok(layer)
    }

    fn release_of(&self, base: &LayerId) -> Option<String> {
        let path = self.store.layer_path(base).join("usr/lib/os-release");
        sources::codename(&std::fs::read_to_string(path).ok()?)
    }

    async fn install(&self, base: &LayerId, packages: &[String], progress: &Progress) -> Result<Layer, BuildError> {
        let work = self.work.join("packages");
        std::fs::create_dir_all(&work).map_err(file("making", &work))?;
        let mut command = isolated().await;
        command.args(["sh", "-c", INSTALL, "install.sh"]);
        command.arg(self.store.layer_path(base)).arg(&work).arg(&self.cache).args(packages);
        let what = packages.join(", ");
        progress.say("reading package lists", 0, 0);
        let doing = format!("installing {what}");
        let ended = program::run(&doing, command, |line| {
            if let Line::Out(line) = line
                && let Some((step, percent)) = status(line)
            {
                progress.say(&format!("{step} {what}"), percent, 100);
            }
        });
        match ended.await {
            Ok(()) => self.keep(work.join("upper"), progress).await,
            Err(error) => Err(unknown_package(error, &work.join("names"))),
        }
    }

    async fn keep(&self, tree: PathBuf, progress: &Progress) -> Result<Layer, BuildError> {
        progress.say("storing the layer", 0, 0);
        let store = self.store.clone();
        let added = tokio::task::spawn_blocking(move || store.add_layer(&tree)).await;
        let (id, size) = added.map_err(|_| BuildError::Lost)??;
        Ok(Layer { id, size })
    }
}

/// A command in a mount namespace of its own, and a process namespace where one can be had (a masked proc forbids to
/// mount another): nothing that it mounts or starts is left.
async fn isolated() -> Command {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]).env("PATH", PATH);
    let whole = program::run("probing", probe, |_| {}).await.is_ok();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--fork", "--kill-child"]);
    if whole {
        command.args(["--pid", "--mount-proc"]);
    }
    command.arg("--").env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
    command
}

/// Step and per cent of a line of apt's status (apt's `README.progress-reporting`).
fn status(line: &str) -> Option<(&'static str, u64)> {
    let mut fields = line.splitn(4, ':');
    let step = match fields.next()? {
        "dlstatus" => "downloading",
        "pmstatus" => "installing",
        _ => return None,
    };
    let percent: f64 = fields.nth(1)?.parse().ok()?;
    Some((step, percent.clamp(0.0, 100.0) as u64))
}

/// Names a package that is not there, with the one that may have been meant.
fn unknown_package(error: BuildError, names: &Path) -> BuildError {
    let BuildError::Program { said, .. } = &error else { return error };
    let Some(package) = said.lines().find_map(|line| line.strip_prefix("E: Unable to locate package ")) else {
        return error;
    };
    let package = package.trim().to_owned();
    let names = std::fs::read_to_string(names).unwrap_or_default();
    let nearest = suggest::nearest(&package, names.lines());
    BuildError::NoPackage { package, nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_status_is_understood() {
        assert_eq!(status("pmstatus:libc6:amd64:46.7:Preparing"), None);
        assert_eq!(status("pmstatus:nginx-light:46.7532:Preparing nginx-light (amd64)"), Some(("installing", 46)));
        assert_eq!(status("dlstatus:1:20.9090:Retrieving file 3 of 20"), Some(("downloading", 20)));
        assert_eq!(status("Reading package lists..."), None);
    }

    #[test]
    fn an_unknown_package_is_named_with_a_suggestion() {
        let directory = tempfile::tempdir().expect("a directory");
        let names = directory.path().join("names");
        std::fs::write(&names, "nginx\nnix\n").expect("written");
        let said = "E: Unable to locate package ngnix".to_owned();
        let error = unknown_package(BuildError::Program { doing: "installing".to_owned(), said }, &names);
        assert_eq!(error.to_string(), "debian has no package `ngnix`; did you mean `nginx`?");
    }
}
