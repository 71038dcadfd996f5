//! `--source` of `logs`: one of the sources of lines, or a file's path.

use std::ffi::OsStr;

use clap::{
    Arg, Command, Error,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use model::log::SOURCES;

#[derive(Clone)]
pub struct Source;

impl TypedValueParser for Source {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        match value.to_str().filter(|text| text.starts_with('/')) {
            Some(path) => Ok(path.to_owned()),
            None => PossibleValuesParser::new(SOURCES).parse_ref(command, argument, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(SOURCES.into_iter().map(PossibleValue::new)))
    }
}
