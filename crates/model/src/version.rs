//! Which version this is.

use std::hint::black_box;

/// Stands so in the file of each program, where it can be seen without running it.
static MARK: &str = concat!("bailiwick-version=", env!("CARGO_PKG_VERSION"));

/// The version of this build.
pub fn version() -> &'static str {
    // Read from the mark, so that there are not two that could differ.
    black_box(MARK).split_once('=').map_or("", |(_, version)| version)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_package_s() {
        assert_eq!(super::version(), env!("CARGO_PKG_VERSION"));
    }
}
