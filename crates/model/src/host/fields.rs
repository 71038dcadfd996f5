//! The fields of host.toml.

use super::LogTarget;
use crate::{
    Grant, Selector,
    document::{Field, Fields, Kind, Word, words},
    spec::fields::{EGRESS, LIMITS},
};

/// The services there are.
pub const SERVICES: [&str; 5] = ["apps", "control", "gateway", "logs", "network"];
/// The one that only runs where logs are shipped.
pub(super) const SHIPPER: &str = "logs";

fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| error.to_string())
}

const PER_CENT: Word = Word {
    expected: "a part such as \"5%\"",
    pattern: Some("^[0-9]{1,2}%$"),
    check: |text| match super::per_cent(text) {
        Some(_) => Ok(()),
        None => Err(format!("`{text}` is not a part such as \"5%\", from 0% to 99%")),
    },
};
const SHARE: Word = Word {
    expected: "a size such as \"32MiB\", or a part such as \"1%\"",
    pattern: Some("^([0-9]+(B|KiB|MiB|GiB|TiB)|[0-9]{1,2}%)$"),
    check: |text| match super::Share::parse(text) {
        Ok(super::Share::PerCent(_)) => Ok(()),
        Ok(super::Share::Bytes(_)) => (words::BYTES.check)(text),
        Err(_) => Err(format!("`{text}` is neither a size such as \"32MiB\" nor a part such as \"1%\"")),
    },
};
const INTERFACE: Word = Word {
    expected: "a network interface such as \"eth0\"",
    pattern: Some("^[^/ ]{1,15}$"),
    check: |text| {
        let legal = |b: u8| b.is_ascii_graphic() && !b"/:\"\\".contains(&b);
        if (1..=15).contains(&text.len()) && text.bytes().all(legal) && text != "." && text != ".." {
            return Ok(());
        }
        Err("expected a network interface's name such as \"eth0\", of 1 to 15 characters".to_owned())
    },
};
const SUBNET: Word = Word {
    expected: "an IPv4 network such as \"10.80.0.0/16\"",
    pattern: Some("^[0-9.]+/[0-9]+$"),
    check: |text| match text.parse::<ipnet::Ipv4Net>() {
        Ok(net) if net != net.trunc() => Err(format!("`{text}` has bits beyond its prefix: write \"{}\"", net.trunc())),
        Ok(net) if !(8..=27).contains(&net.prefix_len()) => {
            Err(format!("`{text}` has the wrong size: a prefix from /8 to /27"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{text}` is not an IPv4 network such as \"10.80.0.0/16\"")),
    },
};
const SUBNET6: Word = Word {
    expected: "an IPv6 network such as \"fd80:ba11::/96\"",
    pattern: Some("^[0-9a-fA-F:.]+/[0-9]+$"),
    check: |text| match text.parse::<ipnet::Ipv6Net>() {
        Ok(net) if net != net.trunc() => Err(format!("`{text}` has bits beyond its prefix: write \"{}\"", net.trunc())),
        Ok(net) if net.prefix_len() > 96 => Err(format!("`{text}` is too small: a prefix of at most /96")),
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{text}` is not an IPv6 network such as \"fd80:ba11::/96\"")),
    },
};
const OWNED: Word = Word {
    expected: "a network or an address such as \"192.0.2.16/28\"",
    pattern: Some("^[0-9a-fA-F:.]+(/[0-9]+)?$"),
    check: |text| match super::owned(text) {
        Some(net) if net != net.trunc() => {
            Err(format!("`{text}` has bits beyond its prefix: write \"{}\"", net.trunc()))
        }
        Some(net) if super::is_special(net) => {
            Err(format!("`{text}` is nothing that clients could be at the other end of"))
        }
        Some(_) => Ok(()),
        None => Err(format!("`{text}` is not a network or an address such as \"192.0.2.16/28\"")),
    },
};
const RESOLVER: Word = Word {
    expected: "an address such as \"9.9.9.9\"",
    pattern: Some("^[0-9a-fA-F:.]+$"),
    check: |text| {
        text.parse::<std::net::IpAddr>()
            .map(|_| ())
            .map_err(|_| format!("`{text}` is not an address such as \"9.9.9.9\""))
    },
};
const GRANT: Word = Word {
    expected: "a grant such as \"start,stop : *\"",
    pattern: Some("^[a-z, ]+:.+$"),
    check: |text| match text.parse::<Grant>() {
        Ok(Grant { selector: Selector::Services(services), .. }) => {
            services.iter().try_for_each(|s| (SERVICE.check)(s))
        }
        other => told(other),
    },
};
const SERVICE: Word = Word {
    expected: "a service: apps, control, gateway, logs or network",
    pattern: Some("^(apps|control|gateway|logs|network)$"),
    check: |text| match SERVICES.contains(&text) {
        true => Ok(()),
        false => Err(format!("`{text}` is not a service; there are {}", SERVICES.join(", "))),
    },
};
const CGROUP: Word = Word {
    expected: "a cgroup's name beginning with \"bailiwick\"",
    pattern: Some("^bailiwick[a-z0-9-]*$"),
    check: |text| {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.starts_with("bailiwick") && text.len() <= 63 && text.bytes().all(legal) {
            return Ok(());
        }
        Err(format!("`{text}` is not a cgroup's name of a-z, 0-9 and `-` that begins with \"bailiwick\""))
    },
};

const PROGRAM: Word = Word {
    expected: "a program's name such as \"nft\"",
    pattern: Some("^[A-Za-z0-9][A-Za-z0-9._+-]{0,62}$"),
    check: |text| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && text.len() <= 63 && text.bytes().all(legal) {
            return Ok(());
        }
        Err(format!("`{text}` is not a program's name such as \"nft\", without its directory"))
    },
};

