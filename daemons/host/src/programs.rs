//! Programs of the host's that a designated VPS sees: each with its libraries and their loader, and nothing else.

use std::{env, fs, io, path::PathBuf, process::Command};

/// Where Debian has programs of the administrator, which are not on everybody's PATH.
pub const SYSTEM_PATH: &str = "/usr/sbin:/sbin";

/// The files that `program` needs; none: the host does not have it.
///
/// # Errors
/// ldd(1) can't be run.
pub fn files(program: &str) -> io::Result<Vec<PathBuf>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(env::split_paths(SYSTEM_PATH));
    let Some(file) = directories.map(|directory| directory.join(program)).find(|file| file.is_file()) else {
        return Ok(Vec::new());
    };
    // For a program without libraries it fails, and lists none.
    let listed = Command::new("ldd").arg(&file).output()?;
    let mut files = vec![fs::canonicalize(file)?];
    files.extend(libraries(&String::from_utf8_lossy(&listed.stdout)));
    Ok(files)
}

/// The paths in what ldd(1) writes: `NAME => PATH (ADDRESS)`, and the loader as `PATH (ADDRESS)`.
fn libraries(listed: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let lines =
        listed.lines().filter_map(|line| line.trim().strip_suffix(')')?.rsplit_once(" (").map(|(left, _)| left));
    let paths = lines.map(|left| left.rsplit_once(" => ").map_or(left, |(_, path)| path));
    paths.filter(|path| path.starts_with('/')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibnftables.so.1 => /lib/x86_64-linux-gnu/libnftables.so.1 (0x00007f)\n\
                      \tlibgone.so.3 => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found: Vec<_> = libraries(listed).collect();
        let expected = ["/lib/x86_64-linux-gnu/libnftables.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(files("sh").expect("ldd").len() > 1);
        assert_eq!(files("no-such-program").expect("not even looked at"), Vec::<PathBuf>::new());
    }
}
