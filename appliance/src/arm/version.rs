//! api-versions: what a caller that names one expects to see of a pool.
//!
//! All versions are answered out of one model. A version shows the properties that it knows, and a body of that version
//! leaves those that it does not know as they are.

use crate::front::refusal::{Code, Refusal};

/// `YYYY-MM-DD`, and whether `-preview` follows.
type Name = (&'static str, bool);

/// The versions of the resource provider for session pools, and what each has changed for a reader. In the order of
/// their dates.
const KNOWN: [(Name, Shape); 11] = [
    (("2023-08-01", true), FIRST),
    (("2024-02-02", true), FIRST),
    (
        ("2024-08-02", true),
        Shape {
            registry_server: false,
            ..FIRST
        },
    ),
    (
        ("2024-10-02", true),
        Shape {
            registry_server: false,
            managed_identity: true,
            ..FIRST
        },
    ),
    (("2025-01-01", false), STABLE),
    (
        ("2025-02-02", true),
        Shape {
            probes: true,
            mcp_server: true,
            ..STABLE
        },
    ),
    (("2025-07-01", false), STABLE),
    (("2025-10-02", true), EVERYTHING),
    (("2026-01-01", false), STABLE),
    (
        ("2026-03-02", true),
        Shape {
            mcp_server: true,
            update_status: true,
            ..STABLE
        },
    ),
    (
        ("2026-07-01", false),
        Shape {
            probes: true,
            ..STABLE
        },
    ),
];

const FIRST: Shape = Shape {
    nested_lifecycle: false,
    registry_server: true,
    managed_identity: false,
    probes: false,
    mcp_server: false,
    update_status: false,
};
const STABLE: Shape = Shape {
    nested_lifecycle: true,
    registry_server: false,
    managed_identity: true,
    probes: false,
    mcp_server: false,
    update_status: false,
};
const EVERYTHING: Shape = Shape {
    nested_lifecycle: true,
    registry_server: false,
    managed_identity: true,
    probes: true,
    mcp_server: true,
    update_status: true,
};

/// What a version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `lifecycleConfiguration` within `dynamicPoolConfiguration`, and not `executionType`.
    pub nested_lifecycle: bool,
    /// The host of a registry is called `registryServer`, later `server`.
    pub registry_server: bool,
    pub managed_identity: bool,
    pub probes: bool,
    pub mcp_server: bool,
    pub update_status: bool,
}

impl Default for Shape {
    /// For those who name no version: all there is.
    fn default() -> Self {
        EVERYTHING
    }
}

/// The version of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// As the caller named it; empty: not at all.
    pub name: String,
    pub shape: Shape,
}

impl Version {
    /// A version that is not in the table is the newest one before it: for a stable one a stable one, for a preview
    /// whichever it is. One that is older than all is the first.
    pub fn parse(name: &str) -> Result<Self, Refusal> {
        let date = name.strip_suffix("-preview");
        let (date, is_preview) = (date.unwrap_or(name), date.is_some());
        if date.len() != 10 || date.parse::<jiff::civil::Date>().is_err() {
            let message = format!(
                "api-version must look like 2026-07-01 or 2026-07-01-preview, not {name:?}"
            );
            return Err(
                Refusal::new(Code::InvalidApiVersionParameter, message).target("api-version")
            );
        }
        // Dates of this form are in the order of their text.
        let before = KNOWN
            .iter()
            .rev()
            .find(|((known, known_preview), _)| *known <= date && (is_preview || !known_preview));
        // Exactly this one, should a stable version and a preview ever have one date.
        let same = KNOWN
            .iter()
            .find(|((known, preview), _)| *known == date && *preview == is_preview);
        let shape = same.or(before).map_or(KNOWN[0].1, |(_, shape)| *shape);
        Ok(Self {
            name: name.to_owned(),
            shape,
        })
    }

    pub fn missing() -> Refusal {
        let message =
            "The query parameter api-version is missing: for example api-version=2026-07-01";
        Refusal::new(Code::MissingApiVersionParameter, message).target("api-version")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str) -> Shape {
        Version::parse(name).unwrap().shape
    }

    #[test]
    fn any_well_formed_version_will_do() {
        for good in [
            "2025-07-01",
            "2026-03-02-preview",
            "1999-01-01",
            "2031-12-31-preview",
        ] {
            assert!(Version::parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "1",
            "2025-13-01",
            "2025-07-01-beta",
            "latest",
            "2025-07-01-preview-preview",
            "20250701",
        ] {
            let refusal = Version::parse(bad).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidApiVersionParameter, "{bad}");
        }
    }

    #[test]
    fn table_is_in_the_order_of_dates() {
        assert!(KNOWN.is_sorted_by_key(|((date, _), _)| *date));
    }

    #[test]
    fn each_version_knows_what_its_specification_has() {
        for (name, nested, identity, probes, mcp, update) in [
            ("2023-08-01-preview", false, false, false, false, false),
            ("2024-02-02-preview", false, false, false, false, false),
            ("2024-08-02-preview", false, false, false, false, false),
            ("2024-10-02-preview", false, true, false, false, false),
            ("2025-01-01", true, true, false, false, false),
            ("2025-02-02-preview", true, true, true, true, false),
            ("2025-07-01", true, true, false, false, false),
            ("2025-10-02-preview", true, true, true, true, true),
            ("2026-01-01", true, true, false, false, false),
            ("2026-03-02-preview", true, true, false, true, true),
            ("2026-07-01", true, true, true, false, false),
        ] {
            let shape = shape(name);
            let found = (
                shape.nested_lifecycle,
                shape.managed_identity,
                shape.probes,
                shape.mcp_server,
                shape.update_status,
            );
            assert_eq!(found, (nested, identity, probes, mcp, update), "{name}");
        }
    }

    #[test]
    fn version_that_is_not_known_is_the_newest_before_it() {
        for (name, like) in [
            ("2025-03-01", "2025-01-01"),
            ("2025-03-01-preview", "2025-02-02-preview"),
            ("2026-02-01", "2026-01-01"),
            ("2030-01-01", "2026-07-01"),
            ("2030-01-01-preview", "2026-07-01"),
            ("2020-01-01", "2023-08-01-preview"),
            ("2024-12-01", "2023-08-01-preview"),
        ] {
            assert_eq!(shape(name), shape(like), "{name}");
        }
    }
}
