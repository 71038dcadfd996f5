//! The fields of a spec file.

use crate::{
    Egress, Route, Rule,
    document::{Field, Fields, Kind, Word, words},
    ignore,
    ignore::Pattern,
    image::ImageSource,
    limits::{self, parse_duration_ms},
    run,
    schedule::{Cron, TimeOfDay},
};

/// Ids of one block; a VPS has whole blocks.
pub(super) const BLOCK: i64 = 65_536;

const IMAGE: Word = Word {
    expected: "an image such as \"debian:nginx-light\", \"tar:app.tar.zst\" or \"dir:./rootfs\"",
    pattern: Some("^(debian:([a-z0-9][a-z0-9+.-]+(,[a-z0-9][a-z0-9+.-]+)*)?|(tar|dir):.+)$"),
    check: |text| text.parse::<ImageSource>().map(|_| ()).map_err(|error| error.to_string()),
};
const ROUTE: Word = Word {
    expected: "a route such as \"http://HOST[:PORT][/PREFIX]\", \"tcp://ADDRESS:PORT\" or \"udp://ADDRESS:PORT\"",
    pattern: Some("^(http|tcp|udp)://"),
    check: |text| match text.strip_prefix("https://") {
        Some(_) => Err("`https` routes are not there yet: write \"http://…\"".to_owned()),
        None => text.parse::<Route>().map(|_| ()).map_err(|error| error.to_string()),
    },
};
const ALLOW: Word = Word {
    expected: "a rule such as \"blog -> db:3306\"",
    pattern: Some("^@?[a-z0-9-]+ *-> *@?[a-z0-9-]+:[0-9]+$"),
    check: |text| text.parse::<Rule>().map(|_| ()).map_err(|error| error.to_string()),
};
pub(crate) const EGRESS: Word = Word {
    expected: "a name with its port, or addresses, such as \"deb.debian.org:80\" or \"192.0.2.0/24\"",
    pattern: Some("^((tcp|udp)://)?[]a-z0-9.:*/_[-]+$"),
    check: |text| text.parse::<Egress>().map(|_| ()).map_err(|error| error.to_string()),
};
const VARIABLE: Word = Word {
    expected: "a variable's name",
    pattern: Some("^[^=]+$"),
    check: |text| {
        if text.is_empty() || text.len() > 256 || text.contains(['=', '\0']) {
            return Err("a variable's name is 1 to 256 bytes without `=` and NUL".to_owned());
        }
        Ok(())
    },
};
const USER: Word = Word {
    expected: "a user such as \"www-data\", \"name:group\" or \"1000:1000\"",
    pattern: Some("^[^:]+(:[^:]+)?$"),
    check: |text| {
        let legal = |part: &str| {
            let bytes = |b: u8| b.is_ascii_alphanumeric() || b"_-.$".contains(&b);
            !part.is_empty() && part.len() <= 64 && part.bytes().all(bytes)
        };
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        if legal(user) && group.is_none_or(legal) {
            return Ok(());
        }
        Err("expected a user such as \"www-data\", \"name:group\" or \"1000:1000\"".to_owned())
    },
};
const SIGNAL: Word = Word {
    expected: "a signal such as \"SIGTERM\" or \"SIGQUIT\"",
    pattern: Some("^SIG[A-Z0-9+]+$"),
    check: |text| match run::signal_number(text) {
        Some(_) => Ok(()),
        None => {
            let known: Vec<_> = run::SIGNALS.iter().map(|(name, _)| *name).collect();
            Err(format!("`{text}` is not a signal to stop with; there are {}", known.join(", ")))
        }
    },
};

/// `limits = { … }`, in host.toml too.
pub(crate) static LIMITS: Fields = Fields {
    fields: &[
        Field::new("memory", Kind::Word(words::MEMORY), "Memory at most, page cache included."),
        Field::new("cpu", Kind::Number(0.01, 1024.0), "CPUs at most: 1.5 is one and a half."),
        Field::new("processes", Kind::Integer(1, 4_194_304), "Processes and threads at most."),
        Field::new(
            "disk",
            Kind::Word(words::MEMORY),
            "What it writes outside of its volumes at most, where the file system can count it.",
        ),
    ],
    later: &[("io", "see `bailiwick help apply` for the fields there are")],
    otherwise: &[
        ("cpus", "write: cpu = 1.0"),
        ("mem", "write: memory = \"512MiB\""),
        ("pids", "write: processes = 200"),
    ],
};

