//! Turns `policy/seccomp.toml` into a table of Rust constants. A name that the libc crate does not know, or that is
//! listed twice, ends the build.

use std::{collections::BTreeMap, env, fmt::Write, fs, path::Path};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    default: Default,
    numbers: BTreeMap<String, u32>,
    allow: Vec<Group>,
    refuse: Vec<Group>,
    refuse_argument: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Default {
    unlisted: String,
    unknown: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    reason: String,
    arch: Option<String>,
    errno: Option<String>,
    calls: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    reason: String,
    call: String,
    argument: u8,
    value: u32,
    errno: String,
}

fn main() {
    let path = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../policy/seccomp.toml");
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let policy: Policy = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let number = |name: &str| match policy.numbers.get(name) {
        Some(number) => number.to_string(),
        None => format!("libc::SYS_{name} as u32"),
    };

    let mut seen = BTreeMap::new();
    let (mut calls, mut arguments) = (String::new(), String::new());
    let groups = policy.allow.iter().map(|g| (g, false)).chain(policy.refuse.iter().map(|g| (g, true)));
    for (group, refuse) in groups {
        assert!(!group.reason.is_empty(), "a group without a reason");
        assert_eq!(refuse, group.errno.is_some(), "`errno` belongs to `refuse`: {}", group.reason);
        let ours = group.arch.as_ref().is_none_or(|a| *a == arch);
        for name in &group.calls {
            assert!(seen.insert(name.as_str(), refuse).is_none(), "`{name}` is listed twice");
            if ours {
                let action =
                    group.errno.as_ref().map_or("Action::Allow".into(), |e| format!("Action::Errno(libc::{e} as u16)"));
                writeln!(calls, "    ({}, {action}),", number(name)).expect("memory");
            }
        }
    }
    for rule in &policy.refuse_argument {
        assert!(!rule.reason.is_empty(), "a rule without a reason");
        assert_eq!(seen.get(rule.call.as_str()), Some(&false), "`{}` is not allowed anyway", rule.call);
        let (call, argument, value, errno) = (number(&rule.call), rule.argument, rule.value, &rule.errno);
        writeln!(
            arguments,
            "    Refusal {{ call: {call}, argument: {argument}, value: {value}, errno: libc::{errno} as u16 }},"
        )
        .expect("memory");
    }
    let (unlisted, unknown) = (policy.default.unlisted, policy.default.unknown);
    let table = format!(
        "const CALLS: &[(u32, Action)] = &[\n{calls}];\nconst ARGUMENTS: &[Refusal] = &[\n{arguments}];\n\
         const UNLISTED: Action = Action::Errno(libc::{unlisted} as u16);\n\
         const UNKNOWN: Action = Action::Errno(libc::{unknown} as u16);\n"
    );
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("seccomp.rs");
    fs::write(&out, table).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
}
