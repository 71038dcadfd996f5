//! Somebody runs a program inside.

use std::sync::Arc;

use crate::{driver::Vps, life::Input};

/// As long as it lives its VPS is not idle.
pub struct Busy(Arc<Vps>);

impl Busy {
    /// From now on.
    pub async fn begin(vps: Arc<Vps>) -> Self {
        vps.ask(Input::ExecBegan).await;
        Self(vps)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let vps = self.0.clone();
        tokio::spawn(async move { vps.feed(Input::ExecEnded).await });
    }
}
