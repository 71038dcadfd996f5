//! The terminal that this process has: handed on as it is, byte by byte, and given back as it was.

use std::io;

use model::run::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Result;

/// Its size.
pub fn size() -> Result<WindowSize> {
    let size = tcgetwinsize(io::stdin()).map_err(io::Error::from)?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Standard input in raw mode, until this is dropped.
pub struct Terminal {
    before: Termios,
    raw: Termios,
}

impl Terminal {
    /// Every key is the program's from here on.
    pub fn raw() -> Result<Self> {
        let before = tcgetattr(io::stdin()).map_err(io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(io::Error::from)?;
        Ok(Self { before, raw })
    }

    /// What is to be heard while it is raw.
    pub fn heard(&self) -> Result<Signals> {
        let hear = |number| signal(SignalKind::from_raw(number));
        Ok(Signals {
            raw: self.raw.clone(),
            window: hear(28)?,
            goes_on: hear(18)?,
            hang_up: hear(1)?,
            interrupt: hear(2)?,
            quit: hear(3)?,
            terminate: hear(15)?,
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Something that concerns the terminal.
pub enum Heard {
    /// It has another size now.
    Size(WindowSize),
    /// This process shall end, by this signal.
    End(i32),
}

/// Signals to this process. Those of keys do not come: they are the program's.
pub struct Signals {
    raw: Termios,
    window: Signal,
    goes_on: Signal,
    hang_up: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Signals {
    /// The next.
    pub async fn next(&mut self) -> Heard {
        loop {
            let end = tokio::select! {
                _ = self.window.recv() => None,
                _ = self.goes_on.recv() => {
                    // Whoever had the terminal meanwhile left it as they liked it.
                    let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.raw);
                    None
                }
                _ = self.hang_up.recv() => Some(1),
                _ = self.interrupt.recv() => Some(2),
                _ = self.quit.recv() => Some(3),
                _ = self.terminate.recv() => Some(15),
            };
            match end {
                Some(signal) => return Heard::End(signal),
                None => {
                    if let Ok(size) = size() {
                        return Heard::Size(size);
                    }
                }
            }
        }
    }
}
