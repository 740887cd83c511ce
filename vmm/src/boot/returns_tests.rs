use super::*;

/// Where the text of the kernel below is, in memory and in its file.
const TEXT: u64 = 0xffff_ffff_8100_0000;
const TEXT_OFFSET: usize = 0x200;
const SITES_OFFSET: usize = 0x300;
const SITES_ADDRESS: u64 = TEXT + 0x100;

/// Offsets in the text.
const UNPATCHED: u64 = 0x80;
const SRSO: u64 = 0x90;
const RETURN: u64 = 0x10;
const SECOND: u64 = 0x20;
const STATIC_CALL: u64 = 0x30;
const OTHER_JUMP: u64 = 0x40;

fn jump(from: u64, to: u64) -> [u8; 5] {
    let distance = i32::try_from(to.cast_signed() - (from + 5).cast_signed()).unwrap();
    let [a, b, c, d] = distance.to_le_bytes();
    [JUMP, a, b, c, d]
}

/// A kernel with two returns, a static call and a place in the list that is none.
fn kernel(symbols: &[(&str, u64)]) -> Vec<u8> {
    let mut image = vec![0x90; 0x300];
    image[..64].fill(0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    for (at, target) in [
        (RETURN, UNPATCHED),
        (SECOND, UNPATCHED),
        (STATIC_CALL, UNPATCHED),
        (OTHER_JUMP, SRSO),
    ] {
        put(TEXT_OFFSET + index(at), &jump(at, target));
    }
    put(TEXT_OFFSET + index(STATIC_CALL) + 5, &TRAMPOLINE);
    for place in [RETURN, SECOND, STATIC_CALL, OTHER_JUMP] {
        let entry = SITES_ADDRESS + (image.len() - SITES_OFFSET) as u64;
        let distance = i32::try_from((TEXT + place).cast_signed() - entry.cast_signed()).unwrap();
        image.extend_from_slice(&distance.to_le_bytes());
    }
    let sites = (SITES_OFFSET, image.len() - SITES_OFFSET);
    let mut names = b"\0.return_sites\0".to_vec();
    let mut table = vec![0; SYM_SIZE];
    for (name, address) in symbols {
        let mut entry = [0; SYM_SIZE];
        entry[..4].copy_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
        entry[8..16].copy_from_slice(&(TEXT + address).to_le_bytes());
        table.extend_from_slice(&entry);
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    let names_at = (image.len(), names.len());
    image.extend_from_slice(&names);
    let table_at = (image.len(), table.len());
    image.extend_from_slice(&table);
    let program_headers = image.len();
    let mut header = vec![0; 56];
    header[0] = 1;
    for (at, value) in [(8, TEXT_OFFSET as u64), (16, TEXT), (32, 0x200)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    image.extend_from_slice(&header);
    let section_headers = image.len();
    for (name, kind, address, (offset, size), link) in [
        (1_u32, 1_u32, SITES_ADDRESS, sites, 0_u32),
        (0, 3, 0, names_at, 0),
        (0, 2, 0, table_at, 1),
    ] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[16..24].copy_from_slice(&address.to_le_bytes());
        header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        header[40..44].copy_from_slice(&link.to_le_bytes());
        image.extend_from_slice(&header);
    }
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    image[32..40].copy_from_slice(&(program_headers as u64).to_le_bytes());
    image[40..48].copy_from_slice(&(section_headers as u64).to_le_bytes());
    image[56] = 1;
    image[60] = 3;
    image[62] = 1;
    image
}

const ALL: [(&str, u64); 3] = [
    (PATCHED, 0),
    (UNPATCHED_THUNK, UNPATCHED),
    ("srso_return_thunk", SRSO),
];

fn at(image: &[u8], place: u64) -> &[u8] {
    let start = TEXT_OFFSET + index(place);
    &image[start..start + JUMP_LENGTH]
}

#[test]
fn returns_become_jumps_to_the_thunk_and_nothing_else_changes() {
    let before = kernel(&ALL);
    let mut image = before.clone();
    assert_eq!(
        write_ahead(&mut image, Returns::Thunk("srso_return_thunk")),
        2
    );
    for place in [RETURN, SECOND] {
        assert_eq!(at(&image, place), jump(place, SRSO));
        let start = TEXT_OFFSET + index(place);
        image[start..start + JUMP_LENGTH].copy_from_slice(at(&before, place));
    }
    assert_eq!(image, before);
}

#[test]
fn returns_become_ordinary_ones_where_the_processor_needs_no_thunk() {
    let mut image = kernel(&ALL);
    assert_eq!(write_ahead(&mut image, Returns::Plain), 2);
    assert_eq!(at(&image, RETURN), PLAIN_RETURN);
    assert_eq!(at(&image, STATIC_CALL), jump(STATIC_CALL, UNPATCHED));
}

#[test]
fn kernel_that_does_not_know_of_guesses_is_left_alone() {
    let before = kernel(&ALL[1..]);
    let mut image = before.clone();
    assert_eq!(write_ahead(&mut image, Returns::Plain), 0);
    assert_eq!(image, before);
}

#[test]
fn kernel_without_the_thunk_is_left_alone() {
    let before = kernel(&ALL);
    let mut image = before.clone();
    assert_eq!(
        write_ahead(&mut image, Returns::Thunk("its_return_thunk")),
        0
    );
    assert_eq!(image, before);
}

#[test]
fn damaged_file_is_left_to_the_loader() {
    let whole = kernel(&ALL);
    for length in 0..whole.len() {
        let mut image = whole[..length].to_vec();
        write_ahead(&mut image, Returns::Plain);
    }
    for at in 0..64 {
        let mut image = whole.clone();
        image[at] ^= 0xff;
        write_ahead(&mut image, Returns::Plain);
    }
}

#[test]
fn thunk_follows_the_family() {
    assert_eq!(family(0x0080_0f12), 0x17, "Zen 1");
    assert_eq!(family(0x00a2_0f10), 0x19, "Zen 3");
    assert_eq!(family(0x000c_06f2), 6, "an Intel");
    assert_eq!(
        Returns::of_amd(0x17, false),
        Returns::Thunk("srso_return_thunk")
    );
    assert_eq!(
        Returns::of_amd(0x17, true),
        Returns::Thunk("retbleed_return_thunk")
    );
    assert_eq!(
        Returns::of_amd(0x19, true),
        Returns::Thunk("srso_alias_return_thunk")
    );
    assert_eq!(Returns::of_amd(0x1a, true), Returns::Plain);
}

fn index(place: u64) -> usize {
    usize::try_from(place).unwrap()
}
