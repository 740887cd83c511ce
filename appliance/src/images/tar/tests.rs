//! Formats that layers of real tools come in, and headers nobody should write.

use super::*;
use crate::images::testing::{Item, Layer, header};

struct Bytes<'a>(&'a [u8]);

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Skip for Bytes<'_> {}

/// Entries with their stored data.
fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut tar = TarReader::new(Bytes(archive));
    let mut entries = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 7];
        loop {
            match tar.read_data(&mut buffer)? {
                0 => break,
                count => data.extend_from_slice(&buffer[..count]),
            }
        }
        let at = usize::try_from(entry.data_offset).unwrap();
        assert_eq!(archive[at..at + data.len()], data, "data_offset");
        entries.push((entry, data));
    }
    Ok(entries)
}

fn only(archive: &[u8]) -> (Entry, Vec<u8>) {
    let mut entries = read(archive).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

#[track_caller]
fn refuse(archive: &[u8], part: &str) {
    let error = read(archive).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
}

fn file<'a>(pax: &'a [(&'a str, &'a [u8])], data: &'a [u8]) -> Item<'a> {
    Item {
        path: b"header-name",
        data,
        pax,
        ..Item::default()
    }
}

#[test]
fn pax_wins_over_gnu_and_gnu_over_the_header() {
    let archive = Layer::new()
        .extension(b'L', b"gnu-name\0")
        .item(&file(
            &[("path", b"pax-name"), ("uid", b"4000000000")],
            b"x",
        ))
        .extension(b'L', b"gnu-name\0")
        .item(&file(&[], b"y"))
        .item(&file(&[], b"z"))
        .finish();
    let names: Vec<_> = read(&archive)
        .unwrap()
        .into_iter()
        .map(|(entry, _)| (String::from_utf8(entry.path).unwrap(), entry.uid))
        .collect();
    assert_eq!(
        names,
        [
            ("pax-name".into(), 4_000_000_000),
            ("gnu-name".into(), 0),
            ("header-name".into(), 0)
        ]
    );
}

#[test]
fn global_pax_header_changes_nothing() {
    let archive = Layer::new()
        .extension(b'g', b"12 path=bad\n")
        .file("good", b"x")
        .finish();
    assert_eq!(only(&archive).0.path, b"good");
}

#[test]
fn pax_size_is_where_the_next_header_starts() {
    let mut block = header(&file(&[], b""));
    let mut changed = tar::Header::from_byte_slice(&block).clone();
    changed.set_size(0);
    changed.set_cksum();
    block.copy_from_slice(changed.as_bytes());
    let archive = Layer::new()
        .extension(b'x', b"10 size=5\n")
        .raw(&block)
        .padded(b"12345")
        .file("next", b"")
        .finish();
    let entries = read(&archive).unwrap();
    assert_eq!(entries[0].1, b"12345");
    assert_eq!(entries[1].0.path, b"next");
}

#[test]
fn ustar_prefix_is_part_of_the_name_and_gnu_times_are_not() {
    let mut ustar = tar::Header::new_ustar();
    ustar.set_path(format!("{}/name", "p".repeat(120))).unwrap();
    ustar.set_size(0);
    ustar.set_mode(0o600);
    ustar.set_uid(1);
    ustar.set_gid(2);
    ustar.set_mtime(3);
    ustar.set_cksum();
    let archive = Layer::new().raw(ustar.as_bytes()).finish();
    assert_eq!(only(&archive).0.path.len(), 125);

    let mut gnu = header(&file(&[], b""));
    let mut times = tar::Header::from_byte_slice(&gnu).clone();
    times.as_gnu_mut().unwrap().set_atime(77);
    times.set_cksum();
    gnu.copy_from_slice(times.as_bytes());
    let archive = Layer::new().raw(&gnu).finish();
    assert_eq!(only(&archive).0.path, b"header-name");
}

#[test]
fn directory_of_an_old_tar_is_a_file_that_ends_with_a_slash() {
    let archive = Layer::new()
        .item(&Item {
            path: b"dir/",
            kind: 0,
            ..Item::default()
        })
        .finish();
    assert_eq!(only(&archive).0.kind, EntryKind::Directory);
}

#[test]
fn archive_may_end_without_its_trailer() {
    let archive = Layer::new().file("a", b"x").unfinished();
    assert_eq!(read(&archive).unwrap().len(), 1);
    let mut one = archive.clone();
    one.extend_from_slice(&[0; 512]);
    assert_eq!(read(&one).unwrap().len(), 1);
    let after = Layer::new().raw(&one).file("b", b"").finish();
    refuse(&after, "single zero block");
    assert!(read(&[]).unwrap().is_empty());
}

#[test]
fn archive_may_not_end_inside_an_entry() {
    let archive = Layer::new().file("a", b"x").unfinished();
    for length in [100, 512, 513, 1023] {
        let error = read(&archive[..length]).unwrap_err();
        let TarError::Read(error) = error else {
            panic!("{length}: {error}")
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
    let name = Layer::new().extension(b'L', b"name\0").finish();
    refuse(&name, "ends after an extension header");
}

#[test]
fn wrong_checksum_is_refused_and_a_signed_one_is_not() {
    let mut block = header(&file(&[], b""));
    block[0] ^= 1;
    refuse(&Layer::new().raw(&block).finish(), "checksum");

    let mut block = header(&Item {
        path: b"\xff\xff",
        ..Item::default()
    });
    let sum: i64 = block
        .iter()
        .enumerate()
        .map(|(index, &byte)| match index {
            148..156 => 32,
            _ => i64::from(byte.cast_signed()),
        })
        .sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(only(&Layer::new().raw(&block).finish()).0.path, b"\xff\xff");
}

const HOLES: [Chunk; 2] = [
    Chunk {
        offset: 512,
        length: 3,
    },
    Chunk {
        offset: 2048,
        length: 2,
    },
];

#[track_caller]
fn expect_sparse(archive: &[u8]) {
    let (entry, data) = only(archive);
    assert_eq!(entry.path, b"real-name");
    assert_eq!(entry.chunks.as_deref(), Some(&HOLES[..]));
    assert_eq!((entry.size, entry.stored), (4096, 5));
    assert_eq!(data, b"abcde");
}

#[test]
fn sparse_pax_0_0() {
    let records: [(&str, &[u8]); 6] = [
        ("GNU.sparse.size", b"4096"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"512"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"2048"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let item = Item {
        path: b"real-name",
        ..file(&records, b"abcde")
    };
    expect_sparse(&Layer::new().item(&item).finish());
}

#[test]
fn sparse_pax_0_1() {
    let records: [(&str, &[u8]); 4] = [
        ("path", b"GNUSparseFile.1/real-name"),
        ("GNU.sparse.name", b"real-name"),
        ("GNU.sparse.size", b"4096"),
        ("GNU.sparse.map", b"512,3,2048,2"),
    ];
    expect_sparse(&Layer::new().item(&file(&records, b"abcde")).finish());
}

#[test]
fn sparse_pax_1_0() {
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real-name"),
        ("GNU.sparse.realsize", b"4096"),
    ];
    let mut data = b"2\n512\n3\n2048\n2\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"abcde");
    expect_sparse(&Layer::new().item(&file(&records, &data)).finish());

    let endless = vec![b'1'; 1024];
    let archive = Layer::new().item(&file(&records, &endless)).finish();
    refuse(&archive, "malformed sparse map");
    let many = b"70000\n".repeat(100);
    let archive = Layer::new().item(&file(&records, &many)).finish();
    refuse(&archive, "more than 65536 chunks");
    let outside = Layer::new().item(&file(&records, b"2\n512\n"));
    refuse(&outside.finish(), "does not fit in the entry");
}

#[test]
fn sparse_old_gnu_with_an_extra_block() {
    let mut block = tar::Header::new_gnu();
    block.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"real-name");
    block.set_entry_type(tar::EntryType::GNUSparse);
    block.set_mode(0o644);
    block.set_uid(0);
    block.set_gid(0);
    block.set_mtime(0);
    block.set_size(5);
    let octal =
        |value: u64| -> [u8; 12] { format!("{value:011o}\0").into_bytes().try_into().unwrap() };
    let gnu = block.as_gnu_mut().unwrap();
    gnu.realsize = octal(4096);
    gnu.sparse[0].offset = octal(512);
    gnu.sparse[0].numbytes = octal(3);
    for unused in &mut gnu.sparse[1..] {
        unused.offset = octal(515);
        unused.numbytes = octal(0);
    }
    gnu.isextended[0] = 1;
    block.set_cksum();
    let mut extra = [0; 512];
    extra[..12].copy_from_slice(&octal(2048));
    extra[12..24].copy_from_slice(&octal(2));
    let archive = Layer::new()
        .raw(block.as_bytes())
        .raw(&extra)
        .padded(b"abcde")
        .finish();
    let (entry, data) = only(&archive);
    let filled: Vec<_> = entry
        .chunks
        .unwrap()
        .into_iter()
        .filter(|chunk| chunk.length > 0)
        .collect();
    assert_eq!(filled, HOLES);
    assert_eq!((entry.size, data), (4096, b"abcde".to_vec()));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for (map, part) in [
        (&b"512,3,100,2"[..], "out of order"),
        (b"512,3,4095,2", "outside of its file"),
        (b"512,3,2048,1", "add up to 4 bytes, 5 are stored"),
        (b"512,3,2048", "has no length"),
        (b"512,3,18446744073709551615,2", "outside of its file"),
        (b"512,3,x,2", "not a number"),
    ] {
        let records = [("GNU.sparse.size", &b"4096"[..]), ("GNU.sparse.map", map)];
        let archive = Layer::new().item(&file(&records, b"abcde")).finish();
        refuse(&archive, part);
    }
    let dir = Item {
        kind: b'5',
        ..file(&[("GNU.sparse.map", b"0,0")], b"")
    };
    refuse(&Layer::new().item(&dir).finish(), "not a file");
}