/// A TCP port.
const PORT: Kind = Kind::Integer(1, 65_535);
const PATTERN: Word = Word {
    expected: "a pattern such as \"*bot*\"",
    pattern: Some("^[ -~]{1,64}$"),
    check: |text| text.parse::<Pattern>().map(|_| ()).map_err(|error| error.to_string()),
};
const NETWORK: Word = Word {
    expected: "a network or address such as \"203.0.113.0/24\"",
    pattern: Some("^[0-9a-f.:]+(/[0-9]+)?$"),
    check: |text| ignore::parse_network(text).map(|_| ()),
};

static ROUTE_TARGET: Fields = Fields {
    fields: &[
        Field::new("port", PORT, "The port inside.").required(),
        Field::new(
            "client",
            Kind::Choice(&["transparent", "proxy-v1", "proxy-v2", "gateway"]),
            "How the server behind a `tcp://` or `udp://` route learns its client's address: connections come from it, or begin \
             with a header of the PROXY protocol; or it doesn't, and sees the gateway's.",
        )
        .default("\"transparent\""),
    ],
    later: &[],
    otherwise: &[
        ("proxy_protocol", "write: client = \"proxy-v2\", or \"proxy-v1\""),
        ("send-proxy", "write: client = \"proxy-v1\""),
        ("send-proxy-v2", "write: client = \"proxy-v2\""),
        ("transparent", "write: client = \"transparent\""),
    ],
};

static IGNORE: Fields = Fields {
    fields: &[
        Field::new(
            "user_agent",
            Kind::List(&Kind::Word(PATTERN), 32),
            "What they call themselves; `*` stands for any characters, letters count without their case.",
        ),
        Field::new("from", Kind::List(&Kind::Word(NETWORK), 64), "Where they come from."),
    ],
    later: &[],
    otherwise: &[
        ("user-agent", "write: user_agent = [\"*bot*\"]"),
        ("agent", "write: user_agent = [\"*bot*\"]"),
        ("address", "write: from = [\"203.0.113.0/24\"]"),
        ("bots", "write: user_agent = [\"*bot*\"]"),
    ],
};

static IDLE: Fields = Fields {
    fields: &[
        Field::new("after", Kind::Word(words::NONZERO_DURATION), "Time without a connection or request.").required(),
        Field::new("then", Kind::Choice(&["stop", "freeze"]), "What then; a frozen VPS keeps its memory.")
            .default("\"stop\""),
        Field::new(
            "quiet",
            Kind::Word(words::NONZERO_DURATION),
            "Time of silence after which an open connection does not keep it awake any more.",
        )
        .default("a connection keeps it awake, however silent it is"),
        Field::new(
            "busy",
            Kind::List(&Kind::Word(words::TEXT), 256),
            "A command that is run inside before that: exit 0 means busy, and it is asked again later.",
        ),
    ],
    later: &[],
    otherwise: &[],
};

static READY: Fields = Fields {
    fields: &[
        Field::new("listen", Kind::Integer(1, 65_535), "Ready when its program listens on this TCP port."),
        Field::new("notify", Kind::Boolean, "Ready when its program says READY=1 on the notify socket (sd_notify(3))."),
        Field::new(
            "run",
            Kind::List(&Kind::Word(words::TEXT), 64),
            "Ready when this program, run inside after that, exits with 0. It is run again until it does, or the start's \
             deadline is over.",
        ),
        Field::new("interval", Kind::Word(INTERVAL), "Time before `run` is run again; it grows, up to 1s.")
            .default("\"20ms\""),
        Field::new("timeout", Kind::Word(words::NONZERO_DURATION), "Time after which a run of `run` is killed.")
            .default("\"5s\""),
    ],
    later: &[],
    otherwise: &[
        ("port", "write: ready = { listen = PORT }"),
        ("command", "write: ready = { run = [\"program\", \"argument\"] }"),
        ("exec", "write: ready = { run = [\"program\", \"argument\"] }"),
    ],
};

