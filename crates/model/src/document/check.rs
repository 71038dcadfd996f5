//! Checks a document against a table of fields and tells everything that does not fit.

use std::ops::Range;

use toml::de::DeTable;

use super::{Field, Fields, Kind, Problems, Value, Word, integer, nearest::nearest, number};

/// Tells what in a whole file does not fit.
pub(crate) fn check(problems: &mut Problems<'_>, file: &DeTable<'_>, fields: &Fields) {
    Check { problems }.table("", 0..0, file, fields);
}

struct Check<'a, 'b> {
    problems: &'a mut Problems<'b>,
}

impl Check<'_, '_> {
    fn table(&mut self, place: &str, span: Range<usize>, table: &DeTable<'_>, fields: &Fields) {
        let mut meant = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match fields.fields.iter().find(|field| field.name == name) {
                Some(field) => self.value(&inner(place, name), name, key.span(), value, &field.kind),
                None => meant.extend(self.unknown(place, name, key.span(), value, fields)),
            }
        }
        // Who wrote `comand` knows that a command is needed.
        let missing =
            |field: &&Field| field.required && !table.contains_key(field.name) && !meant.contains(&field.name);
        for field in fields.fields.iter().filter(missing) {
            let message = format!("`{}` is missing{}", field.name, of(place));
            let hint = Some(match field.kind {
                Kind::Map(_, Kind::Table(_), _) => format!("write: [{}.NAME] and its fields under it", field.name),
                _ => format!("write: {} = …, {}", field.name, field.kind.expected()),
            });
            // What the file lacks has no place in it.
            if place.is_empty() {
                self.problems.tell_whole(message, hint);
            } else {
                self.problems.tell(span.clone(), message, hint);
            }
        }
    }

    /// Tells of a field that is not there; answers the one that was probably meant.
    fn unknown(
        &mut self,
        place: &str,
        name: &str,
        key: Range<usize>,
        value: &Value<'_>,
        fields: &Fields,
    ) -> Option<&'static str> {
        let shown = shorten(name);
        if let Some((_, instead)) = fields.later.iter().find(|(later, _)| *later == name) {
            self.problems.tell(key, format!("`{name}` is not there yet{}", of(place)), Some((*instead).to_owned()));
            return None;
        }
        let known = fields.fields.iter().map(|field| field.name);
        let mut meant = None;
        let hint = if let Some(outer) = holder(fields, name) {
            let value = self.problems.source.written(value.span()).unwrap_or("…");
            format!("write: {outer} = {{ {name} = {value} }}")
        } else if let Some(outer) = named_holder(fields, name) {
            format!("write it under [{outer}.NAME]")
        } else if let Some((_, ours)) = fields.otherwise.iter().find(|(other, _)| *other == name) {
            (*ours).to_owned()
        } else {
            meant = nearest(name, known.clone());
            match meant {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
            }
        };
        self.problems.tell(key, format!("unknown field `{shown}`{}", of(place)), Some(hint));
        meant
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
                    self.problems.tell(value.span(), message, Some(format!("expected {}", kind.expected())));
                }
            }
            Kind::List(each, most) if data.is_array() => {
                let list = data.as_array().map_or(&[][..], |list| list);
                if list.len() > *most {
                    self.problems.tell(
                        value.span(),
                        format!("`{name}` holds {} values, at most {most}", list.len()),
                        None,
                    );
                }
                list.iter().take(*most).for_each(|one| self.value(place, name, one.span(), one, each));
            }
            Kind::Map(key_word, each, most) if data.is_table() => {
                let Some(table) = data.as_table() else { return };
                if table.len() > *most {
                    self.problems.tell(key, format!("`{name}` holds {} entries, at most {most}", table.len()), None);
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
            self.problems.tell(span, message, None);
        }
    }

    fn out_of_range(&mut self, name: &str, value: &Value<'_>, kind: &Kind) {
        let shown = self.problems.source.written(value.span()).unwrap_or("this").to_owned();
        let message = format!("`{}` cannot be {shown}", shorten(name));
        self.problems.tell(value.span(), message, Some(format!("expected {}", kind.expected())));
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
        self.problems.tell(value.span(), message, Some(format!("expected {}", kind.expected())));
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
    super::shorten(text, 80)
}
