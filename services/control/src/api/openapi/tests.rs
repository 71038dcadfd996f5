use std::collections::BTreeSet;

use model::{api::*, spec::Problem, story::*};
use serde::Serialize;

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/bailiwick.json");

/// `BAILIWICK_REGENERATE=1 cargo test -p bailiwick-control openapi` writes it anew.
#[test]
fn the_committed_document_is_this_one() {
    let now = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("BAILIWICK_REGENERATE").is_some() {
        std::fs::write(FILE, &now).unwrap();
    }
    let committed = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(committed == now, "openapi/bailiwick.json is old: BAILIWICK_REGENERATE=1 cargo test -p bailiwick-control");
}

/// Every field that a type writes is in its schema, and every required one is written.
#[track_caller]
fn holds<T: Serialize>(name: &str, sample: T) {
    let schema = &document()["components"]["schemas"][name];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let (written, known) = (keys(&serde_json::to_value(sample).unwrap()), keys(&schema["properties"]));
    assert_eq!(written, known, "{name}");
}

fn row() -> VpsRow {
    VpsRow {
        name: "a".parse().unwrap(),
        tenant: None,
        state: State::Asleep,
        for_ms: 0,
        routes: Default::default(),
        internal: Vec::new(),
        memory: None,
        memory_limit: None,
        processes: None,
        address: None,
        pid: None,
        prepared: false,
        last_wake: None,
        failure: None,
        note: None,
        services: Vec::new(),
        spec: Some(String::new()),
    }
}

fn event() -> Event {
    Event { at_ms: 0, vps: None, what: String::new(), detail: String::new(), actor: String::new() }
}

