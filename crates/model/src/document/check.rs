//! Checks a document against a table of fields and tells everything that does not fit.

use std::ops::Range;

use toml::de::DeTable;

use super::{Field, Fields, Kind, Source, Value, Word, integer, nearest::nearest, number};
use crate::spec::Problem;

/// All problems of `table`, whose own place in the file is `span`.
pub(crate) fn check(source: &Source<'_>, table: &DeTable<'_>, span: Range<usize>, fields: &Fields) -> Vec<Problem> {
    let mut check = Check { source, problems: Vec::new() };
    check.table("", span, table, fields);
    check.problems
}

struct Check<'a> {
    source: &'a Source<'a>,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn tell(&mut self, span: Range<usize>, message: String, hint: Option<String>) {
        self.problems.push(self.source.problem(span, message, hint));
    }

    fn table(&mut self, place: &str, span: Range<usize>, table: &DeTable<'_>, fields: &Fields) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match fields.fields.iter().find(|field| field.name == name) {
                Some(field) => self.value(&inner(place, name), name, key.span(), value, &field.kind),
                None => self.unknown(place, name, key.span(), value, fields),
            }
        }
        for field in fields.fields.iter().filter(|f| f.required && !table.contains_key(f.name)) {
            let hint = format!("write: {} = …, {}", field.name, field.kind.expected());
            self.tell(span.clone(), format!("`{}` is missing{}", field.name, of(place)), Some(hint));
        }
    }

    fn unknown(&mut self, place: &str, name: &str, key: Range<usize>, value: &Value<'_>, fields: &Fields) {
        let shown = shorten(name);
        if let Some((_, instead)) = fields.later.iter().find(|(later, _)| *later == name) {
            return self.tell(key, format!("`{name}` is not there yet{}", of(place)), Some((*instead).to_owned()));
        }
        let known = fields.fields.iter().map(|field| field.name);
        let other = fields.otherwise.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours);
        let hint = if let Some(outer) = holder(fields, name) {
            let value = self.source.written(value.span()).unwrap_or("…");
            Some(format!("write: {outer} = {{ {name} = {value} }}"))
        } else if let Some(outer) = named_holder(fields, name) {
            Some(format!("write it under [{outer}.NAME]"))
        } else if let Some(ours) = other {
            Some(ours.to_owned())
        } else {
            let near = nearest(name, known.clone()).map(|near| format!("did you mean `{near}`?"));
            near.or_else(|| Some(format!("there are {}", known.collect::<Vec<_>>().join(", "))))
        };
        self.tell(key, format!("unknown field `{shown}`{}", of(place)), hint);
    }

    fn value(&mut self, place: &str, name: &str, key: Range<usize>, value: &Value<'_>, kind: &Kind) {
        let data = value.get_ref();
        match kind {
            Kind::Boolean if data.is_bool() => {}
            Kind::Integer(min, max) if data.is_integer() => {
                if !integer(value).is_some_and(|n| (*min..=*max).contains(&n)) {
                    self.out_of_range(name, value, kind);
                }
            }
            Kind::Number(min, max) if data.is_integer() || data.is_float() => {
                if !number(value).is_some_and(|n| (*min..=*max).contains(&n)) {
                    self.out_of_range(name, value, kind);
                }
            }
            Kind::Word(word) if data.is_str() => self.word(data.as_str().unwrap_or_default(), value.span(), word),
            Kind::Choice(choices) if data.is_str() => {
                let text = data.as_str().unwrap_or_default();
                if !choices.contains(&text) {
                    let message = format!("`{name}` cannot be \"{}\"", shorten(text));
                    self.tell(value.span(), message, Some(format!("expected {}", kind.expected())));
                }
            }
            Kind::List(each, most) if data.is_array() => {
                let list = data.as_array().map_or(&[][..], |list| list);
                if list.len() > *most {
                    self.tell(value.span(), format!("`{name}` holds {} values, at most {most}", list.len()), None);
                }
                list.iter().take(*most).for_each(|one| self.value(place, name, one.span(), one, each));
            }
            Kind::Map(key_word, each, most) if data.is_table() => {
                let Some(table) = data.as_table() else { return };
                if table.len() > *most {
                    self.tell(key, format!("`{name}` holds {} entries, at most {most}", table.len()), None);
                }
                for (key, one) in table.iter().take(*most) {
                    let text = key.get_ref().as_ref();
                    self.word(text, key.span(), key_word);
                    self.value(&inner(place, text), text, key.span(), one, each);
                }
            }
            Kind::Table(fields) if data.is_table() => {
                if let Some(table) = data.as_table() {
                    self.table(place, key, table, fields);
                }
            }
            Kind::Either(kinds) => match kinds.iter().find(|kind| same_type(kind, value)) {
                Some(kind) => self.value(place, name, key, value, kind),
                None => self.wrong_type(name, value, kind),
            },
            _ => self.wrong_type(name, value, kind),
        }
    }

    fn word(&mut self, text: &str, span: Range<usize>, word: &Word) {
        if let Err(message) = (word.check)(text) {
            let message = if message.len() > 400 { shorten(&message) } else { message };
            self.tell(span, message, None);
        }
    }

    fn out_of_range(&mut self, name: &str, value: &Value<'_>, kind: &Kind) {
        let shown = self.source.written(value.span()).unwrap_or("this").to_owned();
        let message = format!("`{}` cannot be {shown}", shorten(name));
        self.tell(value.span(), message, Some(format!("expected {}", kind.expected())));
    }

    fn wrong_type(&mut self, name: &str, value: &Value<'_>, kind: &Kind) {
        let is = match value.get_ref().type_str() {
            "string" => "a text",
            "integer" | "float" => "a number",
            "boolean" => "true or false",
            "array" => "a list",
            "table" => "a table",
            _ => "a date",
        };
        let message = format!("`{}` cannot be {is}", shorten(name));
        self.tell(value.span(), message, Some(format!("expected {}", kind.expected())));
    }
}

