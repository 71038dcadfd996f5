//! The bodies, one table per type.

use serde_json::{Map, Value, json};

/// What a field holds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Int,
    Bool,
    Type(&'static str),
    Texts,
    List(&'static str),
    Ints,
    Strings,
    Ports,
}
use Kind::{Bool, Int, Ints, List, Ports, Strings, Text, Texts, Type};

/// Whether a field is always there, may be left out, or may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    Default,
    Nullable,
}
use Need::{Always, Default, Nullable};

type Field = (&'static str, Kind, Need, &'static str);

const TYPES: &[(&str, &str, &[Field])] = &[
    (
        "SpecFile",
        "One spec file.",
        &[
            ("name", Text, Always, "Its name, for messages."),
            ("text", Text, Always, "Its content, TOML."),
            ("env_files", Strings, Default, "What the env_files hold that it names, by their paths as written there."),
            ("images", Strings, Default, "Images of the archives and directories it names, as they are written there."),
        ],
    ),
    (
        "ApplyRequest",
        "Spec files to be applied together: all or nothing.",
        &[
            ("files", List("SpecFile"), Always, "1 to 256 files."),
            ("dry_run", Bool, Default, "Only say what would change."),
            ("take_routes", Bool, Default, "Take routes from the VPSs that have them."),
        ],
    ),
    (
        "FieldChange",
        "One field that changes.",
        &[
            ("field", Text, Always, "Its name, such as limits.memory."),
            ("old", Text, Nullable, "Before, as TOML; null: it was not there."),
            ("new", Text, Nullable, "After, as TOML; null: it is gone."),
        ],
    ),
    (
        "Change",
        "What happens to one VPS.",
        &[
            ("vps", Text, Always, "Which VPS."),
            ("kind", Type("ChangeKind"), Always, ""),
            ("fields", List("FieldChange"), Default, "The fields that change."),
            ("at_next_start", Bool, Default, "Whether a running VPS keeps its old spec until its next start."),
            ("secrets", Texts, Default, "Secrets set since it was started; it has them at its next start."),
        ],
    ),
    (
        "ApplyAnswer",
        "What changed, or would change.",
        &[
            ("changes", List("Change"), Always, "One per VPS, those that stay the same too."),
            ("missing_images", Texts, Default, "Images that are not there (only in a dry run): build them first."),
            ("warnings", Texts, Default, "What is not as the files may lead one to expect."),
        ],
    ),
    (
        "Problem",
        "One thing that is wrong in a file.",
        &[
            ("file", Text, Always, "File name as it was sent."),
            ("line", Int, Always, "Line, from 1; 0: the file as a whole."),
            ("column", Int, Always, "Column in characters, from 1."),
            ("width", Int, Always, "How many characters are wrong."),
            ("text", Text, Always, "The line's text."),
            ("message", Text, Always, "What is wrong."),
            ("hint", Text, Nullable, "What to write or do instead."),
        ],
    ),
    (
        "ErrorAnswer",
        "Every answer that is no success.",
        &[
            ("message", Text, Always, "What was wrong."),
            ("next", Text, Nullable, "What to do next."),
            ("problems", List("Problem"), Default, "Problems in files that were sent."),
            ("kind", Type("ErrorKind"), Always, ""),
        ],
    ),
    (
        "LastWake",
        "How a VPS was woken.",
        &[
            ("took_ms", Int, Nullable, "Milliseconds from the wake to ready."),
            ("by", Text, Always, "What woke it."),
            ("at_ms", Int, Always, "Unix time in milliseconds."),
        ],
    ),
    (
        "VpsRow",
        "One VPS.",
        &[
            ("name", Text, Always, ""),
            ("tenant", Text, Nullable, "Whose it is; null: a designated VPS."),
            ("state", Type("State"), Always, ""),
            ("for_ms", Int, Always, "Milliseconds in that state."),
            ("routes", Ports, Always, "What leads to it, and the port inside."),
            ("internal", Ints, Default, "The ports that neighbours may connect to."),
            ("memory", Int, Nullable, "Bytes of memory in use; null: asleep."),
            ("memory_limit", Int, Nullable, "Limit of memory in bytes."),
            ("processes", Int, Nullable, "Processes and threads inside."),
            ("address", Text, Nullable, "Its address."),
            ("pid", Int, Nullable, "First process as the host numbers it."),
            ("prepared", Bool, Default, "Whether it sleeps with all but its program in place."),
            ("last_wake", Type("LastWake"), Nullable, "Its last wake."),
            ("failure", Text, Nullable, "What is wrong, when it failed."),
            ("note", Text, Nullable, "What else to know: a job that fails, what it waits for."),
            ("services", Texts, Default, "The services it runs, when it is a designated VPS."),
            ("spec", Text, Default, "The stored spec as TOML, only in GET /v1/vps/{name}."),
        ],
    ),
    (
        "Event",
        "One thing that happened.",
        &[
            ("at_ms", Int, Always, "Unix time in milliseconds."),
            ("vps", Text, Nullable, "Which VPS; null: the host."),
            ("what", Text, Always, "A word, such as waking, ready, idle, failed."),
            ("detail", Text, Always, "More, for a person."),
            ("actor", Text, Always, "Who or what caused it."),
        ],
    ),
    (
        "Ignored",
        "How clients were served that a spec ignores, since the gateway was started: requests, or connections of tcp:// routes.",
        &[
            ("served", Int, Always, "By the VPS, which was up."),
            ("from_cache", Int, Always, "With its last answer, while it was not."),
            ("refused", Int, Always, "With a 503, or closed."),
        ],
    ),
    (
        "Story",
        "The last start, stop and failure of a VPS; null: there was none.",
        &[
            ("start", Type("Start"), Nullable, "The last start that came to be ready, or the last thaw."),
            ("stop", Type("Stop"), Nullable, "When it was last made to sleep or to stand still."),
            (
                "failure",
                Type("Failure"),
                Nullable,
                "The last start that came to nothing, or run that ended as it should not.",
            ),
        ],
    ),
    (
        "Start",
        "A start that came to be ready, or a thaw.",
        &[
            ("at_ms", Int, Always, "When it was asked for, Unix time in milliseconds."),
            ("by", Text, Always, "Who or what asked, such as GET / from 203.0.113.9."),
            ("took_ms", Int, Always, "Milliseconds until it was ready."),
            ("thawed", Bool, Always, "Whether it stood still until then."),
            ("steps", List("Step"), Default, "What was done, in the order of time."),
            ("waits", List("Wait"), Default, "What it waited for besides."),
        ],
    ),
    (
        "Step",
        "Something that was done for a start.",
        &[
            ("what", Text, Always, "What, such as: program executed."),
            ("after_us", Int, Always, "Microseconds since the start was asked for."),
        ],
    ),
    (
        "Wait",
        "Something that a start waited for.",
        &[
            ("on", Text, Always, "What: memory, or the name of a neighbour that it woke."),
            ("took_ms", Int, Always, "How long, in milliseconds."),
            ("detail", Text, Always, "More, for a person."),
        ],
    ),
    (
        "Stop",
        "When a VPS was made to sleep or to stand still.",
        &[
            ("at_ms", Int, Always, "When that was done, Unix time in milliseconds."),
            ("took_ms", Int, Always, "Milliseconds that it took."),
            ("frozen", Bool, Always, "Whether it stands still instead of having ended."),
            ("why", Text, Always, "Why, and by whom where it was somebody, such as: stop by root."),
            ("ended", Text, Nullable, "How its program ended, such as: exit 0."),
        ],
    ),
    (
        "Failure",
        "A start that came to nothing, or a run that ended as it should not.",
        &[
            ("at_ms", Int, Always, "When, Unix time in milliseconds."),
            ("what", Text, Always, "What, in one line, such as: exit 1."),
            ("exit", Int, Nullable, "Its exit status, if it had one."),
            ("signal", Int, Nullable, "The signal that ended it, if one did."),
            ("oom", Bool, Default, "Whether the memory limit had one of its processes killed."),
            ("began_ms", Int, Nullable, "When that start was asked for, Unix time in milliseconds."),
            ("by", Text, Default, "Who or what had asked for it."),
            ("steps", List("Step"), Default, "How far it came."),
            ("log", Texts, Default, "The last lines of its log of that run."),
        ],
    ),
    (
        "Why",
        "Why a VPS is as it is.",
        &[
            ("vps", Type("VpsRow"), Always, ""),
            ("summary", Text, Always, "One sentence."),
            ("ignored", Type("Ignored"), Default, "Clients it was not woken for, where there were some."),
            ("last", Type("Story"), Default, "Its last start, stop and failure."),
            ("story", List("Event"), Always, "What happened lately, oldest first."),
            ("log", Texts, Always, "The last lines of its log."),
            ("next", Text, Nullable, "What to do next."),
        ],
    ),
    (
        "ImageRow",
        "One image.",
        &[
            ("reference", Text, Always, "Such as debian:nginx-light."),
            ("layers", Texts, Always, "Ids of its layers, the base first."),
            ("size", Int, Always, "Bytes of all its layers."),
            ("own_size", Int, Always, "Bytes of layers that no other image has."),
            ("built", Int, Always, "Unix time of the build in seconds."),
            ("used_by", Texts, Always, "The VPSs that use it."),
        ],
    ),
    (
        "BuildRequest",
        "An image to be built.",
        &[
            ("image", Text, Always, "Such as debian:nginx-light."),
            ("refresh", Bool, Default, "Build again although it is there."),
            ("keep", Bool, Default, "Do not prune it for half a minute after: an apply that names it comes."),
        ],
    ),
    ("PruneRequest", "What to remove.", &[("dry_run", Bool, Default, "Only say what would be removed.")]),
    (
        "PruneAnswer",
        "What was removed.",
        &[
            ("images", Texts, Always, "Images that no spec names."),
            ("layers", Texts, Always, "Ids of layers that nothing uses."),
        ],
    ),
    (
        "VerifyAnswer",
        "Whether an image is whole.",
        &[
            ("image", Text, Always, "Which."),
            ("damaged", Strings, Always, "Ids of damaged layers, and what is wrong with each."),
            ("others", Texts, Always, "The other images that have one of these layers."),
            ("next", Text, Nullable, "What mends it."),
        ],
    ),
    (
        "BuildProgress",
        "A build goes on.",
        &[
            ("step", Text, Always, "What is being done."),
            ("done", Int, Always, "How much of the step is done, of total."),
            ("total", Int, Always, "0 when it is not known."),
        ],
    ),
    (
        "RouteRow",
        "One route.",
        &[
            ("route", Text, Always, "Such as http://blog.example.org."),
            ("vps", Text, Always, "Where it leads."),
            ("port", Int, Always, "The port inside."),
            ("listen", Text, Always, "The address listened on."),
            ("fault", Text, Nullable, "Why that address is not being listened on."),
            ("from", Texts, Default, "The only VPSs it is for, where it is internal."),
        ],
    ),
    (
        "FirewallRow",
        "One thing that the firewall lets a VPS connect to, or kept it from.",
        &[
            ("vps", Text, Always, "Who connects."),
            ("kind", Type("FirewallKind"), Always, "What the row is."),
            ("to", Text, Always, "To whom: db:3306, deb.debian.org:80, 192.0.2.7:25."),
            ("name", Text, Nullable, "The name for whose sake an address is open."),
            ("packets", Int, Nullable, "Packets in both directions; of what was refused, those that came."),
            ("bytes", Int, Nullable, "Bytes of those."),
            ("left_ms", Int, Nullable, "For how long it stays so, in milliseconds."),
        ],
    ),
    (
        "FirewallTest",
        "A connection that is asked about.",
        &[
            ("vps", Text, Always, "Who would connect."),
            ("to", Text, Always, "To whom: db:3306, deb.debian.org:80, udp://192.0.2.53:53."),
        ],
    ),
    (
        "FirewallTested",
        "What the firewall says of it.",
        &[
            ("allowed", Bool, Always, "Whether a rule lets it."),
            ("rule", Text, Always, "Which one decides, and where it stands."),
            ("address", Text, Nullable, "The address that was tried."),
            ("sent", Text, Nullable, "What came of a true packet; null: it was not sent."),
            ("reached", Bool, Nullable, "Whether that found somebody; of datagrams: nobody sent it back."),
        ],
    ),
    (
        "VolumeMoved",
        "What an import has moved.",
        &[
            ("entries", Int, Always, "Files, directories, links and pipes."),
            ("bytes", Int, Always, "Bytes of files, holes left out."),
            ("left_out", Int, Always, "Devices and sockets that were left out."),
            ("changed", Int, Always, "Files that changed while they were read."),
        ],
    ),
    (
        "VolumeRow",
        "One volume.",
        &[
            ("tenant", Text, Always, "Whose it is."),
            ("name", Text, Always, "Its name."),
            ("size", Int, Nullable, "Bytes it may hold at most, as a spec says it."),
            ("used", Int, Nullable, "Bytes in it; null: they are not counted, and the size is not enforced."),
            ("used_by", Strings, Always, "The VPSs whose specs use it, and where they see it."),
        ],
    ),
    (
        "SecretRow",
        "One secret; what it says is never answered.",
        &[
            ("tenant", Text, Always, "Whose it is."),
            ("name", Text, Always, "Its name."),
            ("set_ms", Int, Always, "When it was set, Unix time in milliseconds."),
            ("used_by", Strings, Always, "The VPSs whose specs use it, and where they see it."),
        ],
    ),
    (
        "SecretSet",
        "A secret was set.",
        &[
            ("replaced", Bool, Always, "Whether there was one before."),
            ("at_next_start", Texts, Always, "VPSs that are up and use it: they have it at their next start."),
        ],
    ),
    (
        "Imported",
        "A VPS was imported.",
        &[
            ("vps", Text, Always, "What it is called here."),
            ("tenant", Text, Always, "Whose it is here."),
            ("volumes", Strings, Always, "Its volumes: as they were called, and as they are here."),
            ("image", Text, Always, "What its image is called here."),
            ("other_image", Bool, Always, "Whether its image here is another build than the one it was exported with."),
            ("left_out", Texts, Always, "Rules about VPSs that the tenant does not have here; they were left out."),
        ],
    ),
    (
        "StateImported",
        "A state was imported.",
        &[
            ("vps", Texts, Always, "VPSs that are new, or changed."),
            ("secrets", Int, Always, "How many secrets were set."),
            ("missing_images", Texts, Always, "Images that they need and this host does not have."),
            (
                "readdressed",
                Texts,
                Always,
                "VPSs that have another address than before: theirs is another's here, or not of its subnet.",
            ),
        ],
    ),
    (
        "JobRow",
        "A program that is run inside a VPS at certain times.",
        &[
            ("vps", Text, Always, "Where."),
            ("job", Text, Always, "Its name."),
            ("when", Text, Always, "Such as every 15m."),
            ("run", Texts, Always, "Program and arguments."),
            ("next_ms", Int, Nullable, "When it runs next, Unix time in milliseconds."),
            ("running", Bool, Always, "Whether it runs now."),
            ("failures", Int, Always, "How often in a row it has failed."),
            ("last", Type("JobRun"), Nullable, "Its last run."),
        ],
    ),
    (
        "JobRun",
        "One run of a job that has ended.",
        &[
            ("at_ms", Int, Always, "When it began, Unix time in milliseconds."),
            ("took_ms", Int, Always, "How long it took."),
            ("result", Text, Always, "How it ended, or why it could not be run."),
            ("status", Int, Nullable, "Its exit status; null: it could not be run, or was killed."),
            ("output", Text, Always, "The end of what it wrote."),
            ("by", Text, Always, "Who asked for it."),
        ],
    ),
    (
        "ServiceRow",
        "One service.",
        &[
            ("service", Text, Always, "Such as gateway."),
            ("vps", Text, Always, "The designated VPS that runs it."),
            ("state", Type("State"), Always, ""),
            ("starts", Int, Always, "How often that VPS has been started since the host was."),
            ("grants", Texts, Always, "What it may ask of the host."),
            ("memory", Int, Nullable, "Bytes of memory in use."),
            ("pid", Int, Nullable, "First process as the host numbers it."),
        ],
    ),
    (
        "LogTargetRow",
        "A target that logs are shipped to.",
        &[
            ("target", Text, Always, "As host.toml has it."),
            ("away", Text, Nullable, "Why it takes no lines now; null: it does."),
            ("since_ms", Int, Always, "Since when that is so, Unix time in milliseconds."),
            ("sent", Int, Always, "Lines that were sent since the service was started."),
            ("waiting", Int, Always, "Bytes that wait in logs."),
            ("lost", Int, Always, "Lines that were lost, ever: their log was rotated away before they could be sent."),
            ("gaps", Int, Always, "How often lines were lost of which nobody knows the number."),
            ("lost_ms", Int, Nullable, "When lines were lost last, Unix time in milliseconds."),
        ],
    ),
    (
        "ExecRequest",
        "A program to be run inside.",
        &[
            ("command", Texts, Always, "Program and arguments."),
            ("env", Strings, Default, "More environment."),
            ("user", Text, Nullable, "Who it runs as; null: root."),
            ("cwd", Text, Nullable, "Working directory; null: /."),
            ("terminal", Type("WindowSize"), Nullable, "A terminal of this size; all output is stdout then."),
        ],
    ),
    (
        "WindowSize",
        "Size of a terminal.",
        &[("rows", Int, Always, "Lines."), ("columns", Int, Always, "Characters in a line.")],
    ),
    (
        "LogLine",
        "One line of a log.",
        &[
            ("at", Text, Always, "RFC 3339, UTC, microseconds."),
            (
                "stream",
                Text,
                Always,
                "out or err of the program, log for /dev/log, file for a file of `logs`, vps for what its shim says.",
            ),
            ("file", Text, Nullable, "Which file."),
            ("facility", Text, Nullable, "Of a message of /dev/log, as syslog(3) calls it."),
            ("severity", Text, Nullable, "Of a message of /dev/log, as syslog(3) calls it."),
            ("tag", Text, Nullable, "What the program of such a message calls itself."),
            ("pid", Int, Nullable, "The process that such a message names."),
            ("text", Text, Always, "The line without its end, and without what the other fields hold."),
        ],
    ),
    (
        "Health",
        "That the service answers.",
        &[
            ("ok", Bool, Always, "Always true."),
            ("version", Text, Always, "Version of the service."),
            ("vps", Int, Always, "How many VPSs are defined."),
            ("faults", Texts, Always, "What of host.toml is not in force, and why."),
        ],
    ),
];

