//! The firewall: one nftables table, in which rules are few and fixed, and look in sets who may do what. A change is a change of
//! elements, in one transaction.
//!
//! `prerouting` gives packets the marks that [`policy`](crate::policy)'s rules go by, and drops those whose source is not their
//! sender's. IPv4 leaves that to `rp_filter`, which IPv6 has not.

mod element;
mod table;

use std::{collections::BTreeSet, io, net::Ipv4Addr, sync::Arc, time::Duration};

use rustix::net::AddressFamily;
use tokio::sync::Mutex;

pub use element::UDP;
pub use element::{About, Count, Element, Set};
pub use table::Chain;

use crate::{
    nfnetlink::{self, DUMP, Kind, REQUEST, Socket, attribute, find, message, nested},
    nft::{self, NftError},
    policy::{Layout, low_of},
};

/// The table of all that this service has nftables do.
pub const TABLE: &str = "bailiwick";

// linux/netfilter/nfnetlink.h: subsystem 10 is nftables
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
// linux/netfilter/nf_tables.h
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const CREATE: u16 = 0x400;
/// Elements of a change that are read back one by one.
const FEW: usize = 64;
/// Bytes of elements in one message at most: their attribute's length has 16 bits.
const MESSAGE: usize = 60_000;

/// Why a change is not in force; what was in force before is.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The table can't be made.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The kernel does not tell what there is.
    #[error("reading the firewall's set {0}: {1}")]
    Read(&'static str, #[source] io::Error),
    /// It refused a change.
    #[error("changing the firewall's set {0}: {1}")]
    Change(&'static str, #[source] io::Error),
    /// No socket.
    #[error("a socket for the firewall: {0}")]
    Socket(#[source] io::Error),
    /// What is there is not what was said.
    #[error("the firewall's sets are not what they were made: {0}")]
    Differs(String),
}

/// What is in force.
#[derive(Debug, Clone)]
pub struct Firewall {
    /// What the sets hold. Held while the kernel is being told.
    there: Arc<Mutex<BTreeSet<Element>>>,
}

impl FirewallError {
    /// Whether something that was to be taken away is not there.
    pub fn is_not_there(&self) -> bool {
        matches!(self, Self::Change(_, error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()))
    }
}

impl Firewall {
    /// Makes the table, unless it is there: its rules are exchanged in one transaction, its sets keep what an earlier process
    /// put into them.
    pub async fn prepare(layout: &Layout) -> Result<Self, FirewallError> {
        nft::apply(&table::ruleset(layout)).await?;
        let there = blocking(|| read().map(|all| all.into_iter().map(|(element, _)| element).collect())).await?;
        Ok(Self { there: Arc::new(Mutex::new(there)) })
    }

    /// Has the sets hold, of the elements from `first` to `last`, just those of `wanted`.
    pub async fn set(&self, (first, last): (Element, Element), wanted: BTreeSet<Element>) -> Result<(), FirewallError> {
        let mut there = self.there.clone().lock_owned().await;
        // Whoever asked may be gone: what is begun is finished, and known.
        blocking(move || {
            let less: Vec<_> = there.range(first..=last).filter(|element| !wanted.contains(element)).copied().collect();
            let more: Vec<_> = wanted.into_iter().filter(|element| !there.contains(element)).collect();
            if less.is_empty() && more.is_empty() {
                return Ok(());
            }
            let changed = change(&less, more.iter().map(|element| (*element, element.encode())));
            let changed = changed.and_then(|()| compare(&less, &more));
            match &changed {
                Ok(()) => {
                    for element in less {
                        there.remove(&element);
                    }
                    there.extend(more);
                }
                // Of a change that takes several transactions some may be in force.
                Err(_) => *there = read()?.into_iter().map(|(element, _)| element).collect(),
            }
            changed
        })
        .await
    }

    /// Takes away what VPSs are shown of which `keep` does not hold.
    pub async fn sweep(&self, keep: impl Fn(Ipv4Addr) -> bool) -> Result<(), FirewallError> {
        let gone: BTreeSet<_> = {
            let there = self.there.lock().await;
            let shown = there.iter().filter_map(|element| match element {
                Element::Shown(vps, ..) => Some(*vps),
                _ => None,
            });
            shown.filter(|vps| !keep(low_of(*vps))).collect()
        };
        for vps in gone {
            self.set(Element::shown_of(vps), BTreeSet::new()).await?;
        }
        Ok(())
    }

    /// What a set of both families holds.
    pub async fn list(&self, set: Set) -> Result<Vec<(Element, About)>, FirewallError> {
        blocking(move || {
            let both = [false, true].map(|ipv6| list(set, ipv6));
            both.into_iter().collect::<Result<Vec<_>, _>>().map(|all| all.concat())
        })
        .await
    }

    /// Takes away and puts in what is there for a time: for how long, and for which name's sake.
    pub async fn for_a_time(
        &self,
        less: Vec<Element>,
        more: Vec<(Element, Duration, String)>,
    ) -> Result<(), FirewallError> {
        blocking(move || {
            change(&less, more.iter().map(|(element, time, name)| (*element, element.encode_for(*time, name))))
        })
        .await
    }
}

/// Compares what the kernel has of a change with what it was told.
fn compare(less: &[Element], more: &[Element]) -> Result<(), FirewallError> {
    let differs = |one: &Element| FirewallError::Differs(format!("{one:?}"));
    // Of much the whole is read faster.
    if less.len() + more.len() > FEW {
        let there: BTreeSet<_> = read()?.into_iter().map(|(element, _)| element).collect();
        let wrong = less.iter().find(|one| there.contains(one)).or(more.iter().find(|one| !there.contains(one)));
        return wrong.map_or(Ok(()), |one| Err(differs(one)));
    }
    for (elements, expected) in [(less, false), (more, true)] {
        for element in elements {
            if has(element)? != expected {
                return Err(differs(element));
            }
        }
    }
    Ok(())
}

/// Whether the kernel has an element.
fn has(element: &Element) -> Result<bool, FirewallError> {
    let (set, ipv6) = element.set();
    let name = set.name(ipv6);
    let socket = Socket::open().map_err(FirewallError::Socket)?;
    let body = [of_set(name), nested(LIST_ELEMENTS, &element.encode())].concat();
    let asked = socket.send(&message(kind(GET_ELEMENTS, REQUEST | nfnetlink::ACK, 1), &body));
    match asked.and_then(|()| socket.answers(|_| {})) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => Ok(false),
        Err(error) => Err(FirewallError::Read(name, error)),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FirewallError> + Send + 'static,
) -> Result<T, FirewallError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(FirewallError::Socket(error.into())))
}

