//! The first file system of the guest under test: the shipped one, with another first process.
//!
//! Format: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.

const HEADER: usize = 110;
const EXECUTABLE: u32 = 0o100_755;

/// The content of a file in a `newc` archive.
pub fn member(archive: &[u8], wanted: &str) -> Option<Vec<u8>> {
    let mut rest = archive;
    loop {
        let field = |number: usize| {
            let text = rest.get(6 + number * 8..14 + number * 8)?;
            usize::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let name = rest.get(HEADER..HEADER + name_size.checked_sub(1)?)?;
        let start = (HEADER + name_size).next_multiple_of(4);
        let content = rest.get(start..start + size)?;
        match std::str::from_utf8(name).ok()? {
            "TRAILER!!!" => return None,
            name if name == wanted => return Some(content.to_vec()),
            _ => rest = rest.get((start + size).next_multiple_of(4)..)?,
        }
    }
}

/// A whole archive with these programs and the folder `/proc`, to be read after another one whose files it replaces.
pub fn with_programs(programs: &[(&str, &[u8])]) -> Vec<u8> {
    const FOLDER: u32 = 0o040_755;
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, data: &[u8]| {
        let (size, name_size) = (data.len(), name.len() + 1);
        let header = [0, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        archive.extend_from_slice(b"070701");
        let fields = header.iter().map(|field| format!("{field:08x}"));
        fields.for_each(|field| archive.extend_from_slice(field.as_bytes()));
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add("proc", FOLDER, b"");
    for (name, data) in programs {
        add(name, EXECUTABLE, data);
    }
    add("TRAILER!!!", 0, b"");
    archive
}

#[test]
fn member_of_an_archive_is_found_by_its_name() {
    let archive = with_programs(&[("agent", b"first"), ("init", b"second one")]);
    assert_eq!(
        member(&archive, "init").as_deref(),
        Some(&b"second one"[..])
    );
    assert_eq!(member(&archive, "agent").as_deref(), Some(&b"first"[..]));
    assert_eq!(member(&archive, "missing"), None);
    assert_eq!(member(&archive[..50], "init"), None);
}
