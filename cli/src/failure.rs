//! Failures: what a person reads when a command did not do what it should, and its exit status.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    process::ExitCode,
};

use model::{
    api::{ErrorAnswer, ErrorKind},
    spec::Problem,
};

use crate::output::{harmless, paint};

/// What to do about an answer that broke off.
const CUT: &str = "bailiwick logs control";

/// The result of most functions here.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a command failed, in the form in which `control` says it too.
#[derive(Debug)]
pub struct Failure(Box<ErrorAnswer>);

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorAnswer { message: message.into(), next: None, problems: Vec::new(), kind }))
    }

    /// An answer that broke off.
    pub fn cut(message: String) -> Self {
        Self::new(ErrorKind::Failed, message).next(CUT)
    }

    /// Whether it is that.
    pub fn is_cut(&self) -> bool {
        self.0.next.as_deref() == Some(CUT)
    }

    /// With what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.0.next = Some(next.into());
        self
    }

    /// The same, as a problem with a place: `problem` is without what is wrong.
    pub fn at(mut self, mut problem: Problem) -> Self {
        problem.message = std::mem::take(&mut self.0.message);
        problem.hint = self.0.next.take();
        self.0.problems = vec![problem];
        self
    }

    /// Whether something that was named is not there.
    pub fn is_missing(&self) -> bool {
        self.0.kind == ErrorKind::NotFound
    }

    /// Whether `control` went away, which is soon back.
    pub fn is_broken_off(&self) -> bool {
        self.0.kind == ErrorKind::Unavailable
    }

    /// What a person reads.
    pub fn text(&self, color: bool) -> String {
        let error = paint(color, "1;31", "error");
        if self.0.problems.is_empty() {
            let mut text = format!("{error}: {}\n", harmless(&self.0.message));
            if let Some(next) = &self.0.next {
                text.push_str(&format!("  next: {}\n", harmless(next)));
            }
            return text;
        }
        let count = self.0.problems.len();
        let files: BTreeSet<_> = self.0.problems.iter().map(|problem| problem.file.as_str()).collect();
        let files = files.into_iter().collect::<Vec<_>>().join(", ");
        let problems = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        let mut text = format!("{error}: {problems} in {}; nothing was changed\n", harmless(&files));
        for problem in &self.0.problems {
            text.push_str(&format!("\n{}\n", harmless(&problem.to_string())));
        }
        text
    }

    /// Writes it to standard error; answers the exit status.
    pub fn report(&self) -> ExitCode {
        // Nobody is left to tell when standard error is gone.
        let _ = io::Write::write_all(&mut io::stderr(), self.text(colored(&io::stderr())).as_bytes());
        ExitCode::from(self.0.kind as u8)
    }
}

fn colored(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

impl From<ErrorAnswer> for Failure {
    fn from(answer: ErrorAnswer) -> Self {
        Self(Box::new(answer))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(ErrorKind::Failed, error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(ErrorKind::Failed, format!("an answer that is not understood: {error}"))
            .next("use the `bailiwick` that belongs to the host's version")
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::new(ErrorKind::Unavailable, format!("the host's answer broke off: {error}"))
            .next("the service `control` may have been restarted: try again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_shown_with_their_place() {
        let text =
            "tenant = \"acme\"\n[vps.blog]\nimage = \"debian:nginx\"\ncommand = [\"nginx\"]\nmemory = \"512MiB\"\n";
        let problems = model::spec::parse("blog.toml", text).expect_err("an unknown field");
        let answer = ErrorAnswer { message: String::new(), next: None, problems, kind: ErrorKind::Invalid };
        let expected = "error: 1 problem in blog.toml; nothing was changed\n\n\
            blog.toml:5:1  unknown field `memory` in [vps.blog]\n\
            \x20 5 | memory = \"512MiB\"\n\
            \x20   | ^^^^^^ write: limits = { memory = \"512MiB\" }\n";
        assert_eq!(Failure::from(answer).text(false), expected);
    }

    #[test]
    fn what_a_tenant_wrote_does_not_steer_the_terminal() {
        let failure = Failure::new(ErrorKind::Failed, "exit\x1b[2J 1").next("look");
        assert_eq!(failure.text(false), "error: exit\\x1b[2J 1\n  next: look\n");
    }
}
