//! Which address is whose. Kept in a file that is replaced as a whole, so that it is the one before or the one after.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use model::{VpsName, run::Link};
use serde::{Deserialize, Serialize};

/// Why no address was given or taken back.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// All are given out.
    #[error(
        "no address is left in {subnet}: all {given} are given out; delete a VPS, or choose a larger network.subnet in host.toml"
    )]
    Exhausted {
        /// Where.
        subnet: Ipv4Net,
        /// How many are.
        given: usize,
    },
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file's content is not what this service wrote.
    #[error("{path} is damaged: {source}")]
    Damaged {
        /// Which.
        path: String,
        /// Where.
        source: serde_json::Error,
    },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    given: BTreeMap<VpsName, Ipv4Addr>,
    /// Given back, the longest ago first: used again only when no fresh one is left, since peers may still remember
    /// whose they were.
    released: VecDeque<Ipv4Addr>,
}

/// The addresses of all VPSs that are not designated.
#[derive(Debug)]
pub struct AddressBook {
    path: PathBuf,
    subnet: Ipv4Net,
    prefix6: Ipv6Addr,
    first: u32,
    book: Book,
    /// All that are given out, released or reserved, and below which number none is missing among them.
    used: BTreeSet<Ipv4Addr>,
    fresh: u32,
    /// Whether the book is not what the file is.
    unwritten: bool,
    /// Held for spares; not on disk, since spares end with the host.
    reserved: BTreeSet<Ipv4Addr>,
}

