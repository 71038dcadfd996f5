//! Manual pages, one per command, made from what `--help` says.

use std::{fs, path::Path, process::ExitCode};

use clap::CommandFactory;

use crate::{arguments::Arguments, failure::Result};

/// Writes them into `directory`.
pub fn run(directory: &Path) -> Result<ExitCode> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Arguments::command(), directory)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_with_its_examples() {
        let directory = tempfile::tempdir().expect("a directory");
        run(directory.path()).expect("pages");
        let page = |name: &str| fs::read_to_string(directory.path().join(name)).expect("a page");
        assert!(page("bailiwick.1").contains("bailiwick\\-apply(1)"));
        assert!(page("bailiwick-services-upgrade.1").contains("services upgrade gateway"));
        assert!(!directory.path().join("bailiwick-serve.1").exists(), "what no person types");
    }
}