const WORDS: &[(&str, &str, &[&str])] = &[
    ("ChangeKind", "What happens to a VPS.", &["create", "change", "none"]),
    (
        "FirewallKind",
        "A rule between VPSs, one about the outside, an address that a name has at the moment, or what was refused in the last hour.",
        &["allow", "egress", "opened", "refused"],
    ),
    ("State", "What a VPS can be.", &["asleep", "starting", "running", "frozen", "stopping", "failed", "waiting"]),
    (
        "ErrorKind",
        "Decides the exit status of the CLI, 1 to 7 in this order.",
        &["failed", "invalid", "not-found", "conflict", "denied", "unavailable", "lacking"],
    ),
];

/// A reference to a schema.
pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn kind(kind: Kind) -> Value {
    match kind {
        Text => json!({ "type": "string" }),
        Int => json!({ "type": "integer" }),
        Bool => json!({ "type": "boolean" }),
        Type(name) => reference(name),
        Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Ints => json!({ "type": "array", "items": { "type": "integer" } }),
        List(name) => json!({ "type": "array", "items": reference(name) }),
        Strings => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Ports => json!({ "type": "object", "additionalProperties": { "type": "integer" } }),
    }
}

fn field(of: Kind, need: Need, about: &str) -> Value {
    let mut schema = kind(of);
    if need == Nullable {
        schema = json!({ "oneOf": [schema, { "type": "null" }] });
    }
    if !about.is_empty() {
        schema["description"] = about.into();
    }
    schema
}

/// All schemas by name.
pub fn all() -> Map<String, Value> {
    let mut schemas = Map::new();
    for (name, about, fields) in TYPES {
        let properties: Map<_, _> =
            fields.iter().map(|(name, of, need, about)| ((*name).to_owned(), field(*of, *need, about))).collect();
        let required: Vec<_> = fields.iter().filter(|(_, _, need, _)| *need == Always).map(|(name, ..)| name).collect();
        let schema = json!({ "type": "object", "description": about, "properties": properties, "required": required });
        schemas.insert((*name).to_owned(), schema);
    }
    for (name, about, words) in WORDS {
        schemas.insert((*name).to_owned(), json!({ "type": "string", "description": about, "enum": words }));
    }
    schemas.insert(
        "BuildLine".to_owned(),
        json!({
            "description": "One line of a build: progress, then done or failed.",
            "type": "object",
            "properties": {
                "progress": reference("BuildProgress"),
                "done": reference("ImageRow"),
                "failed": reference("ErrorAnswer"),
            },
            "minProperties": 1,
            "maxProperties": 1,
        }),
    );
    schemas
}
