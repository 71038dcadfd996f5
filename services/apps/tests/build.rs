//! Whole builds with real packages, by root of a user namespace of 65,536 ids and nothing more. Needs root, mmdebstrap,
//! and a Debian mirror.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use bailiwick_apps::{Builds, Debian, State};
use image::Store;
use model::{ImageRef, image::ImageInfo};
use rustix::{fs::getxattr, process::geteuid};
use wire::Fault;

const INSIDE: &str = "BAILIWICK_TEST_INSIDE";
/// Ids of nobody else.
const BASE: u32 = 1_900_000_000;

/// Runs the test of that name again, as root of namespaces of its own, on a directory that is its.
fn in_namespaces(test: &str) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(INSIDE) {
        return Some(directory.into());
    }
    assert!(geteuid().is_root(), "this test writes uid_map, which needs root");
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["", "layers", "data"] {
        let path = directory.path().join(name);
        fs::create_dir_all(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("opened");
        chown(&path, Some(BASE), Some(BASE)).expect("given away");
    }
    let mut holder = Command::new("unshare")
        .args(["--user", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("running unshare");
    holder.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("asked");
    BufReader::new(holder.stdout.as_mut().expect("a pipe")).read_line(&mut String::new()).expect("answered");
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.id()), format!("0 {BASE} 65536")).expect("mapped");
    }
    let status = Command::new("nsenter")
        .args(["--user", "--target", &holder.id().to_string(), "unshare", "--mount", "--pid", "--ipc", "--uts"])
        .args(["--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().expect("this test's path"))
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, directory.path())
        .status();
    drop(holder.stdin.take());
    holder.wait().expect("waited");
    assert!(status.expect("running nsenter").success(), "{test} failed in its namespaces");
    None
}

async fn wait(mut state: tokio::sync::watch::Receiver<State>) -> (Vec<String>, Result<ImageInfo, Fault>) {
    let mut steps: Vec<String> = Vec::new();
    loop {
        match state.borrow_and_update().clone() {
            State::Ended(ended) => return (steps, ended),
            State::Going { step, .. } if steps.last() != Some(&step) => steps.push(step),
            State::Going { .. } => {}
        }
        state.changed().await.expect("a result");
    }
}

fn open(directory: &Path) -> (Arc<Store>, Builds) {
    let store = Arc::new(Store::open(&directory.join("layers")).expect("a store"));
    let debian = Debian::open(store.clone(), &directory.join("data")).expect("a work directory");
    (
        store.clone(),
        Builds::new(store, debian, "test".to_owned(), image::Limits { bytes: 1 << 30, entries: 1000, reserve: 0 }),
    )
}

fn image(reference: &str) -> ImageRef {
    reference.parse().expect("a reference")
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).expect("a directory").count()
}

#[test]
fn images_of_real_packages_are_built_shared_and_removed() {
    let Some(directory) = in_namespaces("images_of_real_packages_are_built_shared_and_removed") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(build_all(&directory));
}

async fn build_all(directory: &Path) {
    // what a killed build leaves
    fs::create_dir_all(directory.join("data/work/packages/upper")).expect("made");
    let (store, builds) = open(directory);
    assert_eq!(count(&directory.join("data/work")), 0);

    let ping = image("debian:iputils-ping");
    let one = builds.build(ping.clone(), false).expect("begun");
    let two = builds.build(ping.clone(), false).expect("joined");
    let ((steps, one), (_, two)) = tokio::join!(wait(one), wait(two));
    let (one, two) = (one.expect("built"), two.expect("built"));
    assert_eq!(one, two, "two builds of one image at once");
    assert!(steps.iter().any(|step| step == "installing iputils-ping"), "{steps:?}");
    let [base, packages] = &one.layers[..] else { panic!("{one:?}") };
    for layer in &one.layers {
        store.verify(layer).expect("whole");
    }

    let upper = store.layer_path(packages);
    let mut capability = [0; 64];
    let length = getxattr(upper.join("usr/bin/ping"), "security.capability", &mut capability[..]);
    assert!(length.or_else(|_| getxattr(upper.join("bin/ping"), "security.capability", &mut capability[..])).is_ok());
    for gone in ["usr/sbin/policy-rc.d", "etc/resolv.conf", "var/log/dpkg.log", "dev/null"] {
        assert!(upper.join(gone).symlink_metadata().is_err(), "{gone} is in the layer");
    }
    let su = store.layer_path(base).join("usr/bin/su").metadata().expect("su");
    assert_eq!((su.mode() & 0o7777, su.uid()), (0o4755, 0));
    assert_eq!(count(&store.layer_path(base).join("dev")), 0);

    let (_, error) = wait(builds.build(image("debian:ngnix"), false).expect("begun")).await;
    assert_eq!(error.expect_err("no such package").message, "debian has no package `ngnix`; did you mean `nginx`?");
    // to apt this is a pattern, or a removal
    for pattern in ["debian:ng.nx", "debian:iputils-ping-"] {
        let (_, error) = wait(builds.build(image(pattern), false).expect("begun")).await;
        assert!(error.expect_err("no such package").message.starts_with("debian has no package"), "{pattern}");
    }
    assert_eq!(count(&directory.join("layers/layers")), 2);

    // after a restart the base is used again
    let (store, builds) = open(directory);
    let (steps, netbase) = wait(builds.build(image("debian:netbase"), false).expect("begun")).await;
    let netbase = netbase.expect("built");
    assert_eq!(&netbase.layers[0], base);
    assert!(!steps.iter().any(|step| step.contains("making the Debian")), "{steps:?}");
    assert_eq!(store.images().expect("images").len(), 3);

    builds.remove(&ping).await.expect("removed");
    assert!(!store.has_layer(packages) && store.has_layer(base));
    assert!(builds.remove(&ping).await.is_err());
    assert_eq!(count(&directory.join("data/work")), 0);
}
