//! Debian's own entries of the host's apt configuration (sources.list(5)), so that an image comes from the mirror that
//! the operator chose.

use std::path::Path;

/// The host's release, such as `bookworm` (os-release(5)).
pub fn codename(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?.trim().trim_matches('"');
    let legal = !value.is_empty() && value.bytes().all(|b| b.is_ascii_lowercase());
    legal.then(|| value.to_owned())
}

/// One-line entries for `release` from everything below `/etc/apt`; empty: the program's own default.
pub fn entries(apt: &Path, release: &str) -> Vec<String> {
    let mut files = vec![apt.join("sources.list")];
    if let Ok(parts) = std::fs::read_dir(apt.join("sources.list.d")) {
        files.extend(parts.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => found.extend(text.lines().filter_map(|line| one_line(line, release))),
            Some("sources") => found.extend(text.split("\n\n").flat_map(|stanza| deb822(stanza, release))),
            _ => {}
        }
    }
    found.dedup();
    // without the release itself the rest is of no use
    let whole = found.iter().any(|entry| entry.split(' ').nth(2) == Some(release));
    if whole { found } else { Vec::new() }
}

/// Other archives have their own keys.
fn is_debians(suite: &str, components: &[&str], signed_by: Option<&str>, release: &str) -> bool {
    let ours = suite.strip_prefix(release).is_some_and(|rest| ["", "-updates", "-security"].contains(&rest));
    ours && components.contains(&"main") && signed_by.is_none_or(|key| key.contains("debian-archive"))
}

fn entry(uri: &str, suite: &str) -> Option<String> {
    let known = ["http://", "https://"].iter().any(|scheme| uri.starts_with(scheme));
    known.then(|| format!("deb {uri} {suite} main"))
}

fn one_line(line: &str, release: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let mut words = rest.split('#').next()?.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    is_debians(suite, &components, signed_by, release).then(|| entry(uri, suite)).flatten()
}

fn deb822(stanza: &str, release: &str) -> Vec<String> {
    let field = |name: &str| {
        let of = |line: &str| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        stanza.lines().filter(|line| !line.starts_with('#')).find_map(of)
    };
    let words = |name| field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if !words("Types").iter().any(|kind| kind == "deb") || field("Enabled").is_some_and(|e| e == "no") {
        return Vec::new();
    }
    let components = words("Components");
    let components: Vec<&str> = components.iter().map(String::as_str).collect();
    let signed_by = field("Signed-By");
    let mut found = Vec::new();
    for uri in words("URIs") {
        for suite in words("Suites") {
            if is_debians(&suite, &components, signed_by.as_deref(), release) {
                found.extend(entry(&uri, &suite));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"trixie\"").as_deref(), Some("trixie"));
        assert_eq!(codename("ID=arch\n"), None);
        assert_eq!(codename("VERSION_CODENAME=../x\n"), None);
    }

    #[test]
    fn only_debians_own_entries_are_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let parts = directory.path().join("sources.list.d");
        std::fs::create_dir(&parts).expect("made");
        let write = |name: &str, text: &str| std::fs::write(parts.join(name), text).expect("written");
        write(
            "debian.sources",
            "Types: deb\n# a comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
             Components: main contrib\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
             Types: deb-src\nURIs: http://mirror.test/debian\nSuites: bookworm\nComponents: main\n",
        );
        write("other.sources", "Types: deb\nURIs: https://other.test/x\nSuites: nodistro\nComponents: main\n");
        write(
            "vendor.list",
            "deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] https://vendor.test bookworm main\n\
             deb [arch=amd64] http://mirror.test/security bookworm-security main # a comment\n\
             # deb http://mirror.test/debian bookworm main\n\
             deb cdrom:[disc]/ bookworm main\n\
             deb https://vendor.test/docker bookworm stable\n",
        );
        write("old.list.disabled", "deb http://old.test/debian bookworm main\n");
        assert_eq!(
            entries(directory.path(), "bookworm"),
            [
                "deb http://mirror.test/debian bookworm main",
                "deb http://mirror.test/debian bookworm-updates main",
                "deb http://mirror.test/security bookworm-security main",
            ]
        );
        assert!(entries(directory.path(), "trixie").is_empty());
    }
}
