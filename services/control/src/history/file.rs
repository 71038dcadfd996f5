//! Files of one JSON value a line, which are only added to. Nobody waits for the disk: what was written before a SIGKILL is
//! there after it; of a power cut, the last seconds are not. A line that was cut off is one that can't be read, and costs
//! nothing but itself.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde::Serialize;

/// Command lines that persons ran are among it.
const MODE: u32 = 0o600;

/// Adds a line to `bytes`.
pub fn line<T: Serialize>(bytes: &mut Vec<u8>, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *bytes, value)?;
    bytes.push(b'\n');
    Ok(())
}

/// Adds lines to a file, which is made where it is missing; its size afterwards.
pub fn append(path: &Path, lines: &[u8]) -> io::Result<u64> {
    let mut file = File::options().read(true).append(true).create(true).mode(MODE).open(path)?;
    let size = file.metadata()?.len();
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    if last != *b"\n" {
        // What was cut off must not spoil what follows.
        file.write_all(b"\n")?;
    }
    file.write_all(lines)?;
    Ok(size + lines.len() as u64)
}
