//! One line of JSON (RFC 8259): its validity and the fields asked for.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Fields, LineFault, check_external_id};

/// Whether a line holds nothing but JSON's white space.
pub(super) fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}

/// The external id and the payload of a line that is not blank.
pub(super) fn parse(
    line: &[u8],
    fields: &Fields,
    max_payload_bytes: usize,
) -> Result<(Option<String>, Vec<u8>), LineFault> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let column = error.valid_up_to() + 1;
        LineFault::NotJson { problem: format!("not UTF-8 at column {column}") }
    })?;
    let found = find_fields(text, fields)?;
    let external_id = match &fields.id {
        Some(field) => Some(read_id(field, found.id.the_one(field)?)?),
        None => None,
    };
    let payload = match &fields.payload {
        Some(field) => read_payload(field, found.payload.the_one(field)?)?,
        None => line.to_vec(),
    };
    if payload.len() > max_payload_bytes {
        return Err(LineFault::PayloadTooLarge { max: max_payload_bytes });
    }
    Ok((external_id, payload))
}

fn read_id(field: &str, value: &RawValue) -> Result<String, LineFault> {
    let text = value.get();
    match kind_of(text) {
        Kind::String => check_external_id(unescape(text)?),
        // The digits as they stand, so that no integer is too large to be exact.
        Kind::Integer => check_external_id(text.to_owned()),
        kind => Err(LineFault::FieldType {
            field: field.to_owned(),
            found: kind.as_str(),
            wanted: "a string or an integer",
        }),
    }
}

fn read_payload(field: &str, value: &RawValue) -> Result<Vec<u8>, LineFault> {
    match kind_of(value.get()) {
        Kind::String => unescape(value.get()).map(String::into_bytes),
        kind => Err(LineFault::FieldType {
            field: field.to_owned(),
            found: kind.as_str(),
            wanted: "a string",
        }),
    }
}

fn unescape(text: &str) -> Result<String, LineFault> {
    serde_json::from_str(text).map_err(|error| not_json(&error))
}

fn find_fields<'j>(text: &'j str, fields: &Fields) -> Result<Found<'j>, LineFault> {
    let asked = fields.id.as_ref().or(fields.payload.as_ref());
    let kind = kind_of(text.trim_start_matches([' ', '\t', '\r']));
    match asked {
        Some(_) if kind == Kind::Object => {
            let mut json = serde_json::Deserializer::from_str(text);
            let found =
                json.deserialize_map(Object { fields }).map_err(|error| not_json(&error))?;
            json.end().map_err(|error| not_json(&error))?;
            Ok(found)
        }
        _ => {
            serde_json::from_str::<IgnoredAny>(text).map_err(|error| not_json(&error))?;
            match asked {
                Some(field) => {
                    Err(LineFault::NotAnObject { field: field.clone(), found: kind.as_str() })
                }
                None => Ok(Found::default()),
            }
        }
    }
}

fn not_json(error: &serde_json::Error) -> LineFault {
    let problem = error.to_string();
    // Its line is always 1, and would be taken for the file's.
    let problem = problem.replace(" at line 1 column ", " at column ");
    LineFault::NotJson { problem }
}

/// The fields asked for, as they were found.
#[derive(Default)]
struct Found<'j> {
    id: Member<'j>,
    payload: Member<'j>,
}

#[derive(Default)]
struct Member<'j> {
    value: Option<&'j RawValue>,
    is_repeated: bool,
}

impl<'j> Member<'j> {
    fn add(&mut self, value: &'j RawValue) {
        self.is_repeated = self.value.replace(value).is_some();
    }

    fn the_one(&self, field: &str) -> Result<&'j RawValue, LineFault> {
        match self.value {
            _ if self.is_repeated => Err(LineFault::FieldRepeated { field: field.to_owned() }),
            None => Err(LineFault::FieldMissing { field: field.to_owned() }),
            Some(value) => Ok(value),
        }
    }
}

struct Object<'f> {
    fields: &'f Fields,
}

