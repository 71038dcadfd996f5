//! Datagrams for address routes. Those of one client to one address are a flow, which has a socket of its own towards the VPS: the
//! VPS is woken for the first, and what comes until it is up waits. A flow is a use of the VPS as a connection is.
//!
//! Who sends can forge who it is. So a flow takes little; of one client there are few; and where there is no room for another, one that
//! nobody has answered makes it.

mod flow;
mod front;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use model::ListenAddress;
use tokio::{sync::mpsc, task::AbortHandle, time::sleep};

use crate::{accept::Limits, follow::Directory, route::Site};

use flow::Flow;
use front::Front;

/// Flows of one address.
const FLOWS: usize = 4096;
/// Flows of one client, of IPv6: of one network of 64 bits.
const OF_ONE: usize = 256;
/// Datagrams of one flow that wait.
const WAITING: usize = 32;
/// Pause after a fault of a socket.
const PAUSE: Duration = Duration::from_millis(100);

/// Who asks, and at which of this host's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    client: SocketAddr,
    asked: Option<IpAddr>,
}

impl Ends {
    /// Whose flows are counted together.
    fn client(&self) -> IpAddr {
        match self.client.ip().to_canonical() {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => std::net::Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        }
    }
}

/// All flows of one address.
#[derive(Debug, Default)]
struct Flows(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    all: HashMap<Ends, One>,
    /// How many each client has.
    clients: HashMap<IpAddr, usize>,
    /// Those that nobody had answered when they were added, oldest first, and some that are gone or answered since.
    unanswered: VecDeque<(Ends, u64)>,
    number: u64,
}

/// One that goes on.
#[derive(Debug)]
struct One {
    number: u64,
    datagrams: mpsc::Sender<Bytes>,
    answered: bool,
    task: Option<AbortHandle>,
}

impl Drop for One {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a datagram to its flow; false: there is none. What finds no place in it is lost, as on any way.
    fn give(&self, ends: &Ends, datagram: &Bytes) -> bool {
        let known = self.lock();
        let Some(one) = known.all.get(ends) else { return false };
        let _ = one.datagrams.try_send(datagram.clone());
        true
    }

    /// Adds one, if there is room or room can be made: its number, and what is given to it.
    fn add(&self, ends: Ends) -> Option<(u64, mpsc::Receiver<Bytes>)> {
        let mut known = self.lock();
        if known.clients.get(&ends.client()).is_some_and(|count| *count >= OF_ONE) {
            return None;
        }
        while known.all.len() >= FLOWS {
            let (oldest, number) = known.unanswered.pop_front()?;
            if known.all.get(&oldest).is_some_and(|one| one.number == number && !one.answered) {
                known.remove(&oldest);
            }
        }
        // What is gone of it is not kept for ever.
        if known.unanswered.len() >= 4 * FLOWS {
            let Known { all, unanswered, .. } = &mut *known;
            unanswered.retain(|(ends, number)| all.get(ends).is_some_and(|one| one.number == *number && !one.answered));
        }
        known.number += 1;
        let number = known.number;
        let (datagrams, receiver) = mpsc::channel(WAITING);
        known.all.insert(ends, One { number, datagrams, answered: false, task: None });
        *known.clients.entry(ends.client()).or_default() += 1;
        known.unanswered.push_back((ends, number));
        Some((number, receiver))
    }

    fn with(&self, ends: &Ends, number: u64, change: impl FnOnce(&mut One)) {
        if let Some(one) = self.lock().all.get_mut(ends).filter(|one| one.number == number) {
            change(one);
        }
    }

    /// It has been answered.
    fn answered(&self, ends: &Ends, number: u64) {
        self.with(ends, number, |one| one.answered = true);
    }

    /// Its task has ended.
    fn end(&self, ends: &Ends, number: u64) {
        let mut known = self.lock();
        if let Some(one) = known.all.get_mut(ends).filter(|one| one.number == number) {
            one.task = None;
            known.remove(ends);
        }
    }
}

