//! Short words for schemas, so that a property is described in one line beside the code that reads it.

use std::ops::RangeInclusive;

use serde_json::Value;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayItems, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{ArrayBuilder, KnownFormat, Ref, RefOr};

/// A schema, or the name of one.
pub type Described = RefOr<Schema>;

/// A text.
pub fn text(about: &str) -> ObjectBuilder {
    of(Type::String).description(Some(about))
}

/// One of these words.
pub fn word(about: &str, words: &[&str]) -> ObjectBuilder {
    text(about).enum_values(Some(words.to_vec()))
}

/// A moment by RFC 3339.
pub fn moment(about: &str) -> ObjectBuilder {
    text(about)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .read_only(true)
}

pub fn uuid(about: &str) -> ObjectBuilder {
    text(about).format(Some(SchemaFormat::Custom("uuid".to_owned())))
}

/// A whole number.
pub fn integer(about: &str, range: RangeInclusive<u64>) -> ObjectBuilder {
    let bound = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    of(Type::Integer)
        .description(Some(about))
        .minimum(Some(bound(*range.start())))
        .maximum(Some(bound(*range.end())))
}

/// How many there are now.
pub fn count(about: &str) -> ObjectBuilder {
    of(Type::Integer)
        .description(Some(about))
        .minimum(Some(0_usize))
        .read_only(true)
}

/// A number that need not be whole.
pub fn number(about: &str) -> ObjectBuilder {
    of(Type::Number).description(Some(about))
}

pub fn object(about: &str) -> ObjectBuilder {
    of(Type::Object).description(Some(about))
}

/// Names of the caller's own, each with a value.
pub fn map(about: &str, of: impl Into<Described>) -> ObjectBuilder {
    object(about).additional_properties(Some(AdditionalProperties::RefOr(of.into())))
}

pub fn list(about: &str, of: impl Into<Described>) -> ArrayBuilder {
    ArrayBuilder::new()
        .items(ArrayItems::RefOrSchema(Box::new(of.into())))
        .description(Some(about))
}

/// A schema of the document.
pub fn named(name: &str) -> Described {
    RefOr::Ref(Ref::from_schema_name(name))
}

/// May also be `null`, which is absent.
pub fn nullable(schema: impl Into<Described>) -> Described {
    match schema.into() {
        RefOr::T(Schema::Object(mut object)) => {
            object.schema_type = with_null(object.schema_type);
            if let Some(values) = &mut object.enum_values {
                values.push(Value::Null);
            }
            RefOr::T(Schema::Object(object))
        }
        RefOr::T(Schema::Array(mut array)) => {
            array.schema_type = with_null(array.schema_type);
            RefOr::T(Schema::Array(array))
        }
        other => RefOr::T(Schema::OneOf(
            utoipa::openapi::OneOfBuilder::new()
                .item(other)
                .item(of(Type::Null))
                .build(),
        )),
    }
}

fn with_null(kind: SchemaType) -> SchemaType {
    match kind {
        SchemaType::Type(kind) => [kind, Type::Null].into_iter().collect(),
        other => other,
    }
}

fn of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}
