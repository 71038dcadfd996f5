//! A passphrase: from a file, from standard input, or asked for. Never from the arguments, which others see.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::Path,
};

use model::api::ErrorKind;
use zeroize::Zeroizing;

use super::secrets::hidden;
use crate::{
    arguments::PassphraseFrom,
    failure::{Failure, Result},
};

/// Bytes of one at least.
const SHORTEST: usize = 8;
/// Bytes of a file that may hold one.
const FILE: u64 = 4096;

/// What a request says in its header.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// In hexadecimal.
    pub fn header(&self) -> &str {
        &self.0
    }
}

/// One that is to seal: typed twice.
pub fn new(from: &PassphraseFrom) -> Result<Passphrase> {
    get(from, "Passphrase for the secrets in it: ", true)
}

/// One that is to open.
pub fn known(from: &PassphraseFrom) -> Result<Passphrase> {
    get(from, "Passphrase of the secrets in it: ", false)
}

fn get(from: &PassphraseFrom, prompt: &str, twice: bool) -> Result<Passphrase> {
    let bytes = match &from.passphrase_file {
        Some(path) if path == Path::new("-") => first_line(io::stdin().lock())?,
        Some(path) => {
            let file = File::open(path).and_then(first_line);
            file.map_err(|error| Failure::new(ErrorKind::Failed, format!("{}: {error}", path.display())))?
        }
        None if io::stdin().is_terminal() => {
            let first = hidden(prompt)?;
            if twice && *hidden("The same again: ")? != *first {
                return Err(Failure::new(ErrorKind::Invalid, "the two are not the same; nothing was done"));
            }
            first
        }
        None => {
            let message = "secrets need a passphrase, and nobody can be asked";
            return Err(
                Failure::new(ErrorKind::Invalid, message).next("name a file that holds it: --passphrase-file FILE")
            );
        }
    };
    if bytes.len() < SHORTEST {
        return Err(Failure::new(
            ErrorKind::Invalid,
            format!("a passphrase has at least {SHORTEST} bytes; nothing was done"),
        ));
    }
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    Ok(Passphrase(Zeroizing::new(digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect())))
}

fn first_line(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE as usize));
    from.take(FILE).read_to_end(&mut bytes)?;
    let end = bytes.iter().position(|byte| b"\r\n".contains(byte)).unwrap_or(bytes.len());
    bytes.truncate(end);
    Ok(bytes)
}
