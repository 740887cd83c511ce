//! PAX extended header records: `<length> <key>=<value>\n`, cut by length, never at newlines.

use super::{Entry, EntryKind, Xattrs};

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Extended attributes of one file. Linux lists no more names than fit in 64 KiB.
const XATTR_LIMIT: usize = 1024;

/// What extension headers say about the entry that follows them.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Xattrs,
    sparse: PaxSparse,
}

/// The `GNU.sparse.` records, not yet understood.
#[derive(Default, Clone)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn, from 0.0 or 0.1.
    pub(super) numbers: Vec<u64>,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        self.long_name.is_none()
            && self.long_link.is_none()
            && self.path.is_none()
            && self.link.is_none()
            && self.size.is_none()
            && self.xattrs.is_empty()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.mtime.is_none()
            && self.sparse.is_absent()
    }

    pub(super) fn add_pax(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            let record = record(data)?;
            self.add_record(record.key, record.value)?;
            data = record.rest;
        }
        Ok(())
    }

    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(XATTR) {
            return self.add_xattr(name, value);
        }
        match key {
            b"path" => self.path = name_value(key, value)?,
            b"linkpath" => self.link = name_value(key, value)?,
            b"size" => self.size = optional(key, value)?,
            b"uid" => self.uid = optional(key, value)?,
            b"gid" => self.gid = optional(key, value)?,
            b"mtime" => self.mtime = time(value)?,
            _ => self.sparse.add_record(key, value)?,
        }
        Ok(())
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if name.is_empty() || name.contains(&0) {
            return Err("an extended attribute has an impossible name".into());
        }
        match self
            .xattrs
            .binary_search_by(|(known, _)| known[..].cmp(name))
        {
            Ok(index) => self.xattrs[index].1 = value.to_vec(),
            Err(_) if self.xattrs.len() == XATTR_LIMIT => {
                return Err(format!("more than {XATTR_LIMIT} extended attributes"));
            }
            Err(index) => self.xattrs.insert(index, (name.to_vec(), value.to_vec())),
        }
        Ok(())
    }

    /// Writes what is known over `entry`; PAX wins over GNU, GNU over the header. Returns the
    /// sparse records when the entry has any.
    pub(super) fn apply(self, entry: &mut Entry) -> Result<Option<PaxSparse>, String> {
        let sparse = (!self.sparse.is_absent()).then_some(self.sparse);
        // With a sparse 1.0 or 0.1 file `path` is a made-up name for readers that know no better.
        let sparse_name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        if let Some(path) = sparse_name.or(self.path).or(self.long_name) {
            entry.path = path;
        }
        if let Some(link) = self.link.or(self.long_link) {
            entry.link = link;
        }
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.mtime = self.mtime.unwrap_or(entry.mtime);
        entry.xattrs = self.xattrs;
        match (&sparse, entry.kind) {
            (Some(_), kind) if kind != EntryKind::File => {
                Err("a sparse map on something that is not a file".into())
            }
            _ => Ok(sparse),
        }
    }
}

impl PaxSparse {
    fn is_absent(&self) -> bool {
        self.major.is_none() && self.real_size.is_none() && self.numbers.is_empty()
    }

    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"GNU.sparse.major" => self.major = optional(key, value)?,
            b"GNU.sparse.minor" => self.minor = optional(key, value)?,
            b"GNU.sparse.name" => self.name = name_value(key, value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = optional(key, value)?,
            // 0.0 repeats these two for every chunk, so their order is what counts.
            b"GNU.sparse.offset" if self.numbers.len().is_multiple_of(2) => {
                self.numbers.push(required(key, value)?);
            }
            b"GNU.sparse.numbytes" if !self.numbers.len().is_multiple_of(2) => {
                self.numbers.push(required(key, value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                return Err("sparse offsets and lengths do not alternate".into());
            }
            b"GNU.sparse.map" => {
                self.numbers = value
                    .split(|&byte| byte == b',')
                    .filter(|number| !number.is_empty())
                    .map(|number| required(key, number))
                    .collect::<Result<_, _>>()?;
            }
            // Comments, access times, vendor keys.
            _ => {}
        }
        Ok(())
    }
}

struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

/// Splits the first record off.
fn record(data: &[u8]) -> Result<Record<'_>, String> {
    let broken = || "malformed PAX record".to_owned();
    let space = data.iter().position(|&b| b == b' ').ok_or_else(broken)?;
    let length: usize = decimal(&data[..space]).ok_or_else(broken)?;
    if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
        return Err(broken());
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|&b| b == b'=').ok_or_else(broken)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(broken());
    }
    Ok(Record {
        key,
        value,
        rest: &data[length..],
    })
}

/// An empty value takes the record back (POSIX), so the header's own field counts again.
fn name_value(key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if value.contains(&0) {
        return Err(format!("zero byte in {}", String::from_utf8_lossy(key)));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional<T: std::str::FromStr>(key: &[u8], value: &[u8]) -> Result<Option<T>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    required(key, value).map(Some)
}

fn required<T: std::str::FromStr>(key: &[u8], value: &[u8]) -> Result<T, String> {
    decimal(value).ok_or_else(|| format!("{} is not a number", String::from_utf8_lossy(key)))
}

/// Digits only: `str::parse` alone would take a leading plus.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction, rounded down.
fn time(value: &[u8]) -> Result<Option<i64>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let seconds: Option<i64> = parts.next().and_then(decimal);
    let fraction = parts.next().unwrap_or(b"");
    let seconds = match seconds {
        Some(seconds) if fraction.iter().all(u8::is_ascii_digit) => seconds,
        _ => return Err("mtime is not a time".into()),
    };
    let has_fraction = fraction.iter().any(|&digit| digit != b'0');
    Ok(Some(match negative {
        true => -seconds - i64::from(has_fraction),
        false => seconds,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_may_hold_newlines_and_zero_bytes() {
        let data = b"33 SCHILY.xattr.user.a=\n1 b=\0\n=c\n";
        let mut extensions = Extensions::default();
        extensions.add_pax(data).unwrap();
        assert_eq!(
            extensions.xattrs,
            [(b"user.a".to_vec(), b"\n1 b=\0\n=c".to_vec())]
        );
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"9999 a=b\n",
            b"5 a=b\n",
            b"6 a=b ",
            b"5 ab\n",
            b"5 =b\n",
            b"+6 a=b\n",
            b"0 a=b\n",
            b"18446744073709551616 a=b\n",
        ] {
            let result = Extensions::default().add_pax(bad);
            assert!(result.is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn fractional_times_round_down() {
        assert_eq!(time(b"12.9"), Ok(Some(12)));
        assert_eq!(time(b"-12.1"), Ok(Some(-13)));
        assert_eq!(time(b"-12.0"), Ok(Some(-12)));
        assert_eq!(time(b""), Ok(None));
        assert!(time(b"1e3").is_err());
    }

    #[test]
    fn empty_value_takes_a_record_back() {
        let mut extensions = Extensions::default();
        extensions.add_pax(b"10 path=x\n8 path=\n").unwrap();
        assert_eq!(extensions.path, None);
    }
}