impl<'j> Visitor<'j> for Object<'_> {
    type Value = Found<'j>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'j>>(self, mut map: A) -> Result<Found<'j>, A::Error> {
        let mut found = Found::default();
        while let Some(asked) = map.next_key_seed(Name { fields: self.fields })? {
            if !asked.as_id && !asked.as_payload {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = map.next_value::<&RawValue>()?;
            if asked.as_id {
                found.id.add(value);
            }
            if asked.as_payload {
                found.payload.add(value);
            }
        }
        Ok(found)
    }
}

/// Reads a member's name and compares it, without keeping it.
struct Name<'f> {
    fields: &'f Fields,
}

struct Asked {
    as_id: bool,
    as_payload: bool,
}

impl<'j> DeserializeSeed<'j> for Name<'_> {
    type Value = Asked;

    fn deserialize<D: Deserializer<'j>>(self, deserializer: D) -> Result<Asked, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Asked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Asked, E> {
        let is = |field: &Option<String>| field.as_deref() == Some(name);
        Ok(Asked { as_id: is(&self.fields.id), as_payload: is(&self.fields.payload) })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Object,
    Array,
    String,
    Integer,
    Fraction,
    Boolean,
    Null,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Object => "an object",
            Kind::Array => "an array",
            Kind::String => "a string",
            Kind::Integer => "an integer",
            Kind::Fraction => "a number with a fraction or an exponent",
            Kind::Boolean => "a boolean",
            Kind::Null => "null",
        }
    }
}

