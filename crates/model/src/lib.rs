//! What is said in Bailiwick: names, specs, grants, routes, limits, states.
//!
//! Types here can only be made valid: whoever holds one need not check it again. Parsing is the one way in.
//! No I/O, no clock, no policy; every other crate may use this one, it uses none.
#![forbid(unsafe_code)]

pub mod allow;
pub mod api;
pub mod disk;
mod document;
pub mod egress;
pub mod grant;
pub mod host;
pub mod ignore;
pub mod image;
pub mod limits;
pub mod log;
pub mod name;
pub mod route;
pub mod run;
pub mod schedule;
pub mod spec;
pub mod state;
pub mod story;
mod version;

pub use allow::{Allow, Party, Rule};
pub use document::nearest;
pub use egress::Egress;
pub use grant::{Grant, Selector, Verb};
pub use host::HostConfig;
pub use ignore::Ignore;
pub use image::{ImageRef, LayerId};
pub use limits::Limits;
pub use name::{DirectoryName, JobName, LabelName, SecretName, ServiceName, TenantName, VolumeName, VpsName};
pub use route::{ClientAddress, ListenAddress, Route, RouteTarget, Transport};
pub use run::RunSpec;
pub use spec::{Spec, VpsSpec};
pub use state::{ExitStatus, Phase, VpsStatus};
pub use version::version;
