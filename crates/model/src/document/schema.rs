//! The JSON schema of a table of fields (draft 2020-12).

use serde_json::{Value, json};

use super::{Fields, Kind, Word};

/// The schema of a whole file.
pub(crate) fn schema(title: &str, about: &str, fields: &Fields) -> String {
    let mut schema = table(fields);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(title);
    schema["description"] = json!(about);
    format!("{schema:#}\n")
}

fn table(fields: &Fields) -> Value {
    let mut properties = serde_json::Map::new();
    for field in fields.fields {
        let mut property = kind(&field.kind);
        property["description"] = match field.default {
            Some(default) => json!(format!("{} Default: {default}.", field.about)),
            None => json!(field.about),
        };
        properties.insert(field.name.to_owned(), property);
    }
    let required: Vec<_> = fields.fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

fn kind(of: &Kind) -> Value {
    match of {
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number(min, max) => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::Word(of) => word(of),
        Kind::Choice(choices) => json!({ "enum": choices }),
        Kind::List(each, most) => json!({ "type": "array", "items": kind(each), "maxItems": most }),
        Kind::Map(key, each, most) => json!({
            "type": "object", "propertyNames": word(key), "additionalProperties": kind(each), "maxProperties": most,
        }),
        Kind::Table(fields) => table(fields),
        Kind::Either(kinds) => json!({ "anyOf": kinds.iter().map(kind).collect::<Vec<_>>() }),
    }
}

fn word(of: &Word) -> Value {
    match of.pattern {
        Some(pattern) => json!({ "type": "string", "pattern": pattern }),
        None => json!({ "type": "string" }),
    }
}
