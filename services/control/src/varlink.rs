//! `io.bailiwick.Control`, for the gateway.

use std::sync::Arc;

use model::{Verb, VpsName};
use wire::{
    Fault, Method, Peer, Replier, Request,
    control::{Answered, Idle, Reachable, Routes, VpsState, Wake},
    varlink::{Empty, Service},
};

use crate::{driver::Vps, life::Input, shared::Control, story};

/// Characters of a reason that are kept.
const REASON: usize = 200;

/// Serves the interface.
pub struct Server {
    control: Arc<Control>,
}

impl Server {
    /// For `control`.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// The VPS, if the caller's grants let it wake that one.
    fn wakeable(&self, peer: &Peer, name: &VpsName) -> Result<Arc<Vps>, Fault> {
        let vps = self.control.get(name).ok_or_else(|| Fault::not_found(format!("there is no vps \"{name}\"")))?;
        let tenant = vps.spec().tenant.clone();
        let designated = self.control.config.designated.get(&peer.vps);
        let granted = designated.is_some_and(|d| d.grants.iter().any(|g| g.allows(Verb::Wake, name, Some(&tenant))));
        if granted { Ok(vps) } else { Err(Fault::denied(format!("{} may not wake {name}", peer.vps))) }
    }

    fn may_follow(&self, peer: &Peer) -> Result<(), Fault> {
        let designated = self.control.config.designated.get(&peer.vps);
        let granted = designated.is_some_and(|d| d.grants.iter().any(|g| g.allows_any(Verb::Wake)));
        if granted { Ok(()) } else { Err(Fault::denied(format!("{} may not follow routes", peer.vps))) }
    }

    async fn follow(&self, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let mut follower = self.control.routes.follow();
        loop {
            let update = tokio::select! {
                update = follower.next() => update,
                () = replier.gone() => return Ok(()),
            };
            replier.more::<Routes>(&update).await?;
            follower.sent();
        }
    }
}

impl Service for Server {
    async fn call(&self, peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        match request.method.as_str() {
            Routes::NAME => {
                self.may_follow(peer)?;
                return self.follow(replier).await;
            }
            Wake::NAME => {
                let Wake { name, by } = request.parse()?;
                let vps = self.wakeable(peer, &name)?;
                let decided = vps.ask(Input::Wake(reason(&by))).await;
                let none = || VpsState { name: name.clone(), generation: 0, state: Reachable::No };
                let mut state = self.control.routes.state(&name).unwrap_or_else(none);
                // What came in between is no answer to this wake.
                if let (Some(decided), Reachable::No) = (decided, &state.state) {
                    state.generation = decided;
                }
                replier.done::<Wake>(&state, &[]).await?;
            }
            Answered::NAME => {
                let Answered { name, generation, at_us } = request.parse()?;
                story::answered(&self.control, &*self.wakeable(peer, &name)?, generation, at_us);
                replier.done::<Answered>(&Empty {}, &[]).await?;
            }
            Idle::NAME => {
                let Idle { name } = request.parse()?;
                self.wakeable(peer, &name)?.ask(Input::Idle).await;
                replier.done::<Idle>(&Empty {}, &[]).await?;
            }
            _ => return Err(request.unknown()),
        }
        Ok(())
    }
}

/// A request line comes from strangers: it is shown later, so nothing but what can be seen is kept of it.
fn reason(by: &str) -> String {
    by.chars().map(|c| if c.is_control() { '?' } else { c }).take(REASON).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn reasons_are_short_and_visible() {
        assert_eq!(super::reason("GET /\u{1b}[31m from ::1"), "GET /?[31m from ::1");
        assert_eq!(super::reason(&"é".repeat(500)).chars().count(), super::REASON);
    }
}
