//! Names: DNS labels (RFC 1123), so that a name can be a host name, a cgroup and a directory.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than a DNS label may be.
    #[error("`{0}` is longer than 63 characters")]
    TooLong(String),
    /// Holds a character outside `a-z 0-9 -`, or begins or ends with `-`.
    #[error("`{0}` is not a name: use a-z, 0-9 and `-`, beginning and ending with a letter or digit")]
    Illegal(String),
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > 63 {
        return Err(NameError::TooLong(text.chars().take(80).collect()));
    }
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !text.bytes().all(legal) || text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::Illegal(text.to_owned()));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// One isolated environment; unique on a host.
    VpsName
}
name_type! {
    /// Whose VPSs they are.
    TenantName
}
name_type! {
    /// Data of a tenant that outlives the VPSs that use it.
    VolumeName
}
name_type! {
    /// A tenant's secret: what it is called, never what it says.
    SecretName
}
name_type! {
    /// A directory of the host's that VPSs may see, as host.toml calls it.
    DirectoryName
}
name_type! {
    /// A program that is run inside a VPS at certain times; unique in that VPS.
    JobName
}
name_type! {
    /// What VPSs of a tenant have in common; rules name it as `@web`.
    LabelName
}
name_type! {
    /// One administrative job, such as `gateway`.
    ServiceName
}
