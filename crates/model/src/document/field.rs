//! Tables of fields: what a file may hold, said once for the check and for the JSON schema.

/// The fields of one table.
pub(crate) struct Fields {
    pub fields: &'static [Field],
    /// Fields that are planned and not there, each with what to do instead.
    pub later: &'static [(&'static str, &'static str)],
    /// Names that people coming from other systems write, and ours.
    pub otherwise: &'static [(&'static str, &'static str)],
}

/// One field of a table.
pub(crate) struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub about: &'static str,
    pub required: bool,
    /// What holds where it is not written, as TOML or in words; for the schema.
    pub default: Option<&'static str>,
}

impl Field {
    pub const fn new(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, about, required: false, default: None }
    }

    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }
}

/// What a value may be.
pub(crate) enum Kind {
    Boolean,
    /// A whole number in an inclusive range.
    Integer(i64, i64),
    /// A number in an inclusive range.
    Number(f64, f64),
    /// A text that means something.
    Word(Word),
    Choice(&'static [&'static str]),
    /// At most so many.
    List(&'static Kind, usize),
    /// Names or addresses of the person's own choice, at most so many.
    Map(Word, &'static Kind, usize),
    Table(&'static Fields),
    Either(&'static [Kind]),
}

/// What a text may be.
#[derive(Clone, Copy)]
pub(crate) struct Word {
    /// As in "expected …".
    pub expected: &'static str,
    /// A regular expression for the schema; the check may be stricter.
    pub pattern: Option<&'static str>,
    /// Says why a text is none.
    pub check: fn(&str) -> Result<(), String>,
}

impl Kind {
    /// As in "expected …".
    pub fn expected(&self) -> String {
        match self {
            Self::Boolean => "true or false".to_owned(),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Word(word) => word.expected.to_owned(),
            Self::Choice(choices) => {
                let quoted: Vec<_> = choices.iter().map(|c| format!("\"{c}\"")).collect();
                quoted.join(" or ")
            }
            Self::List(kind, _) => format!("a list [ … ], each {}", kind.expected()),
            Self::Map(key, kind, _) => format!("a table {{ … }} of {} = {}", key.expected, kind.expected()),
            Self::Table(fields) => {
                let names: Vec<_> = fields.fields.iter().map(|f| f.name).collect();
                format!("a table {{ … }} with {}", names.join(", "))
            }
            Self::Either(kinds) => kinds.iter().map(Kind::expected).collect::<Vec<_>>().join(", or "),
        }
    }
}

/// Texts that mean something, for both kinds of files.
pub(crate) mod words {
    use super::Word;
    use crate::{DirectoryName, JobName, LabelName, SecretName, TenantName, VolumeName, VpsName, limits};

    fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
        result.map(|_| ()).map_err(|error| error.to_string())
    }

    fn no_nul(text: &str) -> Result<(), String> {
        if text.contains('\0') { Err("a NUL character cannot be in here".to_owned()) } else { Ok(()) }
    }

    const NAME_PATTERN: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

    pub const VPS_NAME: Word = Word {
        expected: "a name of a-z, 0-9 and `-`",
        pattern: Some(NAME_PATTERN),
        check: |text| told(text.parse::<VpsName>()),
    };
    pub const TENANT_NAME: Word = Word { check: |text| told(text.parse::<TenantName>()), ..VPS_NAME };
    pub const LABEL_NAME: Word = Word { check: |text| told(text.parse::<LabelName>()), ..VPS_NAME };
    pub const JOB_NAME: Word = Word { check: |text| told(text.parse::<JobName>()), ..VPS_NAME };
    pub const VOLUME_NAME: Word = Word { check: |text| told(text.parse::<VolumeName>()), ..VPS_NAME };
    pub const DIRECTORY_NAME: Word = Word { check: |text| told(text.parse::<DirectoryName>()), ..VPS_NAME };
    pub const SECRET_NAME: Word = Word { check: |text| told(text.parse::<SecretName>()), ..VPS_NAME };
    pub const MEMORY: Word = Word {
        expected: "a size such as \"512MiB\" or \"2GiB\"",
        pattern: Some("^[0-9]+(B|KiB|MiB|GiB|TiB)$"),
        check: |text| match limits::parse_bytes(text) {
            Ok(bytes) if bytes < 1 << 20 => Err(format!("`{text}` is too little: at least \"1MiB\"")),
            Ok(bytes) if bytes > 1 << 50 => Err(format!("`{text}` is too much: at most \"1024TiB\"")),
            other => told(other),
        },
    };
    /// As `MEMORY`, and nothing.
    pub const BYTES: Word = Word {
        check: |text| match limits::parse_bytes(text) {
            Ok(0) => Ok(()),
            _ => (MEMORY.check)(text),
        },
        ..MEMORY
    };
    pub const DURATION: Word = Word {
        expected: "a time such as \"30s\" or \"10m\"",
        pattern: Some("^[0-9]+(ms|s|m|h|d)$"),
        check: |text| match limits::parse_duration_ms(text) {
            Ok(ms) if ms > 366 * 86_400_000 => Err(format!("`{text}` is too long: at most \"366d\"")),
            other => told(other),
        },
    };
    pub const NONZERO_DURATION: Word = Word {
        check: |text| match limits::parse_duration_ms(text) {
            Ok(ms) if ms < 100 => Err(format!("`{text}` is too short: at least \"100ms\"")),
            _ => (DURATION.check)(text),
        },
        ..DURATION
    };
    pub const TEXT: Word = Word { expected: "a text", pattern: None, check: no_nul };
    pub const CONTENT: Word = Word { expected: "a text", pattern: None, check: |_| Ok(()) };
    pub const PATH: Word = Word {
        expected: "an absolute path",
        pattern: Some("^/"),
        check: |text| {
            no_nul(text)?;
            match text {
                _ if text.len() > 4095 => Err("the path is longer than 4095 bytes".to_owned()),
                _ if !text.starts_with('/') => Err(format!("`{text}` is not an absolute path: begin with `/`")),
                _ if text.split('/').any(|part| part == "..") => Err(format!("`{text}` must not hold `..`")),
                _ => Ok(()),
            }
        },
    };
}
