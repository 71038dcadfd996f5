//! The paths, one row each.

use serde_json::{Map, Value, json};

use super::schemas::reference;

/// What an answer or a request holds.
#[derive(Debug, Clone, Copy)]
enum Body {
    Nothing,
    One(&'static str),
    List(&'static str),
    Lines(&'static str),
    Toml,
    Tar,
    Bytes,
    Document,
    Upgrade,
}
use Body::{Bytes, Document, Lines, List, Nothing, One, Tar, Toml, Upgrade};

struct Path {
    path: &'static str,
    method: &'static str,
    about: &'static str,
    query: &'static [(&'static str, &'static str, &'static str)],
    request: Body,
    answer: Body,
}

const fn row(path: &'static str, method: &'static str, about: &'static str, request: Body, answer: Body) -> Path {
    Path { path, method, about, query: &[], request, answer }
}

const fn with(path: Path, query: &'static [(&'static str, &'static str, &'static str)]) -> Path {
    Path { query, ..path }
}

const PATHS: &[Path] = &[
    row("/v1/apply", "post", "Applies spec files, all or nothing", One("ApplyRequest"), One("ApplyAnswer")),
    with(row("/v1/vps", "get", "Lists VPSs", Nothing, List("VpsRow")), &[("all", "boolean", "Designated VPSs too.")]),
    row("/v1/vps/{name}", "get", "One VPS with its spec", Nothing, One("VpsRow")),
    row("/v1/vps/{name}", "delete", "Stops and deletes a VPS", Nothing, Nothing),
    row("/v1/vps/{name}/spec", "get", "The stored spec", Nothing, Toml),
    row("/v1/vps/{name}/why", "get", "Why a VPS is as it is", Nothing, One("Why")),
    row("/v1/vps/{name}/start", "post", "Starts a VPS and waits until it is ready", Nothing, One("VpsRow")),
    row("/v1/vps/{name}/stop", "post", "Stops a VPS and waits until it has ended", Nothing, One("VpsRow")),
    row("/v1/vps/{name}/restart", "post", "Stops a VPS, starts it, waits until it is ready", Nothing, One("VpsRow")),
    row("/v1/vps/{name}/freeze", "post", "Makes a running VPS stand still", Nothing, One("VpsRow")),
    row("/v1/vps/{name}/thaw", "post", "Lets a frozen VPS go on", Nothing, One("VpsRow")),
    with(
        row("/v1/vps/{name}/logs", "get", "The log of a VPS", Nothing, Lines("LogLine")),
        &[
            ("lines", "integer", "How many of the last lines; 100 where it is left out, 10000 at most."),
            ("follow", "boolean", "Go on with what is added."),
            (
                "source",
                "string",
                "Only lines of these, with commas between: out, err, log, file, vps, or a file's path.",
            ),
            ("since", "string", "Only lines since this time, RFC 3339 in UTC or its beginning; `lines` is 10000 then."),
        ],
    ),
    row("/v1/vps/{name}/exec", "post", "Runs a program inside; starts the VPS if need be", One("ExecRequest"), Upgrade),
    with(
        row(
            "/v1/vps/{name}/archive",
            "get",
            "A whole VPS as one tar archive; with the header bailiwick-passphrase, in hexadecimal, also its secrets, sealed with it",
            Nothing,
            Tar,
        ),
        &[("image", "boolean", "With the layers of its image.")],
    ),
    with(
        row("/v1/archive", "put", "Makes a VPS of such an archive, whole or not at all", Tar, One("Imported")),
        &[
            ("name", "string", "What it is called here; left out: as it was."),
            ("tenant", "string", "Whose it is here; left out: whose it was."),
            ("routes", "boolean", "false: without its routes."),
        ],
    ),
    row("/v1/vps/{name}/jobs", "get", "The jobs of a VPS", Nothing, List("JobRow")),
    row("/v1/vps/{name}/jobs/{job}/run", "post", "Runs a job now and waits for its end", Nothing, One("JobRun")),
    row("/v1/jobs", "get", "Lists jobs", Nothing, List("JobRow")),
    row("/v1/images", "get", "Lists images", Nothing, List("ImageRow")),
    row("/v1/images/build", "post", "Builds an image unless it is there", One("BuildRequest"), Lines("BuildLine")),
    row("/v1/images/prune", "post", "Removes what nothing uses", One("PruneRequest"), One("PruneAnswer")),
    row("/v1/images/{reference}/content", "post", "Sends the archive of an image", Tar, Lines("BuildLine")),
    row("/v1/images/{reference}/verify", "post", "Reads an image's layers", Nothing, One("VerifyAnswer")),
    row("/v1/images/{reference}", "delete", "Removes an image that no VPS uses", Nothing, Nothing),
    row("/v1/volumes", "get", "Lists volumes", Nothing, List("VolumeRow")),
    row("/v1/volumes/{tenant}/{name}", "get", "One volume", Nothing, One("VolumeRow")),
    row("/v1/volumes/{tenant}/{name}", "delete", "Removes a volume that no VPS uses", Nothing, Nothing),
    row("/v1/volumes/{tenant}/{name}/content", "get", "A volume as a tar stream", Nothing, Tar),
    with(
        row(
            "/v1/volumes/{tenant}/{name}/content",
            "put",
            "Fills a volume: whole or not at all",
            Tar,
            One("VolumeMoved"),
        ),
        &[
            ("owner", "string", "UID:GID who owns all of it; left out: whom the stream says, ids as a VPS sees them."),
            ("replace", "boolean", "Take the place of what is there; else a volume that has something is refused."),
        ],
    ),
    row("/v1/secrets", "get", "Lists secrets, without what they say", Nothing, List("SecretRow")),
    row("/v1/secrets/{tenant}/{name}", "put", "Sets a secret to the body, of at most 64 KiB", Bytes, One("SecretSet")),
    with(
        row("/v1/secrets/{tenant}/{name}", "delete", "Removes a secret that no VPS uses", Nothing, Nothing),
        &[("force", "boolean", "Although a VPS uses it, which can't start any more.")],
    ),
    row(
        "/v1/state",
        "get",
        "The specs of all VPSs; with the header bailiwick-passphrase, in hexadecimal, also all secrets, sealed with it",
        Nothing,
        Document,
    ),
    with(
        row("/v1/state", "put", "Makes such a state so, whole or not at all", Document, One("StateImported")),
        &[("replace", "boolean", "Although there are VPSs or secrets: those of the same name become as it says.")],
    ),
    row("/v1/routes", "get", "Lists routes", Nothing, List("RouteRow")),
    with(
        row("/v1/network/rules", "get", "Lists what the firewall lets VPSs connect to", Nothing, List("FirewallRow")),
        &[("vps", "string", "Only this one's.")],
    ),
    row(
        "/v1/network/test",
        "post",
        "Which rule decides whether a VPS may connect somewhere, and what comes of a true packet",
        One("FirewallTest"),
        One("FirewallTested"),
    ),
    row("/v1/logs/targets", "get", "Lists the targets that logs are shipped to", Nothing, List("LogTargetRow")),
    row("/v1/services", "get", "Lists services", Nothing, List("ServiceRow")),
    with(
        row("/v1/events", "get", "What happened", Nothing, Lines("Event")),
        &[
            ("follow", "boolean", "Go on with what happens."),
            ("since", "string", "From this time on, RFC 3339 in UTC or its beginning; left out: the last 1024 events."),
        ],
    ),
    row("/v1/health", "get", "Whether the service answers", Nothing, One("Health")),
    row("/v1/openapi.json", "get", "This document", Nothing, Document),
];