/// The type of a value that is known to be JSON, or is going to be checked.
fn kind_of(text: &str) -> Kind {
    match text.bytes().next() {
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b'"') => Kind::String,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'n') => Kind::Null,
        _ if text.contains(['.', 'e', 'E']) => Kind::Fraction,
        _ => Kind::Integer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 100;

    fn parse_with(
        line: &str,
        id: Option<&str>,
        payload: Option<&str>,
    ) -> Result<(Option<String>, Vec<u8>), LineFault> {
        let fields = Fields { id: id.map(str::to_owned), payload: payload.map(str::to_owned) };
        parse(line.as_bytes(), &fields, MAX)
    }

    fn fault_of(line: &str, id: Option<&str>, payload: Option<&str>) -> String {
        parse_with(line, id, payload).expect_err(line).to_string()
    }

    #[test]
    fn without_fields_the_payload_is_the_line_and_any_json_value_will_do() {
        for line in ["{\"a\" : 1}\r", " [1, 2]", "\"x\"", "-1.5e999", "null", "{\"a\":1,\"a\":2}"] {
            assert_eq!(parse_with(line, None, None), Ok((None, line.as_bytes().to_vec())));
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_column() {
        assert_eq!(
            fault_of("{\"a\":1} x", None, None),
            "not valid JSON: trailing characters at column 9"
        );
        assert_eq!(
            fault_of("{\"a\":1} x", Some("a"), None),
            "not valid JSON: trailing characters at column 9"
        );
        for line in ["{\"a\":", "{'a':1}", "nul", "01", "{\"a\":1,}", "\u{feff}{}", "\x0b"] {
            assert!(fault_of(line, None, None).starts_with("not valid JSON: "), "{line:?}");
        }
        let broken = parse(b"{\"a\":\"\xff\"}", &Fields::default(), MAX).expect_err("not UTF-8");
        assert_eq!(broken.to_string(), "not valid JSON: not UTF-8 at column 7");
    }

    #[test]
    fn a_payload_field_gives_its_unescaped_bytes() {
        let line = r#"{"id":"r-1","skip":[{"body":1}],"body":"a\u0000\né\ud83d\ude00\""}"#;
        let expected = "a\0\né😀\"".as_bytes().to_vec();
        assert_eq!(parse_with(line, Some("id"), Some("body")), Ok((Some("r-1".into()), expected)));
        assert_eq!(parse_with(r#"{"body":""}"#, None, Some("body")), Ok((None, Vec::new())));
        assert_eq!(parse_with(r#"{"b\u006fdy":"x"}"#, None, Some("body")), Ok((None, b"x".into())));
        assert_eq!(
            parse_with(r#"{"a":"x"}"#, Some("a"), Some("a")),
            Ok((Some("x".into()), b"x".into()))
        );
    }

    #[test]
    fn an_integer_id_keeps_its_digits_however_many_they_are() {
        for digits in ["0", "-7", "9007199254740993", "123456789012345678901234567890"] {
            let line = format!("{{\"id\": {digits} }}");
            let (id, payload) = parse_with(&line, Some("id"), None).expect("a record");
            assert_eq!(id.as_deref(), Some(digits));
            assert_eq!(payload, line.as_bytes());
        }
    }

    #[test]
    fn a_field_of_another_type_is_refused_by_name_and_type() {
        for (value, found) in [
            ("null", "null"),
            ("true", "a boolean"),
            ("[1]", "an array"),
            ("{}", "an object"),
            ("1.0", "a number with a fraction or an exponent"),
            ("1e3", "a number with a fraction or an exponent"),
        ] {
            let line = format!("{{\"f\":{value}}}");
            assert_eq!(
                fault_of(&line, Some("f"), None),
                format!("the field \"f\" is {found}; it must be a string or an integer")
            );
            assert_eq!(
                fault_of(&line, None, Some("f")),
                format!("the field \"f\" is {found}; it must be a string")
            );
        }
        assert_eq!(
            fault_of("{\"f\":12}", None, Some("f")),
            "the field \"f\" is an integer; it must be a string"
        );
    }

    #[test]
    fn a_missing_or_repeated_field_is_refused_by_name() {
        assert_eq!(fault_of("{\"a\":1}", Some("f"), None), "the field \"f\" is missing");
        assert_eq!(fault_of("{}", None, Some("f")), "the field \"f\" is missing");
        for line in [r#"{"f":"1","f":"1"}"#, r#"{"f":"1","\u0066":"2"}"#, r#"{"f":1,"f":2,"f":3}"#]
        {
            let expected = "the field \"f\" stands there more than once";
            assert_eq!(fault_of(line, Some("f"), None), expected);
            assert_eq!(fault_of(line, None, Some("f")), expected);
        }
    }

    #[test]
    fn a_field_needs_an_object() {
        assert_eq!(
            fault_of(" [1]", Some("f"), None),
            "the line is an array; an object with the field \"f\" is needed"
        );
        assert!(fault_of(" [1", Some("f"), None).starts_with("not valid JSON: "));
    }

    #[test]
    fn an_external_id_is_not_empty_nor_too_long_and_holds_no_nul() {
        assert_eq!(fault_of(r#"{"f":""}"#, Some("f"), None), "the external id is empty");
        assert_eq!(
            fault_of(r#"{"f":"a\u0000"}"#, Some("f"), None),
            "the external id holds a NUL character"
        );
        let with_id =
            |length: usize| format!("{{\"f\":\"{}\",\"p\":\"\"}}", "é".repeat(length / 2));
        assert!(parse_with(&with_id(1024), Some("f"), Some("p")).is_ok());
        assert_eq!(
            fault_of(&with_id(1026), Some("f"), Some("p")),
            "the external id is longer than the 1024 bytes allowed"
        );
    }

    #[test]
    fn the_limit_counts_the_unescaped_payload() {
        let with_payload = |length: usize| format!("{{\"p\":\"{}\"}}", "\\n".repeat(length));
        assert!(parse_with(&with_payload(MAX), None, Some("p")).is_ok());
        assert_eq!(
            fault_of(&with_payload(MAX + 1), None, Some("p")),
            "the payload is larger than the 100 bytes allowed"
        );
    }

    #[test]
    fn nesting_of_any_depth_does_not_fill_the_stack() {
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        let line = format!("{{\"deep\":{deep},\"f\":\"x\"}}");
        assert_eq!(parse_with(&line, None, Some("f")), Ok((None, b"x".into())));
        assert_eq!(
            fault_of(&deep, None, None),
            "the payload is larger than the 100 bytes allowed",
            "valid, and only then too large"
        );
        assert!(fault_of(&deep[1..], None, None).starts_with("not valid JSON: "));
    }

    #[test]
    fn a_surrogate_without_its_pair_is_refused() {
        assert_eq!(
            fault_of(r#"{"p":"\ud800"}"#, None, Some("p")),
            "not valid JSON: unexpected end of hex escape at column 8"
        );
    }
}
