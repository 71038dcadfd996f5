//! `env_file`: variables in a file beside the spec, one `KEY=VALUE` a line.
//!
//! Empty lines and lines that begin with `#` say nothing. A value is what stands between `=` and the end of the line,
//! without blanks around it; or a text in single quotes, as it is; or one in double quotes, where `\n`, `\r`, `\t`, `\"`,
//! `\\` and `\$` mean what they mean in a shell. Nothing is expanded. What is unclear is refused: ` #` and quotes within
//! a bare value, blanks around a key, `export`, a key that was set before.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::{Problem, parse::texts_of};
use crate::document::{Get, Problems, Source};

/// Bytes of a file at most.
const MAX_FILE: usize = 64 << 10;
/// Variables of one VPS at most, as `env` has it.
const MAX_VARIABLES: usize = 256;

/// The `env_file`s that a spec file names, as they are written there. None where it is not TOML: `parse` tells of that.
pub fn env_files(text: &str) -> Vec<String> {
    let source = Source { file: "", text };
    let Ok(document) = source.parse() else { return Vec::new() };
    let vpss = document.get_ref().table("vps").into_iter().flat_map(|table| table.values());
    let mut files: Vec<_> =
        vpss.filter_map(|vps| vps.get_ref().as_table()?.text("env_file").map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    files
}

/// Where a file that a spec names is: beside the spec file.
pub fn beside(spec: &str, path: &str) -> String {
    match spec.rsplit_once('/') {
        Some((directory, _)) if !path.starts_with('/') => format!("{directory}/{path}"),
        _ => path.to_owned(),
    }
}

/// What is wrong with the `env_file` of one VPS: its content was not sent, or holds too much beside `env`. What is wrong
/// in the file itself is told by `parse_env`.
pub(super) fn within(
    problems: &mut Problems<'_>,
    file: &str,
    vps: &DeTable<'_>,
    contents: &BTreeMap<String, String>,
    found: &mut Vec<Problem>,
) {
    let Some((path, value)) = vps.text("env_file").zip(vps.get("env_file")) else { return };
    let Some(text) = contents.get(path) else {
        let hint = "the file is read beside the spec file; send its content with it".to_owned();
        return problems.tell(value.span(), format!("the content of `{path}` did not come"), Some(hint));
    };
    match parse_env(&beside(file, path), text) {
        Err(wrong) => found.extend(wrong.into_iter().filter(|problem| !found.contains(problem)).collect::<Vec<_>>()),
        Ok(variables) => {
            let merged = merge(variables, vps);
            let length = |(key, value): (&String, &String)| key.len() + value.len() + 2;
            if merged.len() > MAX_VARIABLES || merged.iter().map(length).sum::<usize>() > MAX_FILE {
                let message = format!("`{path}` and `env` hold more than {MAX_VARIABLES} variables or 64 KiB together");
                problems.tell(value.span(), message, None);
            }
        }
    }
}

/// The environment of one VPS: `env` wins.
pub(super) fn read(vps: &DeTable<'_>, contents: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let text = vps.text("env_file").and_then(|path| contents.get(path));
    merge(text.and_then(|text| parse_env("", text).ok()).unwrap_or_default(), vps)
}

fn merge(mut variables: BTreeMap<String, String>, vps: &DeTable<'_>) -> BTreeMap<String, String> {
    let env = vps.table("env").into_iter().flat_map(|table| texts_of(table));
    variables.extend(env.map(|(key, value)| (key.to_owned(), value.to_owned())));
    variables
}

/// The variables of a file; `file` is its name for messages.
///
/// # Errors
/// All problems that were found, in the order of the file.
pub fn parse_env(file: &str, text: &str) -> Result<BTreeMap<String, String>, Vec<Problem>> {
    let source = Source { file, text };
    if text.len() > MAX_FILE {
        return Err(vec![source.whole("the file is larger than 64 KiB", None)]);
    }
    let mut problems = Problems::new(&source);
    let mut variables = BTreeMap::new();
    let mut lines = BTreeMap::new();
    let mut start = 0;
    for (number, whole) in text.split_inclusive('\n').enumerate() {
        let line = whole.trim_end_matches(['\n', '\r']);
        let (begin, span) = (start, start..start + line.len());
        start += whole.len();
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match variable(line) {
            Err((at, message, hint)) => problems.tell(begin + at..span.end, message, Some(hint.to_owned())),
            Ok((key, value)) => {
                if let Some(before) = lines.insert(key.to_owned(), number + 1) {
                    let message = format!("`{key}` is set in line {before} already");
                    problems.tell(begin..begin + key.len(), message, Some("keep one of the two".to_owned()));
                }
                variables.insert(key.to_owned(), value);
            }
        }
    }
    problems.or(|| Some(variables))
}

/// Where in the line it is wrong, what, and what to write.
type Wrong = (usize, String, &'static str);

fn variable(line: &str) -> Result<(&str, String), Wrong> {
    const WRITE: &str = "write: KEY=VALUE";
    let (key, rest) = line.split_once('=').ok_or_else(|| (0, "a line without `=`".to_owned(), WRITE))?;
    if key.trim_start().starts_with("export ") {
        return Err((0, "`export` means nothing here".to_owned(), WRITE));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.is_empty() || key.len() > 256 || !key.bytes().all(legal) || key.as_bytes()[0].is_ascii_digit() {
        let shown = crate::document::shorten(key, 60);
        return Err((
            0,
            format!("`{shown}` is not a variable's name"),
            "a name is A-Z, a-z, 0-9 and `_`, without blanks",
        ));
    }
    let value = rest.trim();
    let at = line.len() - rest.trim_start().len();
    let text = match value.as_bytes().first() {
        Some(b'\'') => single(value),
        Some(b'"') => double(value),
        _ => bare(value),
    };
    let text = text.map_err(|(offset, message, hint)| (at + offset, message, hint))?;
    if text.contains('\0') {
        return Err((at, "a NUL character cannot be in here".to_owned(), WRITE));
    }
    Ok((key, text))
}

fn bare(value: &str) -> Result<String, Wrong> {
    const QUOTE: &str = "put the value in single quotes";
    if let Some(at) = value.find(" #").or_else(|| value.find("\t#")) {
        return Err((at, "` #` within a value: a comment has a line of its own".to_owned(), QUOTE));
    }
    if let Some(at) = value.find(['"', '\'']) {
        return Err((at, "a quote within a bare value".to_owned(), QUOTE));
    }
    Ok(value.to_owned())
}

fn single(value: &str) -> Result<String, Wrong> {
    match value[1..].split_once('\'') {
        None => Err((0, "the quote is not closed in its line".to_owned(), "write: KEY='VALUE'")),
        Some((text, "")) => Ok(text.to_owned()),
        Some((text, _)) => Err((text.len() + 2, "something follows the quote".to_owned(), "write: KEY='VALUE'")),
    }
}

fn double(value: &str) -> Result<String, Wrong> {
    let mut text = String::new();
    let mut chars = value.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if at + 1 == value.len() => return Ok(text),
            '"' => return Err((at + 1, "something follows the quote".to_owned(), "write: KEY=\"VALUE\"")),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => text.push('\n'),
                Some('r') => text.push('\r'),
                Some('t') => text.push('\t'),
                Some(c @ ('"' | '\\' | '$')) => text.push(c),
                _ => {
                    let hint = "there are \\n, \\r, \\t, \\\", \\\\ and \\$; in single quotes all is as it stands";
                    return Err((at, "`\\` before something it does not change".to_owned(), hint));
                }
            },
            c => text.push(c),
        }
    }
    Err((0, "the quote is not closed in its line".to_owned(), "write: KEY=\"VALUE\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::SpecFile, spec::parse_with};

    #[test]
    fn the_example_in_docs_is_read_as_it_says() {
        let docs = include_str!("../../../../docs/FILES.md");
        let example = docs.split("## env_file").nth(1).and_then(|part| part.split("```").nth(1)).expect("an example");
        let read = parse_env("FILES.md", example).expect("a good file");
        assert_eq!(read["PLAIN"], "everything up to the end of the line, without blanks around it");
        assert_eq!(read["EMPTY"], "");
        assert_eq!(read["SINGLE"], r#"as it is: \n is two characters, # and "quotes" too"#);
        assert!(read["DOUBLE"].starts_with("\n, \r, \t, \", \\ and $ mean"), "{read:?}");
    }

    #[test]
    fn every_form_of_a_line() {
        let text =
            "# about\n\nA=b c\nB='x # \"y\" $A \\n'\nC=\"a\\n\\\"b\\\" \\$A # \"\r\nD=\nE=a=b#c\n_F1=  padded  \n";
        let expected = [
            ("A", "b c"),
            ("B", "x # \"y\" $A \\n"),
            ("C", "a\n\"b\" $A # "),
            ("D", ""),
            ("E", "a=b#c"),
            ("_F1", "padded"),
        ];
        let found = parse_env("x.env", text).expect("a good file");
        assert_eq!(found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_unclear_is_told_with_its_line() {
        let text = "A\nexport B=1\nC D=1\nE=a # b\nF='x\nG=\"x\" y\nH=\"\\q\"\nI=1\nI=2\n1J=x\nK=it's\n";
        let problems = parse_env("dir/x.env", text).expect_err("must be refused");
        let told: Vec<_> =
            problems.iter().map(|p| format!("{}:{}:{} {}", p.file, p.line, p.column, p.message)).collect();
        let expected = [
            "dir/x.env:1:1 a line without `=`",
            "dir/x.env:2:1 `export` means nothing here",
            "dir/x.env:3:1 `C D` is not a variable's name",
            "dir/x.env:4:4 ` #` within a value: a comment has a line of its own",
            "dir/x.env:5:3 the quote is not closed in its line",
            "dir/x.env:6:6 something follows the quote",
            "dir/x.env:7:4 `\\` before something it does not change",
            "dir/x.env:9:1 `I` is set in line 8 already",
            "dir/x.env:10:1 `1J` is not a variable's name",
            "dir/x.env:11:5 a quote within a bare value",
        ];
        assert_eq!(told, expected);
    }

    const SPEC: &str = "tenant = \"a\"\n[vps.b]\nimage = \"debian:\"\ncommand = [\"true\"]\nenv_file = \"b.env\"\nenv = { A = \"own\" }\n";

    #[test]
    fn env_wins_and_what_is_stored_holds_all() {
        assert_eq!(env_files(SPEC), ["b.env"]);
        let with = |env_files| SpecFile {
            name: "d/s.toml".to_owned(),
            text: SPEC.to_owned(),
            env_files,
            ..Default::default()
        };
        let contents = BTreeMap::from([("b.env".to_owned(), "A=file\nB=file\n".to_owned())]);
        let spec = parse_with(&with(contents)).expect("a good spec");
        let env: Vec<_> = spec.vps["b"].env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=own", "B=file"]);
        let told = |contents| parse_with(&with(contents)).expect_err("refused")[0].to_string();
        assert!(told(BTreeMap::new()).contains("s.toml:5:12  the content of `b.env` did not come"));
        assert!(told([("b.env".to_owned(), "B=1\nx\n".to_owned())].into()).contains("d/b.env:2:1  a line without `=`"));
    }
}