#[test]
fn schemas_hold_what_the_types_write() {
    let text = String::new;
    let problem = Problem { file: text(), line: 0, column: 1, width: 1, text: text(), message: text(), hint: None };
    let change = FieldChange { field: text(), old: None, new: None };
    let error = ErrorAnswer { message: text(), next: None, problems: vec![problem.clone()], kind: ErrorKind::Failed };
    let vps = || "a".parse().unwrap();
    holds("SpecFile", SpecFile { name: text(), text: text(), ..Default::default() });
    holds("ApplyRequest", ApplyRequest { files: Vec::new(), dry_run: false, take_routes: false });
    holds("ApplyAnswer", ApplyAnswer { changes: Vec::new(), missing_images: Vec::new(), warnings: Vec::new() });
    holds("FieldChange", change.clone());
    holds(
        "Change",
        Change {
            vps: vps(),
            kind: ChangeKind::Create,
            fields: vec![change],
            at_next_start: false,
            secrets: Vec::new(),
        },
    );
    holds("Problem", problem);
    holds("ErrorAnswer", error);
    holds("LastWake", LastWake { took_ms: None, by: text(), at_ms: 0 });
    holds("VpsRow", row());
    holds("Event", event());
    let ignored = Ignored { served: 1, from_cache: 2, refused: 3 };
    holds("Ignored", ignored);
    let ignored = Some(ignored);
    let step = || Step { what: text(), after_us: 0 };
    let wait = Wait { on: text(), took_ms: 0, detail: text() };
    let start = Start { steps: vec![step()], waits: vec![wait.clone()], ..Start::default() };
    let stop = Stop { ended: Some(text()), ..Stop::default() };
    let failure = Failure { exit: Some(1), signal: None, began_ms: Some(0), steps: vec![step()], ..Failure::default() };
    holds("Step", step());
    holds("Wait", wait);
    holds("Start", start.clone());
    holds("Stop", stop.clone());
    holds("Failure", failure.clone());
    let last = Story { start: Some(start), stop: Some(stop), failure: Some(failure) };
    holds("Story", last.clone());
    holds("Why", Why { vps: row(), summary: text(), ignored, last, story: Vec::new(), log: Vec::new(), next: None });
    let image = ImageRow { reference: text(), layers: Vec::new(), size: 0, own_size: 0, built: 0, used_by: Vec::new() };
    holds("ImageRow", image);
    holds("BuildRequest", BuildRequest { image: text(), refresh: false, keep: false });
    let progress = serde_json::to_value(BuildLine::Progress { step: text(), done: 0, total: 0 }).unwrap();
    holds("BuildProgress", progress["progress"].clone());
    holds("RouteRow", RouteRow { route: text(), vps: vps(), port: 1, listen: text(), fault: None, from: Vec::new() });
    let (kind, none) = (FirewallKind::Allow, None);
    let row = FirewallRow { vps: vps(), kind, to: text(), name: None, packets: None, bytes: none, left_ms: none };
    holds("FirewallRow", row);
    holds("FirewallTest", FirewallTest { vps: vps(), to: text() });
    let tested = FirewallTested { allowed: true, rule: text(), address: None, sent: None, reached: None };
    holds("FirewallTested", tested);
    holds("VolumeMoved", VolumeMoved { entries: 0, bytes: 0, left_out: 0, changed: 0 });
    let service = ServiceRow {
        service: text(),
        vps: vps(),
        state: State::Running,
        starts: 0,
        grants: Vec::new(),
        memory: None,
        pid: None,
    };
    holds("ServiceRow", service);
    let (tenant, name) = (|| "a".parse().unwrap(), "a".parse().unwrap());
    holds("SecretRow", SecretRow { tenant: tenant(), name, set_ms: 0, used_by: Default::default() });
    let imported = Imported {
        vps: vps(),
        tenant: tenant(),
        volumes: Default::default(),
        image: text(),
        other_image: false,
        left_out: Vec::new(),
    };
    holds("Imported", imported);
    holds(
        "StateImported",
        StateImported { vps: Vec::new(), secrets: 0, missing_images: Vec::new(), readdressed: Vec::new() },
    );
    holds("SecretSet", SecretSet { replaced: false, at_next_start: Vec::new() });
    holds(
        "ExecRequest",
        ExecRequest { command: Vec::new(), env: Default::default(), user: None, cwd: None, terminal: None },
    );
    let run = JobRun { at_ms: 0, took_ms: 0, result: text(), status: None, output: text(), by: text() };
    holds("JobRun", run.clone());
    let job = JobRow {
        vps: vps(),
        job: "a".parse().unwrap(),
        when: text(),
        run: Vec::new(),
        next_ms: None,
        running: false,
        failures: 0,
        last: Some(run),
    };
    holds("JobRow", job);
    holds("LogLine", LogLine::default());
    let (target, away, lost_ms) = (text(), None, None);
    holds("LogTargetRow", LogTargetRow { target, away, since_ms: 0, sent: 0, waiting: 0, lost: 0, gaps: 0, lost_ms });
    holds("Health", crate::api::lists::Health { ok: true, version: "", vps: 0, faults: Vec::new() });
}

#[test]
fn words_are_those_of_the_types() {
    let words = |name: &str| document()["components"]["schemas"][name]["enum"].clone();
    let states =
        [State::Asleep, State::Starting, State::Running, State::Frozen, State::Stopping, State::Failed, State::Waiting];
    assert_eq!(words("State"), serde_json::to_value(states).unwrap());
    use ErrorKind::{Conflict, Denied, Failed, Invalid, Lacking, NotFound, Unavailable};
    let kinds = [Failed, Invalid, NotFound, Conflict, Denied, Unavailable, Lacking];
    assert_eq!(words("ErrorKind"), serde_json::to_value(kinds).unwrap());
    assert_eq!(kinds.map(|kind| kind as i32), [1, 2, 3, 4, 5, 6, 7]);
    let changes = [ChangeKind::Create, ChangeKind::Change, ChangeKind::None];
    assert_eq!(words("ChangeKind"), serde_json::to_value(changes).unwrap());
}

#[test]
fn references_lead_somewhere() {
    let document = document();
    let text = document.to_string();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "no schema {name}");
    }
}
