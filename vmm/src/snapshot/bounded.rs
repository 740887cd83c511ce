//! Lists in a state file, with the most entries they can have.
//!
//! A count costs a byte or two, and what it counts may be large in memory although it is short in the
//! file: a register block of KVM's that was cut to nothing decodes to its full size. Without a bound,
//! four MiB of such entries would become gigabytes.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Deserialize, Error, SeqAccess, Visitor};

/// For `#[serde(deserialize_with = "bounded::<_, _, LIMIT>")]` on a `Vec`: more than `MAX` entries are an
/// error, and nothing is allocated for what is only promised.
pub fn bounded<'de, D, T, const MAX: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    from.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

struct Bounded<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "at most {MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let promised = entries.size_hint().unwrap_or(0);
        if promised > MAX {
            return Err(A::Error::invalid_length(promised, &self));
        }
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            // A source that promises nothing is held to the bound as well.
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde::de::value::{Error as ValueError, SeqDeserializer};

    use super::bounded;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Few {
        #[serde(deserialize_with = "bounded::<_, _, 3>")]
        list: Vec<u16>,
    }

    #[test]
    fn list_up_to_its_bound_is_read() {
        for list in [vec![], vec![7], vec![1, 2, 3]] {
            let bytes = postcard::to_stdvec(&list).unwrap();
            assert_eq!(postcard::from_bytes::<Few>(&bytes), Ok(Few { list }));
        }
    }

    #[test]
    fn cve_2023_50711_list_beyond_its_bound_is_refused() {
        let bytes = postcard::to_stdvec(&[1_u16, 2, 3, 4][..]).unwrap();
        let error = postcard::from_bytes::<Few>(&bytes);
        assert_eq!(error, Err(postcard::Error::SerdeDeCustom));
    }

    #[test]
    fn list_that_is_only_promised_is_an_error() {
        for promised in [&[3][..], &[4], &[0xff, 0xff, 0xff, 0xff, 0x0f]] {
            let error = postcard::from_bytes::<Few>(promised);
            assert_eq!(error, Err(postcard::Error::DeserializeUnexpectedEnd));
        }
    }

    #[test]
    fn cve_2023_50711_list_without_a_promised_length_is_held_to_the_bound() {
        let read = |count: u16| {
            let entries = (0..count).filter(|_| true);
            bounded::<_, u16, 3>(SeqDeserializer::<_, ValueError>::new(entries))
        };
        assert_eq!(read(3).unwrap(), [0, 1, 2]);
        let error = read(4).unwrap_err();
        assert!(error.to_string().contains("at most 3 entries"), "{error}");
    }
}
