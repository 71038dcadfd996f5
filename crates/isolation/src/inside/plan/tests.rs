use std::io;

use model::run::{Ready, Root, RunSpec};

use super::*;
use crate::inside::{Kernel, build};

fn run(json: &str) -> RunSpec {
    serde_json::from_str(json).expect("a run spec")
}

fn server() -> RunSpec {
    run(r#"{"name":"blog","root":{"layers":[]},"command":["nginx"],"ready":{"listen":80},
            "stop":{"signal":15,"grace_ms":1000},"resolvers":["10.80.0.2"],"files":{"/etc/x/y":"z"}}"#)
}

const OWN: Setting<'_> = Setting { network: true, binds: &[] };

/// All steps of `run`, in order.
fn plan(run: &RunSpec, setting: Setting<'_>) -> Vec<Step> {
    [frame(run, setting), finish(run, setting, &[])].concat()
}

/// Says what was to be done, and fails where told.
#[derive(Default)]
struct Recorder {
    done: Vec<String>,
    fail_at: Option<&'static str>,
}

impl Kernel for Recorder {
    fn apply(&mut self, step: &Step) -> io::Result<()> {
        self.done.push(step.to_string());
        match self.fail_at {
            Some(at) if step.to_string() == at => Err(io::Error::from_raw_os_error(1)),
            _ => Ok(()),
        }
    }
}

fn at(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(wanted).expect("the step is there")
}

#[test]
fn a_failed_step_ends_the_build_and_is_named() {
    let steps = plan(&server(), OWN);
    let mut kernel = Recorder { fail_at: Some("mounting proc at /proc"), ..Recorder::default() };
    let error = build(&steps, &mut kernel).expect_err("it fails");
    assert_eq!(kernel.done.last().map(String::as_str), Some("mounting proc at /proc"));
    assert_eq!(error.explain(), "mounting proc at /proc: Operation not permitted (os error 1)");
}

#[test]
fn order_that_the_kernel_demands() {
    let steps = plan(&server(), OWN);
    let enter = at(&steps, |s| *s == Step::EnterRoot);
    let proc = at(&steps, |s| matches!(s, Step::Mount { kind: "proc", .. }));
    let sysfs = at(&steps, |s| matches!(s, Step::Mount { kind: "sysfs", .. }));
    let first_mask = at(&steps, |s| matches!(s, Step::MaskFile(_)));
    assert!(proc < enter && sysfs < enter && enter < first_mask);
    assert_eq!(steps.last(), Some(&Step::Seccomp { listen: true }));
    assert!(at(&steps, |s| matches!(s, Step::Bound(_))) < steps.len() - 1);
}

#[test]
fn nesting_has_no_mask_and_more_capabilities() {
    let mut spec = server();
    spec.nesting = true;
    let steps = plan(&spec, OWN);
    assert!(!steps.iter().any(|s| matches!(s, Step::MaskFile(_) | Step::MaskDirectory(_) | Step::ReadOnly { .. })));
    assert!(steps.iter().any(|s| matches!(s, Step::Bound(set) if set.contains(CapabilitySet::SYS_ADMIN))));
    let plain = plan(&server(), OWN);
    assert!(plain.iter().any(|s| matches!(s, Step::Bound(set) if !set.contains(CapabilitySet::SYS_ADMIN))));
}

#[test]
fn a_bare_root_is_read_only_once_all_is_in_it() {
    let mut spec = server();
    spec.root = Root::Bare;
    spec.ready = Ready::Notify;
    let binds = [Prepared { target: "/bin/bailiwick".to_owned(), directory: false, volume: false }];
    let steps = plan(&spec, Setting { network: true, binds: &binds });
    let closed = at(&steps, |s| *s == Step::ReadOnlyRoot);
    assert!(at(&steps, |s| matches!(s, Step::Bind { .. })) < closed);
    assert!(steps.iter().rposition(|s| matches!(s, Step::File { .. })).expect("files") < closed);
    assert!(steps.contains(&Step::NotifySocket));
    assert!(!plan(&server(), OWN).contains(&Step::ReadOnlyRoot));
}

#[test]
fn a_file_of_the_spec_replaces_the_systems() {
    let mut spec = server();
    spec.files.insert("/etc/hosts".to_owned(), "mine".to_owned());
    let steps = plan(&spec, OWN);
    let hosts: Vec<_> = steps.iter().filter(|s| matches!(s, Step::File { path, .. } if path == "/etc/hosts")).collect();
    assert!(matches!(hosts[..], [Step::File { content, .. }] if content == "mine"));
}

#[test]
fn privileges_are_kept_from_growing_only_on_request() {
    let mut spec = server();
    assert!(!plan(&spec, OWN).contains(&Step::NoNewPrivileges));
    spec.setuid = false;
    assert!(plan(&spec, OWN).contains(&Step::NoNewPrivileges));
}

#[test]
fn the_hosts_network_is_not_touched() {
    let steps = plan(&server(), Setting { network: false, binds: &[] });
    assert!(!steps.iter().any(|s| matches!(s, Step::Loopback | Step::Link(_))));
    assert!(steps.contains(&Step::BindSysfs));
}

#[test]
fn a_frame_is_the_same_for_every_program_of_an_image() {
    let mut other = server();
    other.name = "shop".parse().expect("a name");
    other.command = vec!["redis-server".to_owned()];
    other.files.insert("/etc/redis.conf".to_owned(), "port 1".to_owned());
    (other.ready, other.setuid) = (Ready::Notify, false);
    assert_eq!(frame(&other, OWN), frame(&server(), OWN));
    assert_ne!(finish(&other, OWN, &[]), finish(&server(), OWN, &[]));
}
