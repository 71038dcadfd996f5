//! The namespace's and each link's kernel settings
//! (<https://docs.kernel.org/networking/ip-sysctl.html>). They show in `/proc/sys/net` of whoever is in the namespace.

use std::{io, path::PathBuf};

/// A setting that was not taken.
#[derive(Debug, thiserror::Error)]
#[error("writing {value} to {path}: {source}; the network VPS needs /proc/sys/net writable")]
pub struct SysctlError {
    path: String,
    value: &'static str,
    source: io::Error,
}

/// For every link, and as the default of links to come.
const IPV4: [(&str, &str); 7] = [
    // strict: a packet is dropped unless its source is routed to the link it came from
    ("rp_filter", "1"),
    // and that is looked up with the packet's mark
    ("src_valid_mark", "1"),
    ("send_redirects", "0"),
    ("accept_redirects", "0"),
    ("accept_source_route", "0"),
    // neighbours are permanent entries on both sides
    ("arp_ignore", "8"),
    ("proxy_arp", "0"),
];
const IPV6: [(&str, &str); 4] =
    [("accept_ra", "0"), ("accept_redirects", "0"), ("accept_source_route", "0"), ("addr_gen_mode", "1")];

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    PathBuf::from("/proc/sys/net/ipv6").exists()
}

fn write(path: String, value: &'static str) -> Result<(), SysctlError> {
    std::fs::write(&path, value).map_err(|source| SysctlError { path, value, source })
}

/// Settings of one link; of `default` for those to come.
pub fn link(name: &str, ipv6: bool) -> Result<(), SysctlError> {
    for (key, value) in IPV4 {
        write(format!("/proc/sys/net/ipv4/conf/{name}/{key}"), value)?;
    }
    for (key, value) in IPV6.iter().filter(|_| ipv6) {
        write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value)?;
    }
    Ok(())
}

/// Settings of the whole namespace that do not let anything through yet.
pub fn namespace(ipv6: bool) -> Result<(), SysctlError> {
    // `all` counts together with each link's own
    for (key, value) in [("rp_filter", "1"), ("send_redirects", "0"), ("accept_redirects", "0")] {
        write(format!("/proc/sys/net/ipv4/conf/all/{key}"), value)?;
    }
    link("default", ipv6)
}

/// Forwarding between links. Last: the rules that keep tenants apart have to be there before.
pub fn forward(ipv6: bool) -> Result<(), SysctlError> {
    write("/proc/sys/net/ipv4/ip_forward".to_owned(), "1")?;
    if ipv6 {
        write("/proc/sys/net/ipv6/conf/all/forwarding".to_owned(), "1")?;
    }
    Ok(())
}
