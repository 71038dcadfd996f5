//! `secret set`, `secret ls`, `secret rm`. What a secret says is never printed, nor taken from arguments, which others see.

use std::{
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
};

use bytes::Bytes;
use hyper::Method;
use model::api::{ErrorKind, SecretRow, SecretSet};
use zeroize::Zeroizing;

use super::time;
use crate::{
    arguments::{Secret, SecretRef},
    client::Host,
    failure::{Failure, Result},
    output, table,
};

/// Bytes of a secret at most.
const MAX: u64 = 64 << 10;

/// Sets, lists or removes.
pub async fn run(host: &Host, secret: Secret) -> Result<()> {
    match secret {
        Secret::Set { secret, exact, form } => {
            let value = if io::stdin().is_terminal() { ask(&secret)? } else { read(exact)? };
            let body = Bytes::copy_from_slice(&value);
            let set: SecretSet = host.put(&path(&secret), body).await?;
            if form.json {
                return output::json(&set);
            }
            output::line(&format!("{secret}: {}", if set.replaced { "set anew" } else { "set" }))?;
            for vps in set.at_next_start {
                output::line(&format!("vps {vps} has it at its next start: bailiwick restart {vps}"))?;
            }
            Ok(())
        }
        Secret::Ls { tenant, form } => {
            let mut rows: Vec<SecretRow> = host.get("/v1/secrets").await?;
            rows.retain(|row| tenant.as_ref().is_none_or(|tenant| row.tenant == *tenant));
            if form.json { output::json(&rows) } else { output::own(&show(&rows)) }
        }
        Secret::Rm { secrets, force } => {
            for secret in secrets {
                let query = if force { "?force=true" } else { "" };
                host.act(Method::DELETE, &format!("{}{query}", path(&secret))).await?;
                output::line(&format!("secret {secret}: removed"))?;
            }
            Ok(())
        }
    }
}

fn path(SecretRef { tenant, name }: &SecretRef) -> String {
    format!("/v1/secrets/{tenant}/{name}")
}

/// Asks on the terminal, twice, without showing what is typed.
fn ask(secret: &SecretRef) -> Result<Zeroizing<Vec<u8>>> {
    let first = hidden(&format!("What {secret} says: "))?;
    if first.is_empty() {
        return Err(Failure::new(ErrorKind::Invalid, "nothing was typed; nothing was changed"));
    }
    if *hidden("The same again: ")? != *first {
        return Err(Failure::new(ErrorKind::Invalid, "the two are not the same; nothing was changed"));
    }
    Ok(first)
}

/// What Ctrl-C types.
const CANCEL: u8 = 3;

/// One line of standard input, which is a terminal that does not show it.
pub fn hidden(prompt: &str) -> Result<Zeroizing<Vec<u8>>> {
    let mut line = typed(prompt)?;
    if line.last() == Some(&CANCEL) {
        return Err(Failure::new(ErrorKind::Failed, "cancelled; nothing was changed"));
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(line)
}

fn typed(prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
    let terminal = io::stdin();
    let before = tcgetattr(&terminal)?;
    let mut silent = before.clone();
    // No signals, so that Ctrl-C does not leave the terminal silent: it ends the line.
    silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    silent.local_modes.insert(LocalModes::ECHONL);
    silent.special_codes[SpecialCodeIndex::VEOL] = CANCEL;
    // What was typed before the question was not meant for it.
    tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
    eprint!("{prompt}");
    let read = line(&terminal);
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    read
}

/// Not through the buffer of standard input, which would keep it.
fn line(from: impl AsFd) -> io::Result<Zeroizing<Vec<u8>>> {
    // As much as a terminal's line may be (termios(3)).
    let mut line = Zeroizing::new(vec![0; 4096]);
    let length = rustix::io::read(from, line.as_mut_slice())?;
    line.truncate(length);
    Ok(line)
}

fn read(exact: bool) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX as usize + 2));
    io::stdin().lock().take(MAX + 2).read_to_end(&mut bytes)?;
    if !exact {
        without_line_end(&mut bytes);
    }
    let wrong =
        |message: &str| Err(Failure::new(ErrorKind::Invalid, message).next("bailiwick secret set TENANT/NAME < FILE"));
    match bytes.len() as u64 {
        0 => wrong("standard input is empty; nothing was changed"),
        1..=MAX => Ok(bytes),
        _ => wrong("a secret is at most 64 KiB; nothing was changed"),
    }
}

/// `echo` adds a line end that is no part of a password; a file of several lines ends with one that is.
fn without_line_end(bytes: &mut Vec<u8>) {
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    if lines == 1 && bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}

fn show(rows: &[SecretRow]) -> String {
    if rows.is_empty() {
        return "no secrets; `bailiwick secret set TENANT/NAME` sets one\n".to_owned();
    }
    table::text(
        ["SECRET", "SET", "USED BY"],
        rows.iter().map(|row| {
            let users: Vec<_> = row.used_by.iter().map(|(vps, path)| format!("{vps}:{path}")).collect();
            let users = if users.is_empty() { "nobody".to_owned() } else { users.join(", ") };
            [format!("{}/{}", row.tenant, row.name), time::utc(row.set_ms), users]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_end_of_one_line_is_left_out() {
        for (read, kept) in [("a\n", "a"), ("a\r\n", "a"), ("a", "a"), ("a\nb\n", "a\nb\n"), ("\n", "")] {
            let mut bytes = read.as_bytes().to_vec();
            without_line_end(&mut bytes);
            assert_eq!(bytes, kept.as_bytes());
        }
    }
}
