//! The routing rules in force. They are listed once: nobody else changes those of this namespace, and a list costs the kernel
//! as much as there are rules, which is too much for every start of a VPS.

use std::collections::BTreeSet;

use rtnetlink::Handle;
use tokio::sync::Mutex;

use crate::netlink::{self, NetlinkError, Rule};

/// What rules there are.
#[derive(Debug)]
pub struct Rules {
    handle: Handle,
    there: Mutex<BTreeSet<Rule>>,
}

impl Rules {
    /// Asks the kernel; an earlier process of this service may have made some.
    pub async fn list(handle: Handle, ipv6: bool) -> Result<Self, NetlinkError> {
        let mut there = BTreeSet::new();
        for ipv6 in super::families(ipv6) {
            there.extend(netlink::rules(&handle, ipv6).await?.iter().map(Rule::read));
        }
        Ok(Self { handle, there: Mutex::new(there) })
    }

    /// Adds a rule unless it is there.
    pub async fn add(&self, rule: Rule) -> Result<(), NetlinkError> {
        let mut there = self.there.lock().await;
        if !there.contains(&rule) {
            netlink::add_rule(&self.handle, &rule).await?;
            there.insert(rule);
        }
        Ok(())
    }

    /// Makes the rules of which `of` holds those of `wanted`: the others go first.
    pub async fn set(&self, of: impl Fn(&Rule) -> bool, wanted: &BTreeSet<Rule>) -> Result<(), NetlinkError> {
        let mut there = self.there.lock().await;
        let others: Vec<_> = there.iter().filter(|rule| of(rule) && !wanted.contains(rule)).cloned().collect();
        for rule in others {
            netlink::delete_rule(&self.handle, &rule).await?;
            there.remove(&rule);
        }
        for rule in wanted {
            if !there.contains(rule) {
                netlink::add_rule(&self.handle, rule).await?;
                there.insert(rule.clone());
            }
        }
        Ok(())
    }
}