static RESERVE: Fields = Fields {
    fields: &[
        Field::new("memory", Kind::Word(words::MEMORY), "Memory that VPSs never get.").default("\"256MiB\""),
        Field::new("disk", Kind::Word(PER_CENT), "Part of the disk that VPSs never get.").default("\"5%\""),
    ],
    later: &[],
    otherwise: &[],
};

static POOL: Fields = Fields {
    fields: &[Field::new(
        "memory",
        Kind::Word(SHARE),
        "Memory they may take together, or the part of the machine's; \"0B\" for none.",
    )
    .default("\"1%\"")],
    later: &[],
    otherwise: &[("size", "write: memory = \"32MiB\"")],
};

const TARGET: Word = Word {
    expected: "a target such as \"syslog+tcp://HOST:PORT\", \"journald\" or \"json:/PATH\"",
    pattern: Some("^(journald(:.+)?|(syslog|json)(\\+(tcp|udp|unix))?:.+)$"),
    check: |text| told(text.parse::<LogTarget>()),
};

static LOGS: Fields = Fields {
    fields: &[Field::new(
        "ship",
        Kind::List(&Kind::Word(TARGET), 8),
        "Where all lines are sent: syslog (RFC 5424) over TCP, UDP or a unix socket, journald, or JSON lines.",
    )
    .default("[]")],
    later: &[],
    otherwise: &[
        ("syslog", "write: ship = [\"syslog+tcp://HOST:PORT\"]"),
        ("journald", "write: ship = [\"journald\"]"),
        ("target", "write: ship = [\"syslog+tcp://HOST:PORT\"]"),
    ],
};

static IMAGES: Fields = Fields {
    fields: &[
        Field::new("size", Kind::Word(words::MEMORY), "Bytes, unpacked.").default("\"16GiB\""),
        Field::new("files", Kind::Integer(1, 100_000_000), "Files, directories and links.").default("1000000"),
    ],
    later: &[],
    otherwise: &[],
};

static NETWORK: Fields = Fields {
    fields: &[
        Field::new(
            "uplink",
            Kind::Word(INTERFACE),
            "The host's interface through which VPSs reach the outside, masqueraded.",
        )
        .default("none, they don't"),
        Field::new(
            "addresses",
            Kind::List(&Kind::Word(OWNED), 64),
            "Networks and addresses that are routed to this host for VPSs alone: routes to them go past the host, and past the \
             gateway while the VPS is up. Needs an uplink.",
        )
        .default("[]"),
        Field::new("subnet", Kind::Word(SUBNET), "VPSs' IPv4 addresses; the first 16 are the designated VPSs'.")
            .default("\"10.80.0.0/16\""),
        Field::new("subnet6", Kind::Word(SUBNET6), "VPSs' IPv6 addresses.").default("\"fd80:ba11::/96\""),
        Field::new(
            "resolvers",
            Kind::List(&Kind::Word(RESOLVER), 3),
            "Name servers that names of the outside are asked of, through the uplink.",
        )
        .default("[]"),
        Field::new(
            "egress",
            Kind::List(&Kind::Word(EGRESS), 256),
            "What of the outside VPSs may connect to at most, where [tenant.NAME] does not say otherwise. A spec's own `egress` has to \
             be within it.",
        )
        .default("everybody"),
    ],
    later: &[],
    otherwise: &[("interface", "write: uplink = \"eth0\""), ("dns", "write: resolvers = [\"9.9.9.9\"]")],
};

static IDS: Fields = Fields {
    fields: &[
        Field::new("first", Kind::Integer(65_536, u32::MAX as i64), "First id of the first block of 65536 ids.")
            .default("1048576"),
        Field::new("blocks", Kind::Integer(16, 65_000), "Blocks of 65536 ids; a VPS has one or more.").default("30000"),
        Field::new(
            "shims",
            Kind::Integer(1000, u32::MAX as i64),
            "First uid of those that shims run as, one per block.",
        )
        .default("600000"),
    ],
    later: &[],
    otherwise: &[],
};

