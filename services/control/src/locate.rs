//! Where in a spec file something was written, for problems that only show when files are compared.

use model::{Route, Rule, VpsName, spec::Problem};

/// What is looked for in the part of a file that is about one VPS.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The header `[vps.NAME]`.
    Header,
    /// The key of a route, however it was spelt.
    Route(&'a Route),
    /// A rule of the file's `allow`.
    Rule(&'a Rule),
    /// The first mention of a word, such as a field's name.
    Word(&'a str),
    /// An entry of a table such as `secrets`.
    Entry(&'a str, &'a str),
}

/// A problem at the place of `target`; at the header where it can't be found, and about the whole file without one.
pub fn problem(
    file: &str,
    text: &str,
    vps: &VpsName,
    target: Target<'_>,
    message: String,
    hint: Option<String>,
) -> Problem {
    let found = find(text, vps, target).or_else(|| find(text, vps, Target::Header));
    let (line, column, width) = found.unwrap_or((0, 1, 1));
    let shown = line.checked_sub(1).and_then(|index| text.lines().nth(index)).unwrap_or_default();
    Problem { file: file.to_owned(), line, column, width, text: shown.to_owned(), message, hint }
}

/// Line and column from 1, and width, in characters.
fn find(text: &str, vps: &VpsName, target: Target<'_>) -> Option<(usize, usize, usize)> {
    let is_header = |line: &str| {
        let inner = line.trim().strip_prefix('[')?.split(']').next()?;
        Some(inner.replace(['"', '\'', ' '], ""))
    };
    let wanted = format!("vps.{vps}");
    if let Target::Rule(rule) = target {
        return find_rule(text, rule);
    }
    let (mut inside, mut table) = (false, None);
    for (index, line) in text.lines().enumerate() {
        if let Some(header) = is_header(line) {
            inside = header == wanted || header.starts_with(&format!("{wanted}."));
            table = header.strip_prefix(&format!("{wanted}.")).map(str::to_owned);
            if header == wanted && matches!(target, Target::Header) {
                let start = line.len() - line.trim_start().len();
                return Some((index + 1, start + 1, line.trim().chars().count().max(1)));
            }
        }
        if !inside {
            continue;
        }
        let span = match target {
            Target::Header | Target::Rule(_) => None,
            Target::Entry(of, key) => {
                let begins = line.trim_start().strip_prefix(of).is_some_and(|rest| rest.trim_start().starts_with('='));
                let from = if begins { line.find('=').unwrap_or(0) } else { 0 };
                let at = line[from..].find(key).filter(|_| begins || table.as_deref() == Some(of));
                at.map(|at| (from + at, key))
            }
            Target::Word(word) => line.find(word).map(|at| (at, word)),
            Target::Route(route) => quoted(line).find(|(_, text)| text.parse::<Route>().as_ref() == Ok(route)),
        };
        if let Some((at, found)) = span {
            return Some((index + 1, line[..at].chars().count() + 1, found.chars().count().max(1)));
        }
    }
    None
}

/// Rules stand before the first table.
fn find_rule(text: &str, rule: &Rule) -> Option<(usize, usize, usize)> {
    let top = text.lines().enumerate().take_while(|(_, line)| !line.trim_start().starts_with('['));
    let all = top.flat_map(|(index, line)| quoted(line).map(move |(at, written)| (index, line, at, written)));
    let mut same = all.filter(|(.., written)| written.parse::<Rule>().as_ref() == Ok(rule));
    let (index, line, at, written) = same.next()?;
    Some((index + 1, line[..at].chars().count() + 1, written.chars().count()))
}

/// The quoted texts of a line, each with its place.
fn quoted(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let open = rest + line[rest..].find(['"', '\''])?;
        let quote = &line[open..=open];
        let start = open + 1;
        let end = start + line[start..].find(quote)?;
        rest = end + 1;
        Some((start, &line[start..end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "tenant = \"acme\"\n\n[vps.a]\nimage = \"debian:x1\"\n[vps.blog]\nimage = \"debian:x1\"\nroutes = { \"http://Blog.example\" = 80, \"tcp://*:90\" = 9 }\n";

    #[test]
    fn places_are_those_of_the_right_vps() {
        let name = |n: &str| n.parse::<VpsName>().unwrap();
        assert_eq!(find(FILE, &name("blog"), Target::Header), Some((5, 1, 10)));
        let route = "http://blog.example".parse().unwrap();
        assert_eq!(find(FILE, &name("blog"), Target::Route(&route)), Some((7, 13, 19)));
        let second = "tcp://*:90".parse().unwrap();
        assert_eq!(find(FILE, &name("blog"), Target::Route(&second)), Some((7, 41, 10)));
        assert_eq!(find(FILE, &name("blog"), Target::Word("image")), Some((6, 1, 5)));
        assert_eq!(find(FILE, &name("a"), Target::Route(&route)), None);
        let secrets = "[vps.a]\nenv = { db = \"/x\" }\nsecrets = { db = \"/x\" }\n[vps.b.secrets]\ndb = \"/y\"\n";
        assert_eq!(find(secrets, &name("a"), Target::Entry("secrets", "db")), Some((3, 13, 2)));
        assert_eq!(find(secrets, &name("b"), Target::Entry("secrets", "db")), Some((5, 1, 2)));
        let nowhere = problem("f.toml", FILE, &name("gone"), Target::Header, "m".into(), None);
        assert_eq!((nowhere.line, nowhere.text.as_str()), (0, ""));
    }
}
