//! `apply`: what spec files say is made, all or nothing. Missing images are built first, so that the change itself is quick.

use std::{collections::BTreeMap, io::Read, path::Path};

use model::{
    api::{ApplyAnswer, ApplyRequest, Change, ChangeKind, ErrorAnswer, ErrorKind, SpecFile},
    spec::Problem,
};

use super::{images, sent::Local};
use crate::{
    arguments::Apply,
    client::Host,
    failure::{Failure, Result},
    output::{self, harmless, paint},
};

/// How often images that went again before they were used are made.
const TRIES: u32 = 3;
/// Bytes of a file at most, as the parser of specs has it.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of an `env_file` at most.
const MAX_ENV_FILE: u64 = 64 << 10;

/// Applies files.
pub async fn run(host: &Host, apply: Apply) -> Result<()> {
    let mut locals = BTreeMap::new();
    let files = apply.files.iter().map(|path| read(path, &mut locals)).collect::<Result<Vec<_>>>()?;
    let mut request = ApplyRequest { files, dry_run: true, take_routes: apply.take_routes };
    let mut answer: ApplyAnswer = host.post("/v1/apply", &request).await?;
    let mut tries = 0;
    while request.dry_run && !apply.dry_run {
        for image in &answer.missing_images {
            let built = match locals.get(image) {
                Some(local) => images::send(host, local, false, true).await,
                None => images::build(host, image, false, true).await,
            };
            built.map_err(|failure| placed(failure, image, &request.files))?;
        }
        tries += 1;
        request.dry_run = false;
        answer = match host.post("/v1/apply", &request).await {
            // Nobody used the image yet, and somebody pruned: once more.
            Err(failure) if failure.is_missing() && tries < TRIES => {
                request.dry_run = true;
                host.post("/v1/apply", &request).await?
            }
            answer => answer?,
        };
    }
    if apply.form.json {
        return output::json(&answer);
    }
    output::own(&show(&answer, apply.dry_run, output::colored()))
}

/// A file, and the archives and directories that it names, by the images they are.
fn read(path: &Path, locals: &mut BTreeMap<String, Local>) -> Result<SpecFile> {
    let mut file = read_text(path)?;
    let base = if path == Path::new("-") { None } else { path.parent() };
    for (written, kind, at) in model::spec::image_paths(&file.text) {
        let local = Local::read(kind, &at, base.unwrap_or(Path::new("")), None);
        let local = local.map_err(|failure| placed(failure, &written, std::slice::from_ref(&file)))?;
        file.images.insert(written, local.image.clone());
        locals.insert(local.image.to_string(), local);
    }
    Ok(file)
}

fn read_text(path: &Path) -> Result<SpecFile> {
    let standard = path == Path::new("-");
    let name = if standard { "standard input".to_owned() } else { path.display().to_string() };
    let mut bytes = Vec::new();
    let read = if standard {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
    };
    let wrong = |kind, message: String| Failure::new(kind, format!("{name}: {message}; nothing was changed"));
    read.map_err(|error| wrong(ErrorKind::Invalid, error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong(ErrorKind::Invalid, "larger than 1 MiB".to_owned()));
    }
    let text = text_of(&name, bytes)?;
    let mut env_files = BTreeMap::new();
    for file in model::spec::env_files(&text) {
        let beside = if standard { file.clone() } else { model::spec::beside(&name, &file) };
        let wrong = |error: std::io::Error| {
            Failure::new(ErrorKind::Invalid, format!("env_file {beside}: {error}; nothing was changed"))
                .next(format!("{name} names it; it is looked for beside that file"))
        };
        let mut bytes = Vec::new();
        std::fs::File::open(&beside)
            .and_then(|opened| opened.take(MAX_ENV_FILE + 1).read_to_end(&mut bytes))
            .map_err(wrong)?;
        env_files.insert(file, text_of(&beside, bytes)?);
    }
    Ok(SpecFile { name, text, env_files, images: BTreeMap::new() })
}

fn text_of(file: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| not_text(file.to_owned(), &error))
}

/// How `file` writes an image that was read from a path.
fn written<'a>(file: &'a SpecFile, image: &'a str) -> &'a str {
    let sent = file.images.iter().find(|(_, sent)| sent.to_string() == image);
    sent.map_or(image, |(written, _)| written)
}

/// A failed build of `image`, said where a file names that image.
fn placed(failure: Failure, image: &str, files: &[SpecFile]) -> Failure {
    let found = files.iter().find_map(|file| {
        let place = file.text.lines().enumerate().find_map(|(index, text)| {
            let key = text.split_once('=').is_some_and(|(key, _)| key.trim() == "image");
            let at = text.find(&format!("\"{}\"", written(file, image))).filter(|_| key)?;
            Some((index + 1, at, text))
        });
        place.map(|(line, at, text)| Problem {
            file: file.name.clone(),
            line,
            column: text[..at].chars().count() + 1,
            width: written(file, image).chars().count() + 2,
            text: text.to_owned(),
            message: String::new(),
            hint: None,
        })
    });
    match found {
        Some(problem) => failure.at(problem),
        None => failure,
    }
}