const INTERVAL: Word = Word {
    check: |text| match limits::parse_duration_ms(text) {
        Ok(ms) if ms < 10 => Err(format!("`{text}` is too short: at least \"10ms\"")),
        Ok(ms) if ms > 60_000 => Err(format!("`{text}` is too long: at most \"1m\"")),
        _ => (words::DURATION.check)(text),
    },
    ..words::DURATION
};

static STOP: Fields = Fields {
    fields: &[
        Field::new("signal", Kind::Word(SIGNAL), "The signal that asks its program to end.").default("\"SIGTERM\""),
        Field::new("grace", Kind::Word(words::DURATION), "Time it has before SIGKILL.").default("\"10s\""),
    ],
    later: &[],
    otherwise: &[("timeout", "write: grace = \"10s\"")],
};

const AT: Word = Word {
    expected: "a time of day such as \"03:30\"",
    pattern: Some("^[0-2][0-9]:[0-5][0-9]$"),
    check: |text| text.parse::<TimeOfDay>().map(|_| ()).map_err(|error| error.to_string()),
};
const CRON: Word = Word {
    expected: "a schedule such as \"30 3 * * 1-5\"",
    pattern: Some("^[0-9*,/ -]+$"),
    check: |text| text.parse::<Cron>().map(|_| ()).map_err(|error| error.to_string()),
};
const EVERY: Word = Word {
    check: |text| match parse_duration_ms(text) {
        Ok(ms) if ms < 1000 => Err(format!("`{text}` is too short: at least \"1s\"")),
        _ => (words::DURATION.check)(text),
    },
    ..words::DURATION
};

static JOB: Fields = Fields {
    fields: &[
        Field::new("name", Kind::Word(words::JOB_NAME), "Its name.").default("its program's"),
        Field::new("every", Kind::Word(EVERY), "It runs so often."),
        Field::new("at", Kind::Word(AT), "It runs each day at this time, UTC."),
        Field::new("schedule", Kind::Word(CRON), "It runs when these five fields of crontab(5) say, UTC."),
        Field::new("run", Kind::List(&Kind::Word(words::TEXT), 256), "Program and arguments.").required(),
        Field::new("user", Kind::Word(USER), "Who it runs as.").default("the VPS's user"),
        Field::new("timeout", Kind::Word(words::NONZERO_DURATION), "It is killed after so long.").default("\"1h\""),
    ],
    later: &[],
    otherwise: &[
        ("command", "write: run = [\"program\", \"argument\"]"),
        ("cron", "write: schedule = \"30 3 * * 1-5\""),
        ("interval", "write: every = \"15m\""),
    ],
};

static VOLUME: Fields = Fields {
    fields: &[Field::new(
        "size",
        Kind::Word(words::MEMORY),
        "Bytes it holds at most, where the file system can count them.",
    )],
    later: &[("backup", "back up what `bailiwick volume export` gives")],
    otherwise: &[("path", "write: volumes = { NAME = \"/path\" } in [vps.NAME]")],
};

const OWNER: Word = Word {
    expected: "ids such as \"33:33\"",
    pattern: Some("^[0-9]+(:[0-9]+)?$"),
    check: |text| {
        super::directories::owner(text)
            .map(|_| ())
            .ok_or_else(|| format!("`{text}` is not a user's and a group's id such as \"33:33\""))
    },
};

static DIRECTORY: Fields = Fields {
    fields: &[
        Field::new("path", Kind::Word(words::PATH), "Where it is seen.").required(),
        Field::new("write", Kind::Boolean, "Whether its programs may write there.").default("false"),
        Field::new(
            "owner",
            Kind::Word(OWNER),
            "Who inside owns what the directory's owner and group on the host own: user's and group's id.",
        )
        .default("\"0:0\", root"),
    ],
    later: &[],
    otherwise: &[
        ("readonly", "leave it out: nothing can be written without write = true"),
        ("read_only", "leave it out: nothing can be written without write = true"),
        ("user", "write: owner = \"33:33\""),
        ("target", "write: path = \"/path\""),
    ],
};

