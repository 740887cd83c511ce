//! The 512-byte header block. Field offsets: POSIX.1-1988 (ustar), GNU tar manual "Basic Format".

use super::{Entry, EntryKind};

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..263;
const MAJOR: std::ops::Range<usize> = 329..337;
const MINOR: std::ops::Range<usize> = 337..345;
const PREFIX: std::ops::Range<usize> = 345..500;

pub(super) struct Header<'a> {
    block: &'a [u8; 512],
    pub(super) kind: u8,
    pub(super) size: u64,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; 512]) -> Result<Self, String> {
        check_sum(block)?;
        let kind = block[KIND];
        let size = match number(&block[SIZE]) {
            Some(size) => u64::try_from(size).map_err(|_| "negative size".to_owned())?,
            None => return Err("the size is not a number".into()),
        };
        Ok(Self { block, kind, size })
    }

    pub(super) fn entry_kind(&self) -> Result<EntryKind, String> {
        Ok(match self.kind {
            // Before ustar a directory was a file whose name ends with a slash.
            0 if self.name().ends_with(b"/") => EntryKind::Directory,
            // '7' is a contiguous file; nobody stores those differently.
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            // 'D' is a GNU dump directory: its data is a list of names that nothing needs.
            b'5' | b'D' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(format!("unknown entry type 0x{other:02x}")),
        })
    }

    /// Types that never carry data, whatever their size field says.
    pub(super) fn is_header_only(&self) -> bool {
        matches!(self.kind, b'1'..=b'6')
    }

    /// The entry as far as this block describes it.
    pub(super) fn entry(&self, kind: EntryKind) -> Result<Entry, String> {
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => (
                self.id(MAJOR, "device major")?,
                self.id(MINOR, "device minor")?,
            ),
            _ => (0, 0),
        };
        let mode = number(&self.block[MODE]).ok_or("the mode is not a number")?;
        Ok(Entry {
            path: self.name(),
            kind,
            link: text(&self.block[LINK]).to_vec(),
            mode: u16::try_from(mode & 0o7777).map_err(|_| "bad mode".to_owned())?,
            uid: self.id(UID, "owner")?,
            gid: self.id(GID, "group")?,
            mtime: number(&self.block[MTIME]).ok_or("the time is not a number")?,
            device,
            xattrs: Vec::new(),
            size: 0,
            chunks: None,
            data_offset: 0,
            stored: 0,
        })
    }

    fn id(&self, field: std::ops::Range<usize>, what: &str) -> Result<u32, String> {
        number(&self.block[field])
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| format!("the {what} is not a 32-bit number"))
    }

    fn name(&self) -> Vec<u8> {
        let name = text(&self.block[NAME]);
        let prefix = match &self.block[MAGIC] {
            b"ustar\0" => text(&self.block[PREFIX]),
            // GNU keeps times and the sparse map there.
            _ => b"",
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }
}

fn check_sum(block: &[u8; 512]) -> Result<(), String> {
    let stored = number(&block[CHECKSUM]).ok_or("not a tar header")?;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (index, &byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&index) {
            b' '
        } else {
            byte
        };
        unsigned += i64::from(byte);
        // Some old writers summed signed characters.
        signed += i64::from(byte.cast_signed());
    }
    if stored == unsigned || stored == signed {
        Ok(())
    } else {
        Err("wrong header checksum".into())
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal text, or base-256 when the first bit is set. An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        return base_256(field);
    }
    let is_blank = |&&byte: &&u8| byte == b' ' || byte == 0;
    let digits: Vec<u8> = field
        .iter()
        .skip_while(is_blank)
        .take_while(|byte| !is_blank(byte))
        .copied()
        .collect();
    digits.iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn base_256(field: &[u8]) -> Option<i64> {
    // Two's complement; the top bit is the marker, the next one the sign.
    let negative = field[0] & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (index, &byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"7777777 "), Some(0o7_777_777));
        assert_eq!(number(b"8"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        let huge = [0xbf; 12];
        assert_eq!(number(&huge), None, "does not fit in 64 bits");
    }
}