fn same_type(kind: &Kind, value: &Value<'_>) -> bool {
    let data = value.get_ref();
    match kind {
        Kind::Boolean => data.is_bool(),
        Kind::Integer(..) => data.is_integer(),
        Kind::Number(..) => data.is_integer() || data.is_float(),
        Kind::Word(_) | Kind::Choice(_) => data.is_str(),
        Kind::List(..) => data.is_array(),
        Kind::Map(..) | Kind::Table(_) => data.is_table(),
        Kind::Either(kinds) => kinds.iter().any(|kind| same_type(kind, value)),
    }
}

/// The field of `fields` whose table holds a field `name`: where it should have been written.
fn holder(fields: &Fields, name: &str) -> Option<&'static str> {
    let holds = |field: &&Field| match &field.kind {
        Kind::Table(inner) => inner.fields.iter().any(|f| f.name == name),
        Kind::Either(kinds) => kinds.iter().any(|kind| match kind {
            Kind::Table(inner) => inner.fields.iter().any(|f| f.name == name),
            _ => false,
        }),
        _ => false,
    };
    fields.fields.iter().find(holds).map(|field| field.name)
}

/// The same for a table of tables that the person named.
fn named_holder(fields: &Fields, name: &str) -> Option<&'static str> {
    let holds = |field: &&Field| match &field.kind {
        Kind::Map(_, Kind::Table(inner), _) => inner.fields.iter().any(|f| f.name == name),
        _ => false,
    };
    fields.fields.iter().find(holds).map(|field| field.name)
}

fn inner(place: &str, name: &str) -> String {
    let name = shorten(name);
    if place.is_empty() { name } else { format!("{place}.{name}") }
}

fn of(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" in [{place}]") }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        text.to_owned()
    } else {
        format!("{}…", text.chars().take(80).collect::<String>())
    }
}
