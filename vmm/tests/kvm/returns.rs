//! The kernel's returns, written ahead for this processor, for another one and not at all: what the kernel makes of them is the same.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmm::VmExit;
use vmm::boot::returns::{Returns, write_ahead};

use crate::boot::{boot, kernel};

/// First program header of a `vmlinux` (System V ABI, ELF-64), the segment with the text.
const SEGMENT: usize = 64;
/// Most of 28,000 returns are in that segment.
const MANY: usize = 20_000;

fn number(image: &[u8], at: usize) -> usize {
    let bytes = image[at..at + 8].try_into().unwrap();
    usize::try_from(u64::from_le_bytes(bytes)).unwrap()
}

/// What a guest has in the places `sites` of its text when it has ended, if it began with `image`.
fn text_after_a_boot(image: &[u8], sites: &[usize]) -> Option<Vec<u8>> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(image, 0).unwrap();
    let guest = boot("random", |spec| spec.kernel = file)?;
    let memory: File = guest.memory.try_clone().unwrap();
    let ended = guest.wait();
    assert_eq!(ended.exit, VmExit::PowerOff, "{}", ended.console.text());
    assert!(
        !ended.console.text().contains("WARNING"),
        "{}",
        ended.console.text()
    );
    let mut text = vec![0; number(image, SEGMENT + 32)];
    memory
        .read_exact_at(&mut text, number(image, SEGMENT + 24) as u64)
        .unwrap();
    Some(sites.iter().map(|site| text[*site]).collect())
}

#[test]
fn kernel_corrects_returns_that_were_guessed_wrong() {
    let Some(kernel) = kernel() else { return };
    let mut image = vec![0; usize::try_from(kernel.metadata().unwrap().len()).unwrap()];
    kernel.read_exact_at(&mut image, 0).unwrap();
    let written = |returns| {
        let mut image = image.clone();
        let count = write_ahead(&mut image, returns);
        assert!(count > MANY, "{count} returns are written as {returns:?}");
        image
    };
    let plain = written(Returns::Plain);
    let (offset, size) = (number(&image, SEGMENT + 8), number(&image, SEGMENT + 32));
    let sites: Vec<usize> = (0..size)
        .filter(|at| image[offset + at] != plain[offset + at])
        .collect();
    assert!(sites.len() > MANY);
    let Some(expected) = text_after_a_boot(&image, &sites) else {
        return;
    };
    for returns in [
        Returns::of_this_processor(),
        Returns::Plain,
        Returns::Thunk("srso_alias_return_thunk"),
    ] {
        let found = text_after_a_boot(&written(returns), &sites).unwrap();
        let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "of {} bytes, with {returns:?}", sites.len());
    }
}
