//! `allow`: which VPS of a tenant may connect to which, and where.

use std::{fmt, str::FromStr};

use crate::VpsName;

/// `blog -> db:3306`: `from` may connect to that TCP port of `to`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// Who connects.
    pub from: VpsName,
    /// To whom.
    pub to: VpsName,
    /// To which port inside.
    pub port: u16,
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

impl FromStr for Allow {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let form = || AllowError::Form(text.to_owned());
        let (from, target) = text.split_once("->").ok_or_else(form)?;
        let (to, port) = target.split_once(':').ok_or_else(form)?;
        let port = crate::route::parse_port(port.trim()).ok_or_else(form)?;
        let (from, to): (VpsName, VpsName) = (from.trim().parse()?, to.trim().parse()?);
        if from == to { Err(AllowError::Itself(to)) } else { Ok(Self { from, to, port }) }
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
            assert_eq!(text.parse::<Allow>().map(|rule| rule.to_string()), Ok("blog -> db:3306".to_owned()), "{text}");
        }
        for text in
            ["", "blog", "blog -> db", "blog -> db:", "blog -> db:0", "blog -> db:+1", "blog -> db:65536", "-> db:1"]
        {
            assert!(text.parse::<Allow>().is_err(), "{text}");
        }
        assert!(matches!("a -> a:1".parse::<Allow>(), Err(AllowError::Itself(_))));
        assert!(matches!("A -> b:1".parse::<Allow>(), Err(AllowError::Name(_))));
    }
}
