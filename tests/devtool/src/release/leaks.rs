//! A release says nothing of the machine that built it.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Characters that are shown around what was found.
const AROUND: usize = 100;

/// Fails if one of `places` is in the file.
pub fn assert_none(program: &Path, places: &[PathBuf]) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("Cannot read {}", program.display()))?;
    if let Some(found) = find(&bytes, places) {
        bail!(
            "{} names a folder of this machine: {found}",
            program.display()
        );
    }
    Ok(())
}

fn find(bytes: &[u8], places: &[PathBuf]) -> Option<String> {
    let names: Vec<Vec<u8>> = places
        .iter()
        .map(|place| [place.as_os_str().as_bytes(), b"/"].concat())
        .collect();
    // All begin with a slash, which few bytes do.
    let at = bytes.iter().enumerate().find_map(|(at, byte)| {
        let here = *byte == b'/' && names.iter().any(|name| bytes[at..].starts_with(name));
        here.then_some(at)
    })?;
    let text = &bytes[at..bytes.len().min(at + AROUND)];
    let end = text.iter().position(|byte| !(b' '..=b'~').contains(byte));
    Some(String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_of_the_machine_is_found_and_one_that_begins_like_it_is_not() {
        let places = [PathBuf::from("/home/me")];
        let binary = b"\x7fELF\0panicked at /home/me/cabana/src/main.rs\0rest";
        assert_eq!(
            find(binary, &places).as_deref(),
            Some("/home/me/cabana/src/main.rs")
        );
        assert_eq!(find(b"/home/mellow/x /homes /cabana/src", &places), None);
    }
}
