//! Who is whose, and who may reach whom, as `control` said last. Kept in a file that is replaced as a whole, so that a new
//! process need not wait to be told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
};

use model::{Egress, TenantName, VpsName, run::Link};
use serde::{Deserialize, Serialize};
use wire::network::{self, Neighbours};

use crate::{
    addresses::{self, AddressBook, AddressError},
    firewall::Element,
};

/// What `control` said.
#[derive(Debug)]
pub struct Said {
    path: PathBuf,
    said: Kept,
    /// What is being said, until it is complete.
    coming: Kept,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    tenants: BTreeMap<TenantName, Vec<VpsName>>,
    allow: Vec<(VpsName, VpsName, u16)>,
    #[serde(default)]
    egress: BTreeMap<VpsName, Vec<Egress>>,
}

impl Said {
    /// Reads what was said to an earlier process; nothing when there was none. What can't be read is as good as nothing: it
    /// will be said again, and until then nobody may reach anybody.
    pub fn open(path: PathBuf) -> Self {
        let read = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let said = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "who may reach whom is not known until control says it again");
            }
            Kept::default()
        });
        Self { path, said, coming: Kept::default() }
    }

    /// Takes a part of what is said. With the last one that counts, and is remembered; false: it is what counted before.
    pub fn hear(&mut self, Neighbours { first, last, said }: Neighbours) -> Result<bool, AddressError> {
        if first {
            self.coming = Kept::default();
        }
        for one in said {
            match one {
                network::Said::Vps(tenant, vps) => self.coming.tenants.entry(tenant).or_default().push(vps),
                network::Said::Allow(from, to, port) => self.coming.allow.push((from, to, port)),
                network::Said::Bounds(vps, only) => self.coming.egress.entry(vps).or_default().extend(only),
            }
        }
        if !last {
            return Ok(false);
        }
        let new = std::mem::take(&mut self.coming);
        if self.said == new {
            return Ok(false);
        }
        addresses::replace_file(&self.path, &new)?;
        self.said = new;
        Ok(true)
    }

    /// Whether a rule is about that VPS.
    pub fn is_about(&self, name: &VpsName) -> bool {
        self.said.egress.contains_key(name) || self.said.allow.iter().any(|(from, to, _)| from == name || to == name)
    }

    /// What lets those reach each other who may, as far as they have addresses and belong together.
    pub fn elements(&self, book: &AddressBook) -> BTreeSet<Element> {
        let owners = self.owners();
        let mut elements = BTreeSet::new();
        for (from, to, port) in &self.said.allow {
            let same = owners.get(from).is_some_and(|owner| owners.get(to) == Some(owner));
            let (Some(from), Some(to), true) = (book.link_of(from), book.link_of(to), same) else { continue };
            for (from, to) in [(from.address.into(), to.address.into()), (from.address6.into(), to.address6.into())] {
                elements.extend([Element::Pair(from, to), Element::Allowed(from, to, *port)]);
            }
        }
        elements
    }

    /// What of the outside alone VPSs may connect to, by their addresses.
    pub fn bounds(&self, book: &AddressBook) -> BTreeMap<Ipv4Addr, Vec<Egress>> {
        let each = self.said.egress.iter();
        each.filter_map(|(name, only)| Some((book.link_of(name)?.address, only.clone()))).collect()
    }

    fn owners(&self) -> HashMap<&VpsName, &TenantName> {
        let each = self.said.tenants.iter().flat_map(|(tenant, vps)| vps.iter().map(move |vps| (vps, tenant)));
        each.collect()
    }

    /// Whom each VPS finds by which name.
    pub fn names(&self, book: &AddressBook) -> Names {
        let owners = self.owners();
        let mut names = Names::default();
        for (vps, link) in book.links() {
            if let Some(tenant) = owners.get(&vps) {
                names.by_address.insert(link.address, (*tenant).clone());
                if let Some(only) = self.said.egress.get(&vps) {
                    names.bounds.insert(link.address, only.as_slice().into());
                }
                names.tenants.entry((*tenant).clone()).or_default().insert(vps, link);
            }
        }
        names
    }
}

/// Names within tenants.
#[derive(Debug, Default)]
pub struct Names {
    by_address: HashMap<Ipv4Addr, TenantName>,
    tenants: HashMap<TenantName, HashMap<VpsName, Link>>,
    bounds: HashMap<Ipv4Addr, Arc<[Egress]>>,
}

impl Names {
    /// Whose the VPS at `asker` is; none: nobody's.
    pub fn tenant_of(&self, asker: Ipv4Addr) -> Option<&TenantName> {
        self.by_address.get(&asker)
    }

    /// What of the outside alone the VPS at `asker` may connect to; none: all.
    pub fn bounds_of(&self, asker: Ipv4Addr) -> Option<Arc<[Egress]>> {
        self.bounds.get(&asker).cloned()
    }

    /// What the VPS at `asker` finds; none: it is no tenant's.
    pub fn of(&self, asker: Ipv4Addr) -> Option<&HashMap<VpsName, Link>> {
        self.tenants.get(self.by_address.get(&asker)?)
    }
}
