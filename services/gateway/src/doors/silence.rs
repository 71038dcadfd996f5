//! A port that a door listens on is never refused (ip-rule(8)). When this process dies its sockets close a moment before its
//! network namespace is gone, and in that moment the kernel would refuse in the VPSs' names; who hears nothing tries again.
//!
//! What a socket sends bears its mark. What the kernel sends without one, such as a refusal, bears none, and from the ports of
//! doors it goes nowhere.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Context as _;
use ipnet::IpNet;
use rtnetlink::{
    Error, Handle,
    packet_route::{
        AddressFamily, IpProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
    },
};

/// On every socket of a door.
pub const MARK: u32 = 0xd00;
/// The kernel's table of routes.
const MAIN: u32 = 254;
/// Places of the rules: after those of `admit`, before the kernel's.
const OURS: u32 = 10;
const MARKED: u32 = 11;
const UNMARKED: u32 = 12;
const EEXIST: i32 = -17;
const ENOENT: i32 = -2;

/// The ports that are not refused.
#[derive(Debug)]
pub struct Silence {
    handle: Handle,
    subnets: Vec<IpNet>,
    ports: BTreeSet<u16>,
}

impl Silence {
    /// None yet, of no addresses.
    pub fn new(handle: Handle) -> Self {
        Self { handle, subnets: Vec::new(), ports: BTreeSet::new() }
    }

    /// Of VPSs in `subnet` too; before there are ports. This VPS is at `own` there: its connections may come from any port.
    pub async fn add(&mut self, own: IpAddr, subnet: IpNet) -> anyhow::Result<()> {
        add(&self.handle, to_main(own.into(), OURS, None)).await?;
        add(&self.handle, to_main(subnet, MARKED, Some(MARK))).await?;
        self.subnets.push(subnet);
        Ok(())
    }

    /// These, and no others.
    pub async fn keep(&mut self, ports: BTreeSet<u16>) -> anyhow::Result<()> {
        let (old, subnets) = (self.ports.clone(), self.subnets.clone());
        for port in ports.difference(&old) {
            for subnet in &subnets {
                add(&self.handle, nowhere(*subnet, *port)).await?;
            }
            self.ports.insert(*port);
        }
        for port in old.difference(&ports) {
            for subnet in &subnets {
                match self.handle.rule().del(nowhere(*subnet, *port)).execute().await {
                    Err(Error::NetlinkError(message)) if message.code.is_some_and(|code| code.get() == ENOENT) => {}
                    done => done.context("deleting the rule of a door's port")?,
                }
            }
            self.ports.remove(port);
        }
        Ok(())
    }
}

/// What begins here and comes from `source`.
fn rule(source: IpNet, priority: u32, action: RuleAction) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if source.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    (rule.header.src_len, rule.header.action) = (source.prefix_len(), action);
    let from = RuleAttribute::Source(source.network());
    rule.attributes.extend([from, RuleAttribute::Iifname("lo".to_owned()), RuleAttribute::Priority(priority)]);
    rule
}

fn to_main(source: IpNet, priority: u32, mark: Option<u32>) -> RuleMessage {
    let mut rule = rule(source, priority, RuleAction::ToTable);
    rule.attributes.push(RuleAttribute::Table(MAIN));
    rule.attributes.extend(mark.map(RuleAttribute::FwMark));
    rule
}

fn nowhere(source: IpNet, port: u16) -> RuleMessage {
    let mut rule = rule(source, UNMARKED, RuleAction::Blackhole);
    let ports = RulePortRange { start: port, end: port };
    rule.attributes.extend([RuleAttribute::IpProtocol(IpProtocol::Tcp), RuleAttribute::SourcePortRange(ports)]);
    rule
}

async fn add(handle: &Handle, rule: RuleMessage) -> anyhow::Result<()> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule;
    match request.execute().await {
        Err(Error::NetlinkError(message)) if message.code.is_some_and(|code| code.get() == EEXIST) => Ok(()),
        added => added.context("adding a rule of a door's port"),
    }
}