/// A file that is not UTF-8, with the place where it stops being it.
fn not_text(file: String, error: &std::string::FromUtf8Error) -> Failure {
    let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
    let last = good.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let problem = Problem {
        file,
        line,
        column: String::from_utf8_lossy(last).chars().count() + 1,
        width: 1,
        text: String::new(),
        message: "not UTF-8 text".to_owned(),
        hint: None,
    };
    ErrorAnswer { message: String::new(), next: None, problems: vec![problem], kind: ErrorKind::Invalid }.into()
}

fn show(answer: &ApplyAnswer, dry_run: bool, color: bool) -> String {
    let mut text = String::new();
    for change in &answer.changes {
        text.push_str(&show_change(change, color));
    }
    if dry_run {
        for image in &answer.missing_images {
            text.push_str(&format!("image {} would be built\n", harmless(image)));
        }
    }
    let count = |kind: ChangeKind| answer.changes.iter().filter(|change| change.kind == kind).count();
    let (created, changed, same) = (count(ChangeKind::Create), count(ChangeKind::Change), count(ChangeKind::None));
    let (create, change) = if dry_run { ("to create", "to change") } else { ("created", "changed") };
    let all = [(created, create), (changed, change), (same, "as they were")];
    let parts: Vec<_> = all.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    text.push_str(&if parts.is_empty() { "no VPSs in there".to_owned() } else { parts.join(", ") });
    let warnings: String = answer.warnings.iter().map(|warning| format!("note: {}\n", harmless(warning))).collect();
    text.push_str(if dry_run { "; nothing was changed\n" } else { "\n" });
    text.push_str(&warnings);
    text
}

fn show_change(change: &Change, color: bool) -> String {
    let name = &change.vps;
    let mut text = match change.kind {
        ChangeKind::Create => format!("{} {name}\n", paint(color, "32", "+")),
        ChangeKind::Change => format!("{} {name}\n", paint(color, "33", "~")),
        ChangeKind::None => format!("  {name} is as it should be\n"),
    };
    for field in &change.fields {
        let line = |mark: &str, code: &str, value: &str| {
            paint(color, code, &format!("    {mark} {} = {}", harmless(&field.field), harmless(value))) + "\n"
        };
        text.extend(field.old.iter().map(|old| line("-", "31", old)));
        text.extend(field.new.iter().map(|new| line("+", "32", new)));
    }
    for secret in &change.secrets {
        text.push_str(&format!("    secret {secret} was set since it was started\n"));
    }
    if change.at_next_start || !change.secrets.is_empty() {
        text.push_str(&format!("    at its next start: bailiwick restart {name}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> ApplyAnswer {
        let value = json!({
            "changes": [
                { "vps": "blog", "kind": "change", "at_next_start": true, "fields": [
                    { "field": "limits.memory", "old": "\"512MiB\"", "new": "\"1GiB\"" },
                    { "field": "user", "old": null, "new": "\"www-data\"" },
                ] },
                { "vps": "db", "kind": "create" },
                { "vps": "shop", "kind": "none" },
            ],
            "missing_images": ["debian:redis-server"],
        });
        serde_json::from_value(value).expect("an answer")
    }

    #[test]
    fn changes_are_shown_like_a_difference() {
        let expected = "\
~ blog
    - limits.memory = \"512MiB\"
    + limits.memory = \"1GiB\"
    + user = \"www-data\"
    at its next start: bailiwick restart blog
+ db
  shop is as it should be
1 created, 1 changed, 1 as they were
";
        assert_eq!(show(&answer(), false, false), expected);
        let dry = show(&answer(), true, false);
        assert!(dry.ends_with("image debian:redis-server would be built\n1 to create, 1 to change, 1 as they were; nothing was changed\n"), "{dry}");
    }

    #[test]
    fn an_image_that_cannot_be_built_has_a_place() {
        let text = "tenant = \"acme\"\n[vps.a]\nimage = \"debian:nginx-lite\"\n".to_owned();
        let file = SpecFile { name: "s.toml".to_owned(), text, ..Default::default() };
        let failure = Failure::new(ErrorKind::NotFound, "no such package").next("look");
        let expected = "error: 1 problem in s.toml; nothing was changed\n\n\
            s.toml:3:9  no such package\n  \
              3 | image = \"debian:nginx-lite\"\n    \
                | ^^^^^^^^^^^^^^^^^^^ look\n";
        let told = placed(failure, "debian:nginx-lite", &[file]).text(false);
        assert_eq!(told.replace("|         ^", "| ^"), expected);
    }

    #[test]
    fn a_file_that_is_not_text_has_a_place() {
        let error = String::from_utf8(b"tenant = \"acme\"\nimage = \"\xff\"\n".to_vec()).expect_err("not UTF-8");
        let text = not_text("s.toml".to_owned(), &error).text(false);
        assert!(text.contains("s.toml:2:10  not UTF-8 text"), "{text}");
    }
}