static DESIGNATED: Fields = Fields {
    fields: &[
        Field::new("services", Kind::List(&Kind::Word(SERVICE), 5), "The services it runs.").required(),
        Field::new("grants", Kind::List(&Kind::Word(GRANT), 64), "What it may ask of the host.").default("[]"),
        Field::new("limits", Kind::Table(&LIMITS), "What it may use at most."),
        Field::new("class", Kind::Choice(&["native"]), "How it is isolated.").default("\"native\""),
        Field::new("network", Kind::Choice(&["link", "host", "none"]), "Which network it has.")
            .default("\"link\", and \"none\" for the one that runs `network`"),
        Field::new("userland", Kind::Boolean, "Whether it sees the host's programs, read-only.").default("false"),
        Field::new(
            "programs",
            Kind::List(&Kind::Word(PROGRAM), 16),
            "Single programs of the host's that it sees, read-only, with their libraries.",
        )
        .default("[]"),
    ],
    later: &[],
    otherwise: &[],
};

const TENANT: Word = Word {
    expected: "a tenant's name, or \"*\"",
    pattern: Some("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|\\*)$"),
    check: |text| if text == "*" { Ok(()) } else { (words::TENANT_NAME.check)(text) },
};

const SHOWN: Word = Word {
    check: |text| match (words::PATH.check)(text) {
        Ok(()) if text.trim_end_matches('/').is_empty() => Err("`/` cannot be shown to VPSs".to_owned()),
        checked => checked,
    },
    ..words::PATH
};

static DIRECTORY: Fields = Fields {
    fields: &[
        Field::new("path", Kind::Word(SHOWN), "Where it is. No part of it may be a symbolic link.").required(),
        Field::new("tenants", Kind::List(&Kind::Word(TENANT), 256), "Whose VPSs may see it; \"*\": everybody's.")
            .required(),
        Field::new("write", Kind::Boolean, "Whether VPSs may write there.").default("false"),
        Field::new("programs", Kind::Boolean, "Whether VPSs may run programs from there.").default("true"),
        Field::new(
            "root",
            Kind::Boolean,
            "Whether VPSs may write there although it belongs to the host's root: their files are root's then.",
        )
        .default("false"),
    ],
    later: &[],
    otherwise: &[
        ("tenant", "write: tenants = [\"acme\"]"),
        ("noexec", "write: programs = false"),
        ("readonly", "leave it out: VPSs can't write without write = true"),
        ("read_only", "leave it out: VPSs can't write without write = true"),
    ],
};

static OF_TENANT: Fields = Fields {
    fields: &[Field::new(
        "egress",
        Kind::List(&Kind::Word(EGRESS), 256),
        "What of the outside its VPSs may connect to at most: \"deb.debian.org:80\", \"*.example.org:443\", \"192.0.2.0/24\", \"*:25\".",
    )
    .default("what network.egress says")],
    later: &[],
    otherwise: &[("allow", "the tenant writes it into its spec file"), ("limits", "each VPS has its own, in its spec")],
};

/// All of host.toml.
pub(super) static FILE: Fields = Fields {
    fields: &[
        Field::new("reserve", Kind::Table(&RESERVE), "What VPSs never get."),
        Field::new("pool", Kind::Table(&POOL), "VPSs that are prepared for their next start."),
        Field::new("network", Kind::Table(&NETWORK), "Addresses of VPSs."),
        Field::new("ids", Kind::Table(&IDS), "Ids of VPSs on the host."),
        Field::new("cgroup", Kind::Word(CGROUP), "Name of this host's cgroup.").default("\"bailiwick\""),
        Field::new("layers", Kind::Word(words::PATH), "Where image layers are.").default("`layers` beside the VPSs"),
        Field::new("logs", Kind::Table(&LOGS), "What becomes of VPSs' logs besides."),
        Field::new("images", Kind::Table(&IMAGES), "What an archive that is sent as an image may hold."),
        Field::new(
            "directory",
            Kind::Map(words::DIRECTORY_NAME, &Kind::Table(&DIRECTORY), 64),
            "Directories of the host's that specs may name; there are no others.",
        ),
        Field::new(
            "tenant",
            Kind::Map(words::TENANT_NAME, &Kind::Table(&OF_TENANT), 10_000),
            "What holds for one tenant alone.",
        ),
        Field::new(
            "designated",
            Kind::Map(words::VPS_NAME, &Kind::Table(&DESIGNATED), 14),
            "The designated VPSs; each service runs in one of them.",
        )
        .default("one for each service"),
    ],
    later: &[],
    otherwise: &[],
};