const LOG_FILES: Word = Word {
    expected: "a file or pattern such as \"/var/log/nginx/*.log\"",
    pattern: Some("^/.*[^/]$"),
    check: |text| {
        (words::PATH.check)(text)?;
        let parts: Vec<_> = text[1..].split('/').collect();
        let kernels = ["dev", "proc", "sys"];
        match text {
            _ if text.len() > 1024 || parts.len() > 16 => {
                Err("a pattern has 1024 bytes and 16 parts at most".to_owned())
            }
            _ if text.ends_with('/') => Err(format!("`{text}` is a directory: write \"{text}*.log\"")),
            _ if text.contains("**") => Err("`**` is not there: `*` stands for characters of one name".to_owned()),
            _ if parts.iter().any(|part| part.is_empty() || *part == ".") => {
                Err(format!("`{text}` must not hold `//` or `/./`"))
            }
            _ if kernels.contains(&parts[0]) => Err(format!("`{text}` is below /{}, which is the kernel's", parts[0])),
            _ => Ok(()),
        }
    },
};

static VPS: Fields = Fields {
    fields: &[
        Field::new("image", Kind::Word(IMAGE), "Where its root filesystem comes from.").required(),
        Field::new("command", Kind::List(&Kind::Word(words::TEXT), 256), "Program and arguments.").required(),
        Field::new("cwd", Kind::Word(words::PATH), "Working directory.").default("\"/\""),
        Field::new("user", Kind::Word(USER), "Who the program runs as.").default("\"root\""),
        Field::new("hostname", Kind::Word(words::VPS_NAME), "Host name inside.").default("the VPS's name"),
        Field::new("env", Kind::Map(VARIABLE, &Kind::Word(words::TEXT), 256), "Environment of the program."),
        Field::new(
            "env_file",
            Kind::Word(words::TEXT),
            "A file beside this one with more of it, KEY=VALUE a line; `env` wins. Read at each apply; `get` prints the result.",
        ),
        Field::new(
            "files",
            Kind::Map(words::PATH, &Kind::Word(words::CONTENT), 256),
            "Small files written before the program starts: path to content, 64 KiB each and 128 KiB together.",
        ),
        Field::new(
            "logs",
            Kind::List(&Kind::Word(LOG_FILES), 32),
            "Files inside whose new lines are part of its log; `*` and `?` stand for characters of a name. Links are not followed.",
        ),
        Field::new(
            "volumes",
            Kind::Map(words::VOLUME_NAME, &Kind::Word(words::PATH), 32),
            "Directories that outlive it: volume to path. On its first use a volume gets what the image has there.",
        ),
        Field::new(
            "directories",
            Kind::Map(words::DIRECTORY_NAME, &Kind::Either(&[Kind::Word(words::PATH), Kind::Table(&DIRECTORY)]), 32),
            "Directories of the host's, as [directory.NAME] of its host.toml allows: name to path. Read-only where not \
             `write = true`.",
        ),
        Field::new(
            "secrets",
            Kind::Map(words::SECRET_NAME, &Kind::Word(words::PATH), 32),
            "Secrets as files that only its user can read: secret to path. `bailiwick secret set TENANT/NAME` sets one.",
        ),
        Field::new(
            "routes",
            Kind::Map(ROUTE, &Kind::Either(&[PORT, Kind::Table(&ROUTE_TARGET)]), 64),
            "What leads to it, and to which port inside. Left is outside, right is inside.",
        ),
        Field::new(
            "ignore",
            Kind::Table(&IGNORE),
            "Clients that are served while it is up, but neither wake it nor keep it awake.",
        ),
        Field::new(
            "wants",
            Kind::List(&Kind::Word(words::VPS_NAME), 32),
            "VPSs of its tenant's that are woken together with it, rather than by its first connection to them.",
        ),
        Field::new(
            "egress",
            Kind::List(&Kind::Word(EGRESS), 64),
            "What of the outside it may connect to: names with a port (\"deb.debian.org:80\", \"*.example.org:443\"), addresses \
             (\"udp://192.0.2.53:53\", \"192.0.2.0/24\"), or everybody at a port (\"*:25\"). Names that are not in it are not looked \
             up outside; addresses need no name.",
        )
        .default("all that its tenant may"),
        Field::new(
            "labels",
            Kind::List(&Kind::Word(words::LABEL_NAME), 16),
            "What it has in common with others of its tenant's: rules in `allow` name them together, as @LABEL.",
        ),
        Field::new("limits", Kind::Table(&LIMITS), "What it may use at most."),
        Field::new("ids", Kind::Integer(BLOCK, 64 * BLOCK), "User and group ids it has, a multiple of 65536.")
            .default("65536"),
        Field::new(
            "idle",
            Kind::Either(&[Kind::Choice(&["never"]), Kind::Table(&IDLE)]),
            "What happens when nobody uses it.",
        )
        .default("{ after = \"10m\", then = \"stop\" }, and \"never\" where no route, no job and no rule of its file wakes it"),
        Field::new(
            "job",
            Kind::List(&Kind::Table(&JOB), 32),
            "Programs that are run inside at certain times; each wakes it, and keeps it awake while it runs.",
        ),
        Field::new(
            "restart",
            Kind::Choice(&["on-failure", "always", "never"]),
            "What happens when its program ends by itself.",
        )
        .default("\"on-failure\""),
        Field::new("ready", Kind::Table(&READY), "When it counts as ready.")
            .default("it listens on the port of its first route, else on the lowest that `allow` names for it; without either, at once"),
        Field::new("start_deadline", Kind::Word(words::NONZERO_DURATION), "Time a start may take until ready.")
            .default("\"30s\""),
        Field::new("stop", Kind::Table(&STOP), "How it is asked to end."),
        Field::new("setuid", Kind::Boolean, "Whether setuid bits and file capabilities work inside.").default("true"),
        Field::new("nesting", Kind::Boolean, "Whether a VPS may run inside.").default("false"),
    ],
    later: &[
        ("class", "every VPS is isolated by namespaces"),
    ],
    otherwise: &[
        ("tenant", "write it at the top of the file, before the first [vps.NAME]"),
        ("allow", "write it at the top of the file, before the first [vps.NAME]"),
        ("cmd", "write: command = [\"program\", \"argument\"]"),
        ("entrypoint", "write: command = [\"program\", \"argument\"]"),
        ("run", "write: command = [\"program\", \"argument\"]"),
        ("args", "write: command = [\"program\", \"argument\"]"),
        ("environment", "write: env = { NAME = \"value\" }"),
        ("ports", "write: routes = { \"tcp://*:8080\" = 80 }"),
        ("port", "write: routes = { \"tcp://*:8080\" = 80 }"),
        ("workdir", "write: cwd = \"/path\""),
        ("working_dir", "write: cwd = \"/path\""),
        ("timeout", "write: start_deadline = \"30s\""),
        ("log", "write: logs = [\"/var/log/nginx/*.log\"]"),
        ("log_files", "write: logs = [\"/var/log/nginx/*.log\"]"),
        ("jobs", "write [[vps.NAME.job]] and its fields under it"),
        ("schedule", "write it in [[vps.NAME.job]], with run = [\"program\", \"argument\"]"),
        ("binds", "write: directories = { NAME = \"/path\" }; host.toml says which there are"),
        ("mounts", "write: directories = { NAME = \"/path\" }; host.toml says which there are"),
        ("depends_on", "leave it out: a connection wakes what it needs; or write: wants = [\"VPS\"]"),
        ("requires", "write: wants = [\"VPS\"]"),
        ("after", "leave it out: a connection wakes what it needs; or write: wants = [\"VPS\"]"),
    ],
};

/// A whole spec file.
pub(super) static FILE: Fields = Fields {
    fields: &[
        Field::new("tenant", Kind::Word(words::TENANT_NAME), "Whose VPSs these are.").required(),
        Field::new("vps", Kind::Map(words::VPS_NAME, &Kind::Table(&VPS), 256), "The VPSs by name.").required(),
        Field::new(
            "allow",
            Kind::List(&Kind::Word(ALLOW), 256),
            "Which VPSs of the tenant may connect to which, and to which port: \"blog -> db:3306\", or \"@web -> db:3306\" for all that \
             have a label. No others can. One of the two is in this file.",
        ),
        Field::new("volume", Kind::Map(words::VOLUME_NAME, &Kind::Table(&VOLUME), 256), "About volumes, by name."),
    ],
    later: &[],
    otherwise: &[("secrets", "write secrets = { NAME = \"/path\" } in [vps.NAME]")],
};
