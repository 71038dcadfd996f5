//! Grants: what a designated VPS may ask of the host.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ListenAddress, TenantName, VpsName};

/// One thing that may be asked of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    Create,
    Start,
    Stop,
    Freeze,
    Delete,
    /// See all states and follow events.
    Watch,
    /// Read logs.
    Logs,
    /// Run a program inside.
    Exec,
    /// Ask `control` for a start.
    Wake,
    /// Have sockets bound on the host's addresses.
    Listen,
    /// The layer store, writable.
    Layer,
    /// A connection to another service.
    Connect,
    /// Write to the targets of `logs.ship`.
    Ship,
}

/// All verbs with the words for them.
pub const VERBS: [(&str, Verb); 13] = [
    ("create", Verb::Create),
    ("start", Verb::Start),
    ("stop", Verb::Stop),
    ("freeze", Verb::Freeze),
    ("delete", Verb::Delete),
    ("watch", Verb::Watch),
    ("logs", Verb::Logs),
    ("exec", Verb::Exec),
    ("wake", Verb::Wake),
    ("listen", Verb::Listen),
    ("layer", Verb::Layer),
    ("connect", Verb::Connect),
    ("ship", Verb::Ship),
];

/// Which VPSs, ports or services a grant is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `*`
    All,
    /// `tenant=acme`
    Tenant(TenantName),
    /// `blog`
    Vps(VpsName),
    /// `80,443` or `1-65535`: inclusive ranges of ports, for `listen`.
    Ports(Vec<(u16, u16)>),
    /// `control,network`, for `connect`.
    Services(Vec<String>),
}

/// Verbs × a selector: `create,start : *`, `listen : 80,443`, `connect : control`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grant {
    /// What may be done.
    pub verbs: Vec<Verb>,
    /// To whom.
    pub selector: Selector,
}

/// Why a text is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// No colon.
    #[error("grant `{0}` lacks a `:` between verbs and selector, as in \"start,stop : *\"")]
    NoSelector(String),
    /// A verb that is not there.
    #[error(
        "grant verb `{0}` is not known; there are create, start, stop, freeze, delete, watch, logs, exec, wake, listen, layer, connect, ship"
    )]
    UnknownVerb(String),
    /// A selector that means nothing for these verbs.
    #[error("grant selector `{0}` does not fit its verbs")]
    IllegalSelector(String),
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let (verbs, selector) = text.split_once(':').ok_or_else(|| GrantError::NoSelector(text.to_owned()))?;
        let verb = |word: &str| {
            let word = word.trim();
            let found = VERBS.iter().find(|(name, _)| *name == word);
            found.map(|(_, verb)| *verb).ok_or_else(|| GrantError::UnknownVerb(word.to_owned()))
        };
        let verbs = verbs.split(',').map(verb).collect::<Result<Vec<_>, _>>()?;
        let selector = parse_selector(&verbs, selector.trim())?;
        Ok(Self { verbs, selector })
    }
}

fn parse_selector(verbs: &[Verb], text: &str) -> Result<Selector, GrantError> {
    let illegal = || GrantError::IllegalSelector(text.to_owned());
    if text == "*" {
        return Ok(Selector::All);
    }
    if verbs == [Verb::Listen] {
        let port = |p: &str| p.trim().parse::<u16>().map_err(|_| illegal());
        let range = |part: &str| match part.split_once('-') {
            Some((first, last)) => Ok((port(first)?, port(last)?)),
            None => port(part).map(|p| (p, p)),
        };
        return Ok(Selector::Ports(text.split(',').map(range).collect::<Result<_, _>>()?));
    }
    if verbs == [Verb::Connect] {
        return Ok(Selector::Services(text.split(',').map(|s| s.trim().to_owned()).collect()));
    }
    if let Some(tenant) = text.strip_prefix("tenant=") {
        return tenant.parse().map(Selector::Tenant).map_err(|_| illegal());
    }
    text.parse().map(Selector::Vps).map_err(|_| illegal())
}

impl Grant {
    /// Whether `verb` on a VPS of `tenant` is granted; designated VPSs have no tenant, and only `*` or their name fits.
    pub fn allows(&self, verb: Verb, vps: &VpsName, tenant: Option<&TenantName>) -> bool {
        self.verbs.contains(&verb)
            && match &self.selector {
                Selector::All => true,
                Selector::Tenant(granted) => tenant == Some(granted),
                Selector::Vps(granted) => vps == granted,
                Selector::Ports(_) | Selector::Services(_) => false,
            }
    }

    /// Whether a socket may be bound at `address`.
    pub fn allows_listen(&self, address: &ListenAddress) -> bool {
        self.verbs.contains(&Verb::Listen)
            && match &self.selector {
                Selector::All => true,
                Selector::Ports(ranges) => ranges.iter().any(|(a, b)| (*a..=*b).contains(&address.port())),
                _ => false,
            }
    }

    /// Whether a connection to `service` may be made.
    pub fn allows_connect(&self, service: &str) -> bool {
        self.verbs.contains(&Verb::Connect)
            && match &self.selector {
                Selector::All => true,
                Selector::Services(list) => list.iter().any(|s| s == service),
                _ => false,
            }
    }

    /// Whether `verb` is granted at all, for verbs that are about no VPS (`layer`).
    pub fn allows_any(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

impl TryFrom<String> for Grant {
    type Error = GrantError;
    fn try_from(text: String) -> Result<Self, GrantError> {
        text.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> String {
        grant.to_string()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |verb: &Verb| VERBS.iter().find(|(_, v)| v == verb).map_or("", |(name, _)| *name);
        let verbs: Vec<_> = self.verbs.iter().map(word).collect();
        write!(f, "{} : ", verbs.join(","))?;
        match &self.selector {
            Selector::All => f.write_str("*"),
            Selector::Tenant(tenant) => write!(f, "tenant={tenant}"),
            Selector::Vps(name) => write!(f, "{name}"),
            Selector::Services(list) => f.write_str(&list.join(",")),
            Selector::Ports(ranges) => {
                let show = |(a, b): &(u16, u16)| if a == b { a.to_string() } else { format!("{a}-{b}") };
                f.write_str(&ranges.iter().map(show).collect::<Vec<_>>().join(","))
            }
        }
    }
}
