//! What registries and token servers answer, and what names people give, changed at random: see `images::tests::fuzz`.

use ::fuzz::Target;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderValue};

use crate::images::digest::Digest;
use crate::images::registry::auth::{Challenge, bearer};
use crate::images::registry::client::{Document, sensitive, start_of_range};
use crate::images::registry::name::{Reference, RegistryHost};
use crate::images::registry::platform::{self, Next};
use crate::images::registry::settings::Mirror;
use crate::images::tests::fuzz::{TOKENS, assert_blames_the_input, corpus};
use crate::images::{ImageErrorCode, Limits};

/// Of a run without `CABANA_FUZZ_SECONDS`. They are short: a second where nothing is optimised.
const INPUTS: u64 = 15_000;
/// Words of headers and names, beside those of documents.
const WORDS: [&str; 10] = [
    "Bearer ", "Basic", "realm=", "\"", "\\", "bytes ", "sha256:", "@", "[::1]:", "xn--",
];

/// Small enough that some of the corpus is too large after a change.
fn limits() -> Limits {
    Limits {
        archive_bytes: 100_000,
        layer_bytes: 90_000,
        config_bytes: 2000,
        layers: 3,
        ..Limits::default()
    }
}

/// Whether something was found in it.
fn read(kind: &str, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match kind {
        "challenge" => match Challenge::of([&*text]) {
            Some(Challenge::Bearer { realm, .. }) => {
                assert!(realm.len() <= text.len());
                true
            }
            found => found.is_some(),
        },
        "token" => bearer(bytes).is_some_and(|token| match sensitive(&token) {
            Ok(value) => value.is_sensitive(),
            Err(error) => {
                assert_eq!(error.code, ImageErrorCode::ImagePullUnauthorized);
                assert!(!error.message.contains(token.expose()));
                false
            }
        }),
        "range" => {
            let Ok(value) = HeaderValue::from_bytes(bytes) else {
                return false;
            };
            start_of_range(&HeaderMap::from_iter([(CONTENT_RANGE, value)])).is_some()
        }
        "name" => {
            let _ = text.parse::<RegistryHost>();
            let _ = Mirror::try_from(text.clone().into_owned());
            match text.parse::<Reference>() {
                Err(error) => {
                    assert_eq!(error.code, ImageErrorCode::ImageNameInvalid);
                    false
                }
                // What it means is the same when it is said in full.
                Ok(reference) => {
                    let full = reference.to_string();
                    let again: Reference = full.parse().unwrap();
                    assert_eq!(
                        (again.version(), &again.host),
                        (reference.version(), &reference.host)
                    );
                    assert_eq!(
                        (again.to_string(), again.repository),
                        (full, reference.repository)
                    );
                    true
                }
            }
        }
        "manifest" => manifest(bytes),
        _ => panic!("there is no reader of {kind}"),
    }
}

fn manifest(bytes: &[u8]) -> bool {
    let document = Document {
        digest: Digest::of(bytes),
        media_type: None,
        bytes: bytes.to_vec(),
    };
    let limits = limits();
    match platform::read(&document, &limits) {
        Err(error) => {
            assert_blames_the_input(&error);
            assert!(!error.message.contains('\n'), "{error}");
            false
        }
        Ok(Next::Manifest(_)) => true,
        Ok(Next::Blobs(needed)) => {
            let total: u64 = needed.layers.iter().map(|layer| layer.bytes).sum();
            assert!(needed.config.bytes <= limits.config_bytes && total <= limits.archive_bytes);
            assert!(needed.layers.len() <= limits.layers);
            true
        }
    }
}

#[test]
fn fuzz_answers_and_names() {
    let answers = corpus("answers");
    let kind = |name: &str| name.split('.').next().unwrap().to_owned();
    let mut kinds: Vec<_> = answers.iter().map(|(name, _)| kind(name)).collect();
    kinds.dedup();
    // The first byte of an input says which of them it is.
    let seeds: Vec<Vec<u8>> = answers
        .iter()
        .map(|(name, bytes)| {
            let number = kinds.iter().position(|known| *known == kind(name)).unwrap();
            assert!(read(&kinds[number], bytes), "{name}");
            [&[u8::try_from(number).unwrap()], &bytes[..]].concat()
        })
        .collect();
    let words = [&TOKENS[..], &WORDS].concat();
    Target::new("answers_and_names")
        .seeds(seeds)
        .words(&words)
        .run(INPUTS, |input| {
            let (number, bytes) = input.split_first().unwrap_or((&0, &[]));
            read(&kinds[usize::from(*number) % kinds.len()], bytes)
        });
}