impl AddressBook {
    /// Reads the book at `path`, an empty one when there is none. The first `reserved` addresses of the subnet are not
    /// given out.
    pub fn open(path: &Path, subnet: Ipv4Net, prefix6: Ipv6Addr, reserved: u32) -> Result<Self, AddressError> {
        let book = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| AddressError::Damaged { path: path.display().to_string(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(source) => return Err(AddressError::File { path: path.display().to_string(), source }),
        };
        let first = u32::from(subnet.network()) + reserved;
        let (path, reserved, used) = (path.to_owned(), BTreeSet::new(), BTreeSet::new());
        let mut this = Self { path, subnet, prefix6, first, book, used, fresh: first, unwritten: false, reserved };
        this.forget_foreign();
        this.used = this.book.given.values().chain(&this.book.released).copied().collect();
        Ok(this)
    }

    /// Addresses of another subnet (the operator changed it) are not given out any more.
    fn forget_foreign(&mut self) {
        let mut book = std::mem::take(&mut self.book);
        book.given.retain(|_, address| self.is_ours(*address));
        book.released.retain(|address| self.is_ours(*address));
        self.book = book;
    }

    #[cfg(test)]
    fn allocate(&mut self, name: &VpsName, reserved: Option<Ipv4Addr>) -> Result<Link, AddressError> {
        let link = self.give(name, reserved, None)?;
        self.keep(name)?;
        Ok(link)
    }

    /// The link of `name`: the one it has, or the one that is reserved for it, or the one that is wanted and nobody's, or the
    /// lowest address that was never used, or the one released longest ago. `keep` puts it on disk, together with what else
    /// was given out meanwhile.
    pub fn give(
        &mut self,
        name: &VpsName,
        reserved: Option<Ipv4Addr>,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Link, AddressError> {
        if let Some(address) = self.book.given.get(name).copied() {
            if let Some(reserved) = reserved {
                self.unreserve(Some(reserved));
            }
            return Ok(self.link(address));
        }
        let reserved = reserved.filter(|address| self.reserved.remove(address));
        let address = match reserved.or_else(|| wanted.filter(|address| self.take(*address))) {
            Some(address) => address,
            None => self.free()?,
        };
        self.book.given.insert(name.clone(), address);
        self.unwritten = true;
        Ok(self.link(address))
    }

    /// Has what was given to `name` on disk; takes it back where that can't be done.
    pub fn keep(&mut self, name: &VpsName) -> Result<(), AddressError> {
        if !self.unwritten {
            return Ok(());
        }
        let written = replace_file(&self.path, &self.book);
        match written {
            Ok(()) => self.unwritten = false,
            Err(_) => self.book.released.extend(self.book.given.remove(name)),
        }
        written
    }

    /// A link that is nobody's yet.
    pub fn reserve(&mut self) -> Result<Link, AddressError> {
        let address = self.free()?;
        self.reserved.insert(address);
        Ok(self.link(address))
    }

    /// Gives a reserved address back, or all of them.
    pub fn unreserve(&mut self, address: Option<Ipv4Addr>) {
        let back: Vec<_> = self.reserved.iter().filter(|a| address.is_none_or(|b| **a == b)).copied().collect();
        self.reserved.retain(|address| !back.contains(address));
        // Used again as late as those that had an owner; never written, so after a restart they are fresh.
        self.book.released.extend(back);
    }

    /// Takes an address that may be given out and is nobody's.
    fn take(&mut self, address: Ipv4Addr) -> bool {
        if let Some(at) = self.book.released.iter().position(|released| *released == address) {
            self.book.released.remove(at);
            return true;
        }
        self.is_ours(address) && self.used.insert(address)
    }

    fn is_ours(&self, address: Ipv4Addr) -> bool {
        (self.first..u32::from(self.subnet.broadcast())).contains(&u32::from(address))
    }

    fn free(&mut self) -> Result<Ipv4Addr, AddressError> {
        let end = u32::from(self.subnet.broadcast());
        while self.fresh < end {
            let address = Ipv4Addr::from(self.fresh);
            self.fresh += 1;
            if self.used.insert(address) {
                return Ok(address);
            }
        }
        let given = self.book.given.len();
        self.book.released.pop_front().ok_or(AddressError::Exhausted { subnet: self.subnet, given })
    }

    /// Takes the address of `name` back; nothing when it has none.
    pub fn release(&mut self, name: &VpsName) -> Result<(), AddressError> {
        let Some(address) = self.book.given.remove(name) else { return Ok(()) };
        self.book.released.push_back(address);
        let written = replace_file(&self.path, &self.book);
        match written {
            Ok(()) => self.unwritten = false,
            Err(_) => {
                self.book.released.pop_back();
                self.book.given.insert(name.clone(), address);
            }
        }
        written
    }

    /// The link of `name`, when it has one.
    pub fn link_of(&self, name: &VpsName) -> Option<Link> {
        self.book.given.get(name).map(|address| self.link(*address))
    }

    /// All that are given out.
    pub fn links(&self) -> Vec<(VpsName, Link)> {
        self.book.given.iter().map(|(name, address)| (name.clone(), self.link(*address))).collect()
    }

    fn link(&self, address: Ipv4Addr) -> Link {
        Link::new(address, Link::address6_for(self.prefix6, address))
    }
}

/// Replaces a file as a whole.
pub fn replace_file(path: &Path, content: &impl Serialize) -> Result<(), AddressError> {
    let written = || {
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(|source| AddressError::File { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VpsName {
        text.parse().expect("a name")
    }

    fn open(directory: &tempfile::TempDir, subnet: &str) -> AddressBook {
        let subnet = subnet.parse().expect("a subnet");
        let prefix6 = "fd00:ba11::".parse().expect("a prefix");
        AddressBook::open(&directory.path().join("addresses.json"), subnet, prefix6, 16).expect("a book")
    }

    fn octet(link: Result<Link, AddressError>) -> u8 {
        link.expect("an address").address.octets()[3]
    }

    #[test]
    fn what_is_reserved_is_given_to_who_names_it_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(&directory, "10.80.0.0/27");
        let spare = book.reserve().expect("an address").address;
        let other = book.allocate(&name("a"), None).expect("an address").address;
        assert_ne!(other, spare);
        assert_eq!(book.allocate(&name("b"), Some(spare)).expect("an address").address, spare);
        // Its owner keeps it, and nobody else gets it by naming it.
        assert_ne!(book.allocate(&name("c"), Some(spare)).expect("an address").address, spare);
        let spare = book.reserve().expect("an address").address;
        book.unreserve(None);
        assert_ne!(book.allocate(&name("d"), Some(spare)).expect("an address").address, spare, "it rests first");
    }

    #[test]
    fn the_lowest_fresh_address_first_and_kept_by_name_over_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(&directory, "10.80.0.0/24");
        assert_eq!(octet(book.allocate(&name("a"), None)), 16);
        assert_eq!(octet(book.allocate(&name("b"), None)), 17);
        assert_eq!(octet(book.allocate(&name("a"), None)), 16);
        let mut book = open(&directory, "10.80.0.0/24");
        assert_eq!(octet(book.allocate(&name("b"), None)), 17);
        assert_eq!(octet(book.allocate(&name("c"), None)), 18);
        let link = book.allocate(&name("a"), None).expect("an address");
        assert_eq!(link.name, "v0a500010");
        assert_eq!(link.address6.to_string(), "fd00:ba11::a50:10");
    }

    #[test]
    fn what_is_given_out_at_the_same_time_is_written_at_once_or_taken_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(&directory, "10.80.0.0/24");
        assert_eq!(octet(book.give(&name("a"), None, None)), 16);
        assert_eq!(octet(book.give(&name("b"), None, None)), 17);
        book.keep(&name("a")).expect("written");
        assert_eq!(open(&directory, "10.80.0.0/24").links().len(), 2);
        book.give(&name("c"), None, None).expect("an address");
        // Where a directory is, no file can be made.
        let way = directory.path().join("addresses.new");
        std::fs::create_dir(&way).expect("a directory");
        book.keep(&name("c")).expect_err("not written");
        assert!(book.link_of(&name("c")).is_none());
        std::fs::remove_dir(&way).expect("removed");
        assert_eq!(octet(book.allocate(&name("d"), None)), 19);
        assert_eq!(open(&directory, "10.80.0.0/24").links().len(), 3);
    }

    #[test]
    fn what_is_wanted_is_given_when_it_is_nobodys() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut book = open(&directory, "10.80.0.0/27");
        let mut give = |who: &str, last: u8| octet(book.give(&name(who), None, Some(Ipv4Addr::new(10, 80, 0, last))));
        assert_eq!(give("a", 20), 20);
        assert_eq!(give("b", 20), 16, "it is another's");
        assert_eq!(give("b", 21), 16, "it has one");
        assert_eq!([give("c", 3), give("d", 31), give("e", 200)], [17, 18, 19], "they are not given out");
        assert_eq!(give("f", 30), 30);
        book.release(&name("a")).expect("released");
        assert_eq!(octet(book.give(&name("g"), None, Some(Ipv4Addr::new(10, 80, 0, 20)))), 20);
        // What was reserved for one that had an address already is given back.
        let spare = book.reserve().expect("an address").address;
        book.give(&name("b"), Some(spare), None).expect("an address");
        assert_eq!(octet(book.give(&name("h"), None, Some(spare))), spare.octets()[3]);
    }

    #[test]
    fn a_released_address_is_used_again_only_when_no_fresh_one_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        // .16 to .30
        let mut book = open(&directory, "10.80.0.0/27");
        for n in 16..=28 {
            assert_eq!(octet(book.allocate(&name(&format!("vps-{n}")), None)), n);
        }
        book.release(&name("vps-20")).expect("released");
        book.release(&name("vps-18")).expect("released");
        book.release(&name("unknown")).expect("nothing to do");
        let mut book = open(&directory, "10.80.0.0/27");
        let next: Vec<u8> = (0..4).map(|n| octet(book.allocate(&name(&format!("next-{n}")), None))).collect();
        assert_eq!(next, [29, 30, 20, 18]);
        let error = book.allocate(&name("one-more"), None).expect_err("exhausted");
        assert!(matches!(error, AddressError::Exhausted { given: 15, .. }), "{error}");
        assert_eq!(book.links().len(), 15);
    }

    #[test]
    fn a_damaged_file_is_said_and_not_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("addresses.json");
        std::fs::write(&path, "{\"given\": {\"a\": ").expect("written");
        let subnet = "10.80.0.0/24".parse().expect("a subnet");
        let error = AddressBook::open(&path, subnet, Ipv6Addr::UNSPECIFIED, 16).expect_err("damaged");
        assert!(matches!(error, AddressError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there"), b"{\"given\": {\"a\": ");
    }

    #[test]
    fn addresses_of_another_subnet_are_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        open(&directory, "10.80.0.0/24").allocate(&name("a"), None).expect("an address");
        let mut book = open(&directory, "10.81.0.0/24");
        assert!(book.links().is_empty());
        assert_eq!(book.allocate(&name("a"), None).expect("an address").address, Ipv4Addr::new(10, 81, 0, 16));
    }
}
