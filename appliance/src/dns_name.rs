//! What a DNS name may look like.

/// A name on the wire has 255 bytes at most (RFC 1035 §2.3.4): so many as text, without the final dot.
const MAX_NAME: usize = 253;

/// Labels of letters, digits and hyphens (RFC 1123 §2.1), in lower case.
pub fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= MAX_NAME && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_labels_in_lower_case_and_an_end() {
        let longest = format!(
            "{}.{}",
            ["a".repeat(63).as_str(); 3].join("."),
            "a".repeat(61)
        );
        for name in [
            "a",
            "a-b.example",
            "1.example",
            "xn--bcher-kva.example",
            &longest,
        ] {
            assert!(is_dns_name(name), "{name}");
        }
        let label = "a".repeat(64);
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "A",
            "a_b",
            "*.a",
            "a b",
            &label,
            &format!("{longest}a"),
        ] {
            assert!(!is_dns_name(name), "{name}");
        }
    }
}
