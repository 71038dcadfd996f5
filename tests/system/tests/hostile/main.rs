//! Images that somebody made to harm the host, through the real commands. Each is refused with what, where and why, or is
//! taken and harms nobody: nothing outside its own layer changes, and what it holds gives nothing on the host.

mod bounded;
mod harmless;
mod mounted;
mod place;
mod refused;
