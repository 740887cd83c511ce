//! Values of flags. Only their form is judged here; what is allowed is the appliance's to say.

/// A positive number of CPUs.
pub fn cpu(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus > 0.0 => Ok(cpus),
        _ => Err("a positive number is needed, like 0.25 or 2".to_owned()),
    }
}

/// A size as the cloud service writes it, kept as text.
pub fn memory(text: &str) -> Result<String, String> {
    let number = text.strip_suffix("Gi").or_else(|| text.strip_suffix("Mi"));
    let plain = |number: &str| {
        number.starts_with(|c: char| c.is_ascii_digit())
            && number
                .parse::<f64>()
                .is_ok_and(|value| value > 0.0 && value.is_finite())
            && number
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    if number.is_some_and(plain) {
        Ok(text.to_owned())
    } else {
        Err("a number with Gi or Mi is needed, like 0.5Gi or 512Mi".to_owned())
    }
}

/// So much in a second, or as much as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    None,
    PerSecond(u64),
}

/// A whole number, of bytes also with a unit; or `none`.
pub fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit::None);
    }
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("", 0)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    let plain = number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse::<u64>().ok().filter(|_| plain);
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .map(Limit::PerSecond)
        .ok_or_else(|| {
            "a whole number is needed, of bytes also with Ki, Mi or Gi, or none".to_owned()
        })
}

impl From<Limit> for serde_json::Value {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::None => Self::Null,
            Limit::PerSecond(number) => number.into(),
        }
    }
}

/// `NAME=VALUE`; the value may be empty and may hold further equals signs.
pub fn env_var(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("NAME=VALUE is needed".to_owned()),
    }
}

/// A whole number with a unit, in seconds.
pub fn duration_seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];
    units
        .into_iter()
        .find_map(|(unit, seconds)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(seconds).filter(|total| *total > 0)
        })
        .ok_or_else(|| "a whole number with s, m, h or d is needed, like 30m or 8h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_number_and_a_unit() {
        for good in ["0.5Gi", "1Gi", "512Mi"] {
            assert_eq!(memory(good).unwrap(), good);
        }
        for bad in [
            "", "Gi", "1", "1G", "-1Gi", "0Gi", "1e3Gi", "infGi", "+1Gi", "1 Gi", "1.2.3Gi",
        ] {
            memory(bad).unwrap_err();
        }
    }

    #[test]
    fn limits_are_whole_numbers_with_or_without_a_unit_or_none() {
        for (text, expected) in [
            ("500", Limit::PerSecond(500)),
            ("64Ki", Limit::PerSecond(65_536)),
            ("10Mi", Limit::PerSecond(10_485_760)),
            ("1Gi", Limit::PerSecond(1 << 30)),
            ("none", Limit::None),
        ] {
            assert_eq!(limit(text), Ok(expected));
        }
        for bad in [
            "",
            "Mi",
            "-1",
            "+1",
            "1.5Mi",
            "1M",
            "1 Mi",
            "None",
            "18446744073709551616",
            "17179869184Gi",
        ] {
            limit(bad).unwrap_err();
        }
    }

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(duration_seconds("90s"), Ok(90));
        assert_eq!(duration_seconds("30m"), Ok(1800));
        assert_eq!(duration_seconds("1h"), Ok(3600));
        assert_eq!(duration_seconds("7d"), Ok(604_800));
        for bad in ["", "h", "1", "0s", "-1h", "1.5h", "99999999999999999d"] {
            duration_seconds(bad).unwrap_err();
        }
    }

    #[test]
    fn variable_is_split_at_its_first_equals_sign() {
        assert_eq!(env_var("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(env_var("A=").unwrap(), ("A".into(), String::new()));
        env_var("A").unwrap_err();
        env_var("=b").unwrap_err();
    }

    #[test]
    fn cpus_are_positive_and_finite() {
        assert!((cpu("0.25").unwrap() - 0.25).abs() < f64::EPSILON);
        for bad in ["0", "-1", "NaN", "inf", "x", ""] {
            cpu(bad).unwrap_err();
        }
    }
}
