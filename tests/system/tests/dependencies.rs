//! The rooms and who may use whom. Arrows point down; what is not listed here is not allowed.

use std::{collections::BTreeMap, process::Command};

use bailiwick_system_tests::host::project;
use serde_json::Value;

/// Each crate with the crates of ours that it may use.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sys", &[]),
    ("archive", &[]),
    ("wire", &["model"]),
    ("isolation", &["model", "sys"]),
    ("image", &["model", "sys", "archive"]),
    ("service", &["model", "wire"]),
    ("host", &["model", "wire", "sys", "isolation", "archive"]),
    ("shim", &["model", "wire", "sys", "isolation"]),
    ("control", &["model", "wire", "service", "archive"]),
    ("gateway", &["model", "wire", "service"]),
    ("logs", &["model", "wire", "sys", "service"]),
    ("network", &["model", "wire", "service"]),
    ("apps", &["model", "wire", "service", "archive", "image"]),
    ("cli", &["model", "wire", "service", "sys", "archive", "control", "gateway", "logs", "network", "apps"]),
    ("system-tests", &["model", "archive"]),
    ("kernel-tests", &["model", "wire", "sys", "isolation"]),
    ("bench", &["system-tests"]),
];

/// Crates that bring a C tool chain or a second TLS stack with them.
const UNWANTED: &[&str] = &["aws-lc-sys", "openssl-sys", "cmake", "native-tls", "libseccomp-sys"];

fn short(name: &str) -> &str {
    if name == "bailiwick" { "cli" } else { name.strip_prefix("bailiwick-").unwrap_or(name) }
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--offline", "--no-deps", "--format-version", "1"]).current_dir(project());
    let output = command.output().expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn arrows_between_rooms_point_down() {
    let rooms: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(packages.len(), rooms.len(), "a room is missing in this list, or here and gone in the tree");
    for package in packages {
        let name = short(package["name"].as_str().expect("a name"));
        let allowed = rooms.get(name).unwrap_or_else(|| panic!("room {name} is not in this list"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let ours = dependency["path"].is_string();
            let used = short(dependency["name"].as_str().expect("a name"));
            assert!(!ours || allowed.contains(&used), "{name} must not use {used}");
        }
    }
}

#[test]
fn unwanted_crates_are_not_in_the_tree() {
    let lock = std::fs::read_to_string(project().join("Cargo.lock")).expect("Cargo.lock");
    for unwanted in UNWANTED {
        assert!(!lock.contains(&format!("name = \"{unwanted}\"")), "{unwanted} came into the tree");
    }
}

#[test]
fn only_sys_has_unsafe_code() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = short(package["name"].as_str().expect("a name"));
        for target in package["targets"].as_array().expect("targets") {
            let kinds = target["kind"].to_string();
            if name == "sys" || kinds.contains("test") || kinds.contains("custom-build") {
                continue;
            }
            let path = target["src_path"].as_str().expect("a path");
            let text = std::fs::read_to_string(path).expect("the crate's root");
            assert!(text.contains("#![forbid(unsafe_code)]"), "{path} lacks #![forbid(unsafe_code)]");
        }
    }
}
