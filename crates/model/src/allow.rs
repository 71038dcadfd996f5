//! `allow`: which VPS of a tenant may connect to which, and where.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{LabelName, VpsName};

/// `from` may connect to that TCP port of `to`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// Who connects.
    pub from: VpsName,
    /// To whom.
    pub to: VpsName,
    /// To which port inside.
    pub port: u16,
}

/// The same as it is written: `blog -> db:3306`, `@web -> db:3306`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Who connects.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// To which port inside.
    pub port: u16,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Party {
    /// All VPSs of the tenant's that have that label: `@web`.
    Label(LabelName),
    /// One.
    Vps(VpsName),
}

impl FromStr for Party {
    type Err = crate::name::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('@') {
            Some(label) => Ok(Self::Label(label.parse()?)),
            None => Ok(Self::Vps(text.parse()?)),
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "@{label}"),
            Self::Vps(name) => name.fmt(f),
        }
    }
}

impl TryFrom<String> for Party {
    type Error = crate::name::NameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Party> for String {
    fn from(party: Party) -> Self {
        party.to_string()
    }
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    /// Not of the form at all.
    #[error("`{0}` is not a rule such as \"blog -> db:3306\"")]
    Form(String),
    /// One of the names is none.
    #[error(transparent)]
    Name(#[from] crate::name::NameError),
    /// Both names are the same.
    #[error("`{0}` reaches itself without a rule")]
    Itself(VpsName),
}

impl FromStr for Rule {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let form = || AllowError::Form(text.to_owned());
        let (from, target) = text.split_once("->").ok_or_else(form)?;
        let (to, port) = target.split_once(':').ok_or_else(form)?;
        let port = crate::route::parse_port(port.trim()).ok_or_else(form)?;
        let (from, to): (Party, Party) = (from.trim().parse()?, to.trim().parse()?);
        match to {
            Party::Vps(itself) if from == Party::Vps(itself.clone()) => Err(AllowError::Itself(itself)),
            to => Ok(Self { from, to, port }),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}", self.from, self.to, self.port)
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}:{}", self.from, self.to, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_as_they_are_parsed() {
        for text in ["blog -> db:3306", "blog->db:3306", " blog  ->  db:3306 "] {
            assert_eq!(text.parse::<Rule>().map(|rule| rule.to_string()), Ok("blog -> db:3306".to_owned()), "{text}");
        }
        for text in
            ["", "blog", "blog -> db", "blog -> db:", "blog -> db:0", "blog -> db:+1", "blog -> db:65536", "-> db:1"]
        {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
        assert_eq!("@web->@db:1".parse::<Rule>().map(|rule| rule.to_string()), Ok("@web -> @db:1".to_owned()));
        assert!("@a -> @a:1".parse::<Rule>().is_ok(), "they reach each other");
        assert!("@ -> b:1".parse::<Rule>().is_err() && "@@a -> b:1".parse::<Rule>().is_err());
        assert!(matches!("a -> a:1".parse::<Rule>(), Err(AllowError::Itself(_))));
        assert!(matches!("A -> b:1".parse::<Rule>(), Err(AllowError::Name(_))));
    }
}
