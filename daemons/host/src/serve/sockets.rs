//! Calls about sockets: `Listen`, `Unlisten`, `Listening`, `Connect`, `Narrow`.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use model::{Transport, Verb, api::ErrorKind};
use wire::{
    Connection, Fault, Peer, Replier,
    host::{Addresses, Connect, Listen, Listening, Narrow, Unlisten},
    varlink::Empty,
};

use super::Capability;
use crate::{
    host::lock,
    listeners::{connect_unix, listen_again},
};

/// Addresses listened on at most.
const ADDRESSES: usize = 1024;

impl Capability {
    pub(super) async fn listen(&self, listen: Listen, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let address = listen.address;
        self.grants.check_listen(&address)?;
        let key = format!("listen/{address}");
        if self.host.held(&key).is_none() {
            if lock(&self.host.sockets).keys().filter(|key| key.starts_with("listen/")).count() >= ADDRESSES {
                return Err(Fault::new(
                    ErrorKind::Conflict,
                    format!("{address}: {ADDRESSES} addresses are listened on"),
                ));
            }
            self.host.hold(key.clone(), self.host.listen(&address)?)?;
            self.host.note_listening();
        }
        let socket = self.host.held(&key).ok_or_else(|| Fault::not_found(format!("{address} was closed again")))??;
        if address.1 == Transport::Tcp {
            // Another holder may have shut it down.
            listen_again(&socket)?;
        }
        Ok(replier.done::<Listen>(&Empty {}, &[socket.as_fd()]).await?)
    }

    pub(super) async fn unlisten(&self, unlisten: Unlisten, replier: &mut Replier<'_>) -> Result<(), Fault> {
        self.grants.check_listen(&unlisten.address)?;
        let key = format!("listen/{}", unlisten.address);
        let socket = lock(&self.host.sockets).remove(&key);
        if let Some(socket) = socket {
            self.host.keeper.drop(&key);
            self.host.note_listening();
            // Copies that its holders have not closed yet must not keep the port.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
        Ok(replier.done::<Unlisten>(&Empty {}, &[]).await?)
    }

    pub(super) async fn listening(&self, replier: &mut Replier<'_>) -> Result<(), Fault> {
        self.grants.check_any(Verb::Listen)?;
        let addresses =
            self.host.listening().into_iter().filter(|address| self.grants.check_listen(address).is_ok()).collect();
        Ok(replier.done::<Listening>(&Addresses { addresses }, &[]).await?)
    }

    pub(super) async fn connect(&self, connect: Connect, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let service = connect.service;
        self.grants.check_connect(&service)?;
        if self.host.config.vps_of(&service).is_none() {
            return Err(Fault::not_found(format!("no designated VPS runs service \"{service}\"")));
        }
        let socket = self.introduce(&service).map_err(|error| {
            Fault::new(ErrorKind::Unavailable, format!("service \"{service}\" does not take connections: {error}"))
        })?;
        Ok(replier.done::<Connect>(&Empty {}, &[socket.as_fd()]).await?)
    }

    /// A connection whose first message says who is at this end.
    fn introduce(&self, service: &str) -> io::Result<OwnedFd> {
        let directory = self.host.paths.run.join("service");
        let mut stream = UnixStream::from(connect_unix(&directory, &format!("{service}.sock"))?);
        let mut message = serde_json::to_vec(&self.peer)?;
        message.push(0);
        stream.write_all(&message)?;
        Ok(stream.into())
    }

    pub(super) async fn narrow(&self, narrow: Narrow, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let grants = self.grants.narrow(narrow.grants)?;
        let full = |_| Fault::new(ErrorKind::Conflict, "there are too many connections of this VPS; close some");
        let place = self.places.clone().try_acquire_owned().map_err(full)?;
        let peer = Peer { vps: self.peer.vps.clone(), services: self.peer.services.clone() };
        let capability = Self { host: self.host.clone(), grants, peer, places: self.places.clone() };
        let (ours, theirs) = UnixStream::pair()?;
        let connection = Connection::from_fd(ours.into())?;
        tokio::spawn(Arc::new(capability).attend(connection, place));
        Ok(replier.done::<Narrow>(&Empty {}, &[theirs.as_fd()]).await?)
    }
}
