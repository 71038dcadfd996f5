//! What differs between two specs, in the words of spec files.

use std::collections::BTreeMap;

use model::{VpsName, VpsSpec, api::FieldChange, spec::render};

/// Fields that count at once; all others at the next start.
const AT_ONCE: [&str; 10] =
    ["allow", "egress", "idle", "ignore", "job", "labels", "routes", "restart", "start_deadline", "wants"];

/// The fields that differ, by their full names; `old` none: everything is new.
pub fn fields(name: &VpsName, old: Option<&VpsSpec>, new: &VpsSpec) -> Vec<FieldChange> {
    let before = old.map(|spec| flat(name, spec)).unwrap_or_default();
    let after = flat(name, new);
    let mut keys: Vec<_> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    let change = |key: &String| {
        let (old, new) = (before.get(key).cloned(), after.get(key).cloned());
        (old != new).then(|| FieldChange { field: key.clone(), old, new })
    };
    keys.into_iter().filter_map(change).collect()
}

/// Whether a running VPS has to be started again before that change counts.
pub fn needs_start(change: &FieldChange) -> bool {
    let top = change.field.split('.').next().unwrap_or_default();
    !AT_ONCE.contains(&top)
}

/// `limits.memory` → `"512MiB"`, and so on.
fn flat(name: &VpsName, spec: &VpsSpec) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    // What `render` writes parses: a test of its own crate holds that.
    let Ok(document) = render(name, spec).parse::<toml::Table>() else { return out };
    for (key, value) in document {
        match (key.as_str(), value) {
            ("vps", toml::Value::Table(mut all)) => {
                if let Some(toml::Value::Table(fields)) = all.remove(name.as_str()) {
                    flatten("", fields, &mut out);
                }
            }
            (_, toml::Value::Table(inner)) => flatten(&key, inner, &mut out),
            (_, value) => drop(out.insert(key, show(&value))),
        }
    }
    out
}

fn flatten(prefix: &str, table: toml::Table, out: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let bare = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let key = if bare { key } else { toml::Value::String(key).to_string() };
        let full = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&full, inner, out),
            value => drop(out.insert(full, show(&value))),
        }
    }
}

/// One line, also of a text of several; the whole of a long one is in the spec.
fn show(value: &toml::Value) -> String {
    const LONGEST: usize = 120;
    let text = match value {
        toml::Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
        value => value.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::spec;

    #[test]
    fn differences_have_the_names_a_person_writes() {
        let name: VpsName = "blog".parse().unwrap();
        let old = spec("acme", &[("http://a.example", 80)]);
        let mut new = old.clone();
        assert!(fields(&name, Some(&old), &new).is_empty());
        new.limits.memory = Some(512 << 20);
        new.routes = spec("acme", &[("http://b.example", 80)]).routes;
        let found = fields(&name, Some(&old), &new);
        let names: Vec<_> = found.iter().map(|f| (f.field.as_str(), needs_start(f))).collect();
        let expected =
            [("limits.memory", true), ("routes.\"http://a.example\"", false), ("routes.\"http://b.example\"", false)];
        assert_eq!(names, expected);
        assert_eq!((found[0].old.as_deref(), found[0].new.as_deref()), (None, Some("\"512MiB\"")));
        new.files.insert("/a".into(), "one\ntwo\n".into());
        let file = fields(&name, Some(&old), &new).remove(0);
        assert_eq!((file.field.as_str(), file.new.as_deref()), ("files.\"/a\"", Some("\"one\\ntwo\\n\"")));
        assert!(fields(&name, None, &new).iter().any(|f| f.field == "image" && f.old.is_none()));
    }
}
