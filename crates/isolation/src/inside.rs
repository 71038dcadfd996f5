//! What a shim's children do with the rights of the VPS's own user namespace: steps 6 to 8 of a start
//! (docs/ARCHITECTURE.md).
//!
//! `frame` and `finish` turn a `RunSpec` into steps without touching anything; `build` has a `Kernel` carry them out, `Live`
//! in earnest. What is in the image is the tenant's: its paths are reached by `openat2` below the new root only.

mod account;
mod enter;
mod files;
mod live;
mod masks;
mod mounts;
mod network;
mod plan;
mod program;
mod seccomp;
mod secrets;
mod terminal;
mod volume;

use std::io;

pub use enter::{Entrance, enter};
pub use live::Live;
pub use plan::{Prepared, Secret, Setting, Step, finish, frame};
pub use program::{Failure, Program, Starting, Stdio};
pub use seccomp::filter;

/// Which step failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct StepError {
    /// What was to be done, for a person.
    pub step: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl StepError {
    /// The step and its cause in one line.
    pub fn explain(&self) -> String {
        format!("{}: {}", self.step, crate::lack::cause(&self.source))
    }
}

/// Who carries out steps.
pub trait Kernel {
    /// Carries out one.
    fn apply(&mut self, step: &Step) -> io::Result<()>;
}

/// Carries out `steps` in order; ends at the first that fails.
pub fn build(steps: &[Step], kernel: &mut impl Kernel) -> Result<(), StepError> {
    for step in steps {
        kernel.apply(step).map_err(|source| StepError { step: step.to_string(), source })?;
    }
    Ok(())
}
