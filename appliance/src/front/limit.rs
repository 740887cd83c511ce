//! Who may have how much at once, and how long a head may be.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, Uri};

use super::refusal::{Code, Refusal};
use crate::config::FrontLimits;

/// Counts what each key has at once. Cheap to clone.
#[derive(Debug)]
pub struct Gauge<K> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    most: usize,
}

impl<K> Clone for Gauge<K> {
    fn clone(&self) -> Self {
        Self {
            counts: Arc::clone(&self.counts),
            most: self.most,
        }
    }
}

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    key: K,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Hash + Eq + Clone> Gauge<K> {
    pub fn new(most: usize) -> Self {
        Self {
            counts: Arc::default(),
            most,
        }
    }

    /// `None`: this key has all that it may have.
    pub fn take(&self, key: K) -> Option<Place<K>> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place {
            key,
            counts: Arc::clone(&self.counts),
        })
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

fn lock<K>(counts: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a head that is too long, before anything in it is looked at.
pub fn refuse_long_head(
    uri: &Uri,
    headers: &HeaderMap,
    limits: &FrontLimits,
) -> Result<(), Refusal> {
    let target = uri.path_and_query().map_or(0, |it| it.as_str().len());
    if target > limits.url_bytes {
        let message = format!("The URL has more than {} bytes", limits.url_bytes);
        return Err(Refusal::new(Code::RequestUrlTooLong, message));
    }
    let count = headers.len();
    if count > limits.header_count {
        let message = format!("The request has more than {} headers", limits.header_count);
        return Err(Refusal::new(Code::RequestHeadersTooLarge, message));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes > limits.header_bytes {
        let message = format!(
            "The headers of the request have more than {} bytes",
            limits.header_bytes
        );
        return Err(Refusal::new(Code::RequestHeadersTooLarge, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_places_and_gets_them_back() {
        let gauge = Gauge::new(2);
        let first = gauge.take("a").unwrap();
        let _second = gauge.take("a").unwrap();
        assert!(gauge.take("a").is_none());
        let other = gauge.take("b").unwrap();
        drop(first);
        assert!(gauge.take("a").is_some());
        drop(other);
        assert_eq!(lock(&gauge.counts).len(), 1, "what nobody has is forgotten");
    }

    #[test]
    fn long_urls_many_headers_and_large_ones_have_codes_of_their_own() {
        let limits = FrontLimits {
            url_bytes: 300,
            header_bytes: 1024,
            header_count: 10,
            ..FrontLimits::default()
        };
        let code = |url: usize, headers: usize, length: usize| {
            let mut request = http::Request::builder().uri(format!("/{}", "a".repeat(url)));
            for number in 0..headers {
                request = request.header(format!("x-{number}"), "v".repeat(length));
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            refuse_long_head(&parts.uri, &parts.headers, &limits).map_err(|refusal| refusal.code)
        };
        assert_eq!(code(299, 10, 90), Ok(()));
        assert_eq!(code(300, 10, 90), Err(Code::RequestUrlTooLong));
        assert_eq!(code(1, 11, 1), Err(Code::RequestHeadersTooLarge));
        assert_eq!(code(1, 2, 520), Err(Code::RequestHeadersTooLarge));
    }
}
