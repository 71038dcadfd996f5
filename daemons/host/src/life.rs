//! The life of a VPS: which phase follows which.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use isolation::host::Cgroup;
use model::{Phase, state::Ended};
use tokio::{io::unix::AsyncFd, sync::oneshot};
use wire::{
    host::ExecEnded,
    shim::{ShimState, ToShim},
};

use crate::record::UpRecord;

/// The daemon's end of a shim's socket.
pub type ShimSocket = Arc<AsyncFd<OwnedFd>>;

/// Whether a VPS has processes.
#[derive(Debug)]
pub enum Life {
    /// None.
    Down(Option<Ended>),
    /// It has.
    Up(Box<Up>),
}

/// Where a VPS that has processes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Being built, or started and not ready.
    Starting,
    /// Ready.
    Ready,
    /// All processes stand still.
    Frozen,
    /// Asked to end.
    Stopping,
}

impl Step {
    /// The step after the shim said `state`. Only the daemon freezes and thaws, so a frozen one stays frozen; nothing
    /// leads back from the end.
    pub fn heard(self, state: ShimState) -> Self {
        match (self, state) {
            (_, ShimState::Stopping) | (Self::Stopping, _) => Self::Stopping,
            (Self::Starting, ShimState::Ready) => Self::Ready,
            (step, _) => step,
        }
    }

    /// The step a record says.
    pub fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Ready => Self::Ready,
            Phase::Frozen => Self::Frozen,
            Phase::Stopping => Self::Stopping,
            Phase::Starting | Phase::Down { .. } => Self::Starting,
        }
    }
}

impl From<Step> for Phase {
    fn from(step: Step) -> Self {
        match step {
            Step::Starting => Self::Starting,
            Step::Ready => Self::Ready,
            Step::Frozen => Self::Frozen,
            Step::Stopping => Self::Stopping,
        }
    }
}

/// A run.
#[derive(Debug)]
pub struct Up {
    /// Where it is.
    pub step: Step,
    /// Its shim.
    pub socket: ShimSocket,
    /// Readable once its shim has ended (pidfd_open(2)); none where an earlier daemon started it.
    pub shim: Option<AsyncFd<OwnedFd>>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// What outlives this daemon.
    pub record: UpRecord,
    /// Who waits for programs that were started inside.
    pub execs: BTreeMap<u64, oneshot::Sender<ExecEnded>>,
    /// Which messages its shim knows; 0 until it has said so.
    pub shim_version: u16,
}

impl Up {
    /// Says something to the shim. An error means that it does not listen any more.
    pub fn say(&self, message: &ToShim, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        wire::shim::send(self.socket.get_ref().as_fd(), message, fds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_back_from_stopping_and_a_frozen_vps_stays_frozen() {
        use ShimState::{Building, Ready, Started, Stopping};
        assert_eq!(Step::Starting.heard(Building), Step::Starting);
        assert_eq!(Step::Starting.heard(Started), Step::Starting);
        assert_eq!(Step::Starting.heard(Ready), Step::Ready);
        assert_eq!(Step::Ready.heard(Started), Step::Ready);
        assert_eq!(Step::Frozen.heard(Ready), Step::Frozen);
        for state in [Building, Started, Ready, Stopping] {
            assert_eq!(Step::Stopping.heard(state), Step::Stopping);
        }
        assert_eq!(Step::Frozen.heard(Stopping), Step::Stopping);
    }
}
