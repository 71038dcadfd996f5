//! Secrets on their way to another host: sealed with a key that a passphrase makes (Argon2id, RFC 9106).

use std::{collections::BTreeMap, fmt::Display};

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::seal::{Key, Sealed, Unopened, Value};

/// KiB and passes of what is sealed here.
const MEMORY: u32 = 19_456;
const PASSES: u32 = 2;
/// What is taken of others: this service has no more.
const MAX_MEMORY: u32 = 65_536;
const MAX_PASSES: u32 = 16;
/// Bytes of a passphrase at least, and at most.
const SHORTEST: usize = 8;
const LONGEST: usize = 1024;

/// A passphrase. It can't be printed.
pub type Passphrase = Value;

/// Secrets that a passphrase opens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Carried {
    /// How the key is made.
    kdf: Kdf,
    /// Each by its name.
    secrets: BTreeMap<String, Sealed>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kdf {
    name: String,
    memory_kib: u32,
    passes: u32,
    salt: String,
}

/// Why secrets can't be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is of no use.
    #[error("a passphrase has {SHORTEST} to {LONGEST} bytes")]
    Length,
    /// It is another one.
    #[error("this is not the passphrase that the secrets were sealed with")]
    Passphrase,
    /// Another version sealed them, or nobody did.
    #[error("the secrets are sealed in a way that this version does not know")]
    Unknown,
    /// They are not what was sealed.
    #[error("the secrets are damaged")]
    Damaged,
}

impl Kdf {
    fn key(&self, passphrase: &Passphrase) -> Result<Key, Unreadable> {
        if !(SHORTEST..=LONGEST).contains(&passphrase.bytes().len()) {
            return Err(Unreadable::Length);
        }
        let bounded = self.memory_kib <= MAX_MEMORY && self.passes <= MAX_PASSES && self.name == "argon2id";
        let salt = hex::decode(&self.salt).ok().filter(|salt| bounded && salt.len() == 16);
        let params = Params::new(self.memory_kib, self.passes, 1, Some(Key::SIZE));
        let (Some(salt), Ok(params)) = (salt, params) else { return Err(Unreadable::Unknown) };
        let mut bytes = Zeroizing::new([0; Key::SIZE]);
        let made = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        made.hash_password_into(passphrase.bytes(), &salt, &mut bytes[..]).map_err(|_| Unreadable::Unknown)?;
        Ok(Key::new(*bytes))
    }
}

impl Carried {
    /// Seals `secrets`. Takes some hundredths of a second.
    pub fn seal<N: Display>(passphrase: &Passphrase, secrets: &[(N, Value)]) -> Result<Self, Unreadable> {
        // As random as a key, of which half is enough.
        let salt = hex::encode(&Key::generate().bytes()[..16]);
        let kdf = Kdf { name: "argon2id".to_owned(), memory_kib: MEMORY, passes: PASSES, salt };
        let key = kdf.key(passphrase)?;
        let sealed = secrets.iter().map(|(name, value)| (name.to_string(), key.seal(&name.to_string(), value)));
        Ok(Self { secrets: sealed.collect(), kdf })
    }

    /// What they say.
    pub fn open(&self, passphrase: &Passphrase) -> Result<BTreeMap<String, Value>, Unreadable> {
        let key = self.kdf.key(passphrase)?;
        let one = |(name, sealed): (&String, &Sealed)| match key.open(name, sealed) {
            Ok(value) => Ok((name.clone(), value)),
            Err(Unopened::OtherKey { .. }) => Err(Unreadable::Passphrase),
            Err(Unopened::Newer) => Err(Unreadable::Unknown),
            Err(Unopened::Damaged) => Err(Unreadable::Damaged),
        };
        self.secrets.iter().map(one).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.secrets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Value::new(text.as_bytes().to_vec())
    }

    #[test]
    fn only_the_passphrase_opens_them() {
        let carried =
            Carried::seal(&value("correct horse"), &[("db", value("hunter2")), ("tls", value("key"))]).unwrap();
        let text = serde_json::to_string(&carried).unwrap();
        assert!(!text.contains("hunter2") && !text.contains(&hex::encode("hunter2")), "{text}");
        let read: Carried = serde_json::from_str(&text).unwrap();
        assert_eq!(read.open(&value("correct horse")).unwrap()["db"].bytes(), b"hunter2");
        assert_eq!(read.open(&value("battery staple")).unwrap_err(), Unreadable::Passphrase);
        assert_eq!(read.open(&value("short")).unwrap_err(), Unreadable::Length);
        // One can't be put in another's place, and nobody makes this service take all its memory.
        let mut swapped = read.clone();
        let db = swapped.secrets["db"].clone();
        swapped.secrets.insert("tls".to_owned(), db);
        assert_eq!(swapped.open(&value("correct horse")).unwrap_err(), Unreadable::Damaged);
        let mut greedy = read;
        greedy.kdf.memory_kib = 1 << 22;
        assert_eq!(greedy.open(&value("correct horse")).unwrap_err(), Unreadable::Unknown);
    }
}
