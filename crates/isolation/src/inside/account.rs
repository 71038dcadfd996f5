//! Who a program runs as, from the VPS's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags, open},
    io::{Errno, read},
};

/// Bytes of either file that are read; both are the tenant's.
const MAX: usize = 1 << 20;

/// Ids of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Looks up `name`, `name:group`, `uid` or `uid:gid` in the root of the calling process.
pub(super) fn look_up(user: &str) -> Result<Account, String> {
    let text = |path: &str| read_bounded(path).map_err(|error| format!("{path} inside the VPS: {error}"));
    find(user, &text("/etc/passwd")?, &text("/etc/group")?)
}

fn read_bounded(path: &str) -> io::Result<String> {
    let file: OwnedFd =
        match open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(String::new()),
            opened => opened?,
        };
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while bytes.len() < MAX {
        match read(&file, chunk.as_mut_slice())? {
            0 => break,
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find(user: &str, passwd: &str, group: &str) -> Result<Account, String> {
    let (name, wanted_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|field| {
        let (uid, gid) = (field.get(2)?.parse().ok()?, field.get(3)?.parse().ok()?);
        let ours = field[0] == name || number == Some(uid);
        ours.then(|| (field[0], uid, gid, field.get(5).copied().unwrap_or("/")))
    });
    let (login, uid, gid, home) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => ("", uid, 0, "/"),
        (None, None) if name == "root" => ("root", 0, 0, "/"),
        (None, None) => return Err(format!("user {name:?} is not in /etc/passwd inside the VPS")),
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let id = |field: &[&str]| field.get(2)?.parse::<u32>().ok();
    let (gid, groups) = match wanted_group {
        Some(wanted) => {
            let listed = groups().find(|field| field[0] == wanted).and_then(|field| id(&field));
            let gid = listed.or_else(|| wanted.parse().ok());
            (gid.ok_or_else(|| format!("group {wanted:?} is not in /etc/group inside the VPS"))?, Vec::new())
        }
        None => {
            let member = |field: &Vec<&str>| {
                !login.is_empty() && field.get(3).is_some_and(|members| members.split(',').any(|m| m == login))
            };
            // The kernel takes 65,536; a program that needs more than a few is unheard of.
            (gid, groups().filter(member).filter_map(|field| id(&field)).take(64).collect())
        }
    };
    let home = if home.is_empty() { "/" } else { home };
    Ok(Account { uid, gid, groups, home: home.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\nwww-data:x:33:33:www:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nssl-cert:x:104:postgres,www-data\nadm:x:4:www-data\n";

    fn ids(user: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        find(user, PASSWD, GROUP).map(|a| (a.uid, a.gid, a.groups, a.home))
    }

    #[test]
    fn every_form_of_a_user() {
        assert_eq!(ids("www-data"), Ok((33, 33, vec![104, 4], "/var/www".into())));
        assert_eq!(ids("33"), Ok((33, 33, vec![104, 4], "/var/www".into())));
        assert_eq!(ids("www-data:adm"), Ok((33, 4, vec![], "/var/www".into())));
        assert_eq!(ids("1000:1001"), Ok((1000, 1001, vec![], "/".into())));
        assert_eq!(ids("1000"), Ok((1000, 0, vec![], "/".into())));
        assert_eq!(find("root", "", "").map(|a| a.uid), Ok(0));
        assert!(ids("nobody").unwrap_err().contains("\"nobody\""));
        assert!(ids("root:wheel").unwrap_err().contains("\"wheel\""));
    }
}
