//! Secrets at rest: XChaCha20-Poly1305 under a key of this host, with a nonce of its own each, bound to whose it is and
//! what it is called, so that one can't be put in another's place.

use std::fmt;

use chacha20poly1305::{
    Key as CipherKey, XChaCha20Poly1305, XNonce,
    aead::{Aead, Generate, KeyInit, Payload},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What a secret says. It can't be printed, and its memory is overwritten when it is dropped.
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// Takes it over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A key that seals and opens.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; Key::SIZE]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.id())
    }
}

/// A sealed value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// How it is sealed.
    version: u8,
    /// Which key opens it (`Key::id`).
    pub key: String,
    nonce: String,
    text: String,
}

/// Why a sealed value can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// A newer version sealed it.
    #[error("it is sealed in a way this version does not know; use the version that set it, or set it anew")]
    Newer,
    /// Another key did.
    #[error("it is sealed with another key (`{theirs}`, this host's is `{ours}`); set it anew")]
    OtherKey {
        /// The key that opens it.
        theirs: String,
        /// The one there is.
        ours: String,
    },
    /// It is not what was sealed.
    #[error("it is damaged, or was put in another's place; set it anew")]
    Damaged,
}

impl Key {
    /// Bytes of a key.
    pub const SIZE: usize = 32;

    /// A fresh one.
    pub fn generate() -> Self {
        Self(Zeroizing::new(CipherKey::generate().into()))
    }

    /// These bytes.
    pub fn new(bytes: [u8; Self::SIZE]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for its file.
    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    /// What tells keys apart, and says nothing of them.
    pub fn id(&self) -> String {
        let digest = Sha256::new().chain_update("bailiwick key id\0").chain_update(self.bytes()).finalize();
        hex::encode(&digest[..8])
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&CipherKey::from(*self.0))
    }

    /// Seals `value`; only `open` with the same `what` gives it back.
    pub fn seal(&self, what: &str, value: &Value) -> Sealed {
        let nonce = XNonce::generate();
        // It fails only for more bytes than a machine has.
        let sealed = self.cipher().encrypt(&nonce, Payload { msg: value.bytes(), aad: what.as_bytes() });
        let text = hex::encode(sealed.unwrap_or_default());
        Sealed { version: 1, key: self.id(), nonce: hex::encode(nonce), text }
    }

    /// What was sealed as `what`.
    pub fn open(&self, what: &str, sealed: &Sealed) -> Result<Value, Unopened> {
        if sealed.version != 1 {
            return Err(Unopened::Newer);
        }
        let ours = self.id();
        if sealed.key != ours {
            return Err(Unopened::OtherKey { theirs: sealed.key.clone(), ours });
        }
        let bytes = |text: &str| hex::decode(text).map_err(|_| Unopened::Damaged);
        let nonce: [u8; 24] = bytes(&sealed.nonce)?.try_into().map_err(|_| Unopened::Damaged)?;
        let payload = Payload { msg: &bytes(&sealed.text)?, aad: what.as_bytes() };
        let opened = self.cipher().decrypt(&XNonce::from(nonce), payload);
        opened.map(Value::new).map_err(|_| Unopened::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_name_open_it() {
        let (key, value) = (Key::generate(), Value::new(b"hunter2".to_vec()));
        let sealed = key.seal("acme/db", &value);
        assert_eq!(key.open("acme/db", &sealed).unwrap().bytes(), b"hunter2");
        assert_eq!(key.open("beta/db", &sealed).unwrap_err(), Unopened::Damaged);
        assert!(matches!(Key::generate().open("acme/db", &sealed), Err(Unopened::OtherKey { .. })));
        assert_ne!(key.seal("acme/db", &value), sealed, "the same nonce twice");
        let mut changed = sealed.clone();
        changed.text.replace_range(0..2, if sealed.text.starts_with("00") { "01" } else { "00" });
        assert_eq!(key.open("acme/db", &changed).unwrap_err(), Unopened::Damaged);
        assert_eq!(key.open("acme/db", &Sealed { version: 2, ..sealed }).unwrap_err(), Unopened::Newer);
    }

    #[test]
    fn nothing_prints_a_value_or_a_key() {
        let (key, value) = (Key::new([7; Key::SIZE]), Value::new(b"hunter2".to_vec()));
        let text = format!("{value:?} {key:?} {:?}", key.seal("a", &value));
        assert!(!text.contains("hunter2") && !text.contains(&hex::encode([7; 8])), "{text}");
        assert!(!text.contains(&hex::encode("hunter2")) && !text.contains("[104"), "{text}");
    }
}