/// All elements of all sets.
fn read() -> Result<Vec<(Element, About)>, FirewallError> {
    let mut all = Vec::new();
    for set in Set::KEPT {
        for ipv6 in [false, true] {
            all.extend(list(set, ipv6)?);
        }
    }
    Ok(all)
}

fn list(set: Set, ipv6: bool) -> Result<Vec<(Element, About)>, FirewallError> {
    let name = set.name(ipv6);
    let failed = |error| FirewallError::Read(name, error);
    let socket = Socket::open().map_err(FirewallError::Socket)?;
    socket.send(&message(kind(GET_ELEMENTS, REQUEST | DUMP, 1), &of_set(name))).map_err(failed)?;
    let mut all = Vec::new();
    socket
        .answers(|body| {
            if let Some(elements) = find(body, LIST_ELEMENTS) {
                all.extend(Element::decode(elements, set, ipv6));
            }
        })
        .map_err(failed)?;
    Ok(all)
}

fn of_set(name: &str) -> Vec<u8> {
    let text = |kind, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
    [text(LIST_TABLE, TABLE), text(LIST_SET, name)].concat()
}

fn kind(kind: u16, flags: u16, sequence: u32) -> Kind {
    // NFPROTO_INET, which is no address family: it has the number of AF_UNIX.
    Kind { kind, flags, family: AddressFamily::UNIX, resource: 0, sequence }
}

/// Takes `less` away and puts `more` in: in one transaction, as far as the kernel takes so much at once; else what is taken away comes
/// first.
fn change(less: &[Element], more: impl Iterator<Item = (Element, Vec<u8>)>) -> Result<(), FirewallError> {
    let mut messages = Vec::new();
    let less = less.iter().map(|element| (*element, element.encode())).collect::<Vec<_>>();
    for (kind_of, elements) in [(DELETE_ELEMENTS, less), (NEW_ELEMENTS, more.collect())] {
        for of_one in elements.chunk_by(|(one, _), (next, _)| one.set() == next.set()) {
            let (set, ipv6) = of_one[0].0.set();
            let mut list = Vec::new();
            for (n, (_, encoded)) in of_one.iter().enumerate() {
                list.extend(encoded);
                if list.len() > MESSAGE || n + 1 == of_one.len() {
                    let name = set.name(ipv6);
                    let body = [of_set(name), nested(LIST_ELEMENTS, &std::mem::take(&mut list))].concat();
                    messages.push((kind_of, name, body));
                }
            }
        }
    }
    let socket = Socket::open().map_err(FirewallError::Socket)?;
    let most = socket.most().map_err(FirewallError::Socket)?;
    let mut rest = messages.as_slice();
    while !rest.is_empty() {
        let mut size = 0;
        let fits = rest.iter().take_while(|(.., body)| {
            size += body.len() + 64;
            size < most
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        transact(&socket, now)?;
        rest = later;
    }
    Ok(())
}

fn transact(socket: &Socket, messages: &[(u16, &'static str, Vec<u8>)]) -> Result<(), FirewallError> {
    let batch = |kind, sequence| {
        let flags = REQUEST;
        message(Kind { kind, flags, family: AddressFamily::UNSPEC, resource: SUBSYSTEM, sequence }, &[])
    };
    let last = messages.len() as u32;
    let mut bytes = batch(BATCH_BEGIN, 0);
    for (sequence, (kind_of, _, body)) in (1..).zip(messages) {
        let create = if *kind_of == NEW_ELEMENTS { CREATE } else { 0 };
        let ack = if sequence == last { nfnetlink::ACK } else { 0 };
        bytes.extend(message(kind(*kind_of, REQUEST | create | ack, sequence), body));
    }
    bytes.extend(batch(BATCH_END, last + 1));
    let name = messages[0].1;
    socket.send(&bytes).map_err(|error| FirewallError::Change(name, error))?;
    let refused = socket.carried_out(0, last).map_err(|error| FirewallError::Change(name, error))?;
    refused.map_err(|(sequence, error)| {
        let at = (sequence as usize).checked_sub(1).and_then(|n| messages.get(n));
        FirewallError::Change(at.map_or(name, |(_, name, _)| name), error)
    })
}