fn content(body: Body) -> Option<Value> {
    let json = |schema: Value| Some(json!({ "application/json": { "schema": schema } }));
    match body {
        Nothing | Upgrade => None,
        One(name) => json(reference(name)),
        List(name) => json(json!({ "type": "array", "items": reference(name) })),
        Lines(name) => Some(json!({ "application/x-ndjson": { "schema": reference(name) } })),
        Toml => Some(json!({ "text/plain": { "schema": { "type": "string" } } })),
        Tar => Some(json!({ "application/x-tar": { "schema": { "type": "string", "format": "binary" } } })),
        Bytes => Some(json!({ "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } })),
        Document => json(json!({ "type": "object" })),
    }
}

fn answers(path: &Path) -> Value {
    let mut answers = Map::new();
    match (path.answer, content(path.answer)) {
        (Upgrade, _) => {
            let about = "Upgraded to bailiwick-exec: frames of one kind byte (0 stdin, 1 stdout, 2 stderr, 3 exit, 4 size), a \
                         big-endian 32-bit length of at most 65536, and so many bytes. An empty stdin frame closes it; \
                         exit holds the decimal code; size, with a terminal, rows and columns, 16 bits each.";
            answers.insert("101".to_owned(), json!({ "description": about }));
        }
        (_, Some(content)) => {
            answers.insert("200".to_owned(), json!({ "description": "Done.", "content": content }));
        }
        (_, None) => {
            answers.insert("204".to_owned(), json!({ "description": "Done." }));
            if path.path.starts_with("/v1/vps") {
                let about = "Deleted; its processes and files go on going.";
                answers.insert("202".to_owned(), json!({ "description": about }));
            }
        }
    }
    let error = json!({ "application/json": { "schema": reference("ErrorAnswer") } });
    answers.insert("default".to_owned(), json!({ "description": "Not done.", "content": error }));
    Value::Object(answers)
}

fn parameters(path: &Path) -> Vec<Value> {
    let variables = path.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let variables =
        variables.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let query = path.query.iter().map(
        |(name, kind, about)| json!({ "name": name, "in": "query", "description": about, "schema": { "type": kind } }),
    );
    variables.chain(query).collect()
}

/// All paths.
pub fn all() -> Map<String, Value> {
    let mut paths: Map<String, Value> = Map::new();
    for path in PATHS {
        let mut operation = json!({ "summary": path.about, "responses": answers(path) });
        let parameters = parameters(path);
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(content) = content(path.request) {
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        let methods = paths.entry(path.path).or_insert_with(|| json!({}));
        methods[path.method] = operation;
    }
    paths
}
