//! What a machine has no more of, said so that a person knows where to look.

use std::io;

use rustix::io::Errno;

/// The error, and what is lacking where its own text does not say so.
pub fn cause(error: &io::Error) -> String {
    let lacking = match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => {
            "no process can be added: limits.processes, or the number that the machine allows, is reached"
        }
        Some(Errno::MFILE | Errno::NFILE) => "no descriptor is left",
        Some(Errno::NOSPC) => "no space, or no inode, is left",
        Some(Errno::NOMEM) => "limits.memory, or the machine's memory, is used up",
        _ => return error.to_string(),
    };
    format!("{error}: {lacking}")
}