impl Known {
    fn remove(&mut self, ends: &Ends) {
        if self.all.remove(ends).is_some()
            && let Some(count) = self.clients.get_mut(&ends.client())
        {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&ends.client());
            }
        }
    }
}

/// Takes datagrams from a socket without an end.
pub async fn serve(socket: std::net::UdpSocket, listen: ListenAddress, directory: Arc<Directory>, limits: Arc<Limits>) {
    let front = match Front::new(socket) {
        Ok(front) => Arc::new(front),
        Err(error) => return tracing::error!(%listen, %error, "datagrams can't be taken"),
    };
    let flows = Arc::new(Flows::default());
    let mut came = Vec::new();
    loop {
        if let Err(error) = front.receive(&mut came).await {
            // That one of ours found nobody may show here.
            tracing::debug!(%listen, %error, "datagrams were not received");
            sleep(PAUSE).await;
        }
        for (ends, datagram) in came.drain(..) {
            if !flows.give(&ends, &datagram) {
                begin(&front, &flows, listen, &directory, &limits, ends, datagram);
            }
        }
    }
}

fn begin(
    front: &Arc<Front>,
    flows: &Arc<Flows>,
    listen: ListenAddress,
    directory: &Directory,
    limits: &Arc<Limits>,
    ends: Ends,
    first: Bytes,
) {
    let client = ends.client.ip().to_canonical();
    let Some((target, in_use)) = directory.find(listen, Site::address, |ignore| ignore.address(client)) else { return };
    let Some(place) = limits.flow() else { return };
    let Some((number, datagrams)) = flows.add(ends) else { return };
    let (front, limits) = (front.clone(), limits.clone());
    let flow = Flow { front, flows: flows.clone(), ends, number, target, limits, _place: place };
    let task = tokio::spawn(flow.run(first, datagrams, in_use)).abort_handle();
    flows.with(&ends, number, |one| one.task = Some(task));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(n: u32) -> Ends {
        Ends { client: (IpAddr::from(n.to_be_bytes()), 53).into(), asked: None }
    }

    #[test]
    fn a_flood_pushes_out_what_nobody_answered_and_nothing_else() {
        let flows = Flows::default();
        let first = flows.add(ends(0)).expect("room").0;
        flows.answered(&ends(0), first);
        let kept: Vec<_> = (1..3 * FLOWS as u32).map(|n| flows.add(ends(n))).collect();
        assert!(kept.iter().all(Option::is_some));
        let known = flows.lock();
        assert_eq!(known.all.len(), FLOWS);
        assert!(known.all.contains_key(&ends(0)) && !known.all.contains_key(&ends(1)));
        assert!(known.unanswered.len() <= 4 * FLOWS + 1);
        assert_eq!(known.clients.values().sum::<usize>(), FLOWS);
    }

    #[test]
    fn where_all_are_answered_there_is_no_room() {
        let flows = Flows::default();
        for n in 0..FLOWS as u32 {
            let number = flows.add(ends(n)).expect("room").0;
            flows.answered(&ends(n), number);
        }
        assert!(flows.add(ends(u32::MAX)).is_none());
        flows.end(&ends(7), 1);
        assert!(flows.add(ends(u32::MAX)).is_none(), "another one's end is not its own");
        flows.end(&ends(7), 8);
        assert!(flows.add(ends(u32::MAX)).is_some());
    }

    #[test]
    fn one_client_has_few() {
        let flows = Flows::default();
        let of = |port: u16, host: u16| Ends {
            client: (std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host), port).into(),
            asked: None,
        };
        let added = (0..2 * OF_ONE as u16).filter(|n| flows.add(of(*n, n % 7)).is_some()).count();
        assert_eq!(added, OF_ONE);
        assert!(flows.add(ends(1)).is_some(), "another one has its own");
    }
}
