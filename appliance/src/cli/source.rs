//! Where an image comes from: `TRANSPORT:PATH[:REF]`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    OciArchive,
    DockerArchive,
    OciFolder,
}

/// A parsed source. Whether it exists is found out when it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub transport: Transport,
    pub path: PathBuf,
    pub reference: Option<String>,
}

const PREFIXES: [(&str, Transport); 3] = [
    ("oci-archive:", Transport::OciArchive),
    ("docker-archive:", Transport::DockerArchive),
    ("oci:", Transport::OciFolder),
];

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = PREFIXES
            .into_iter()
            .find_map(|(prefix, transport)| Some((text.strip_prefix(prefix)?, transport)));
        match found {
            Some((rest, transport)) if !rest.is_empty() && !rest.starts_with(':') => {
                let (path, reference) = split(rest, Path::exists);
                Ok(Self {
                    transport,
                    path,
                    reference,
                })
            }
            _ => Err(
                "oci-archive:FILE[:REF], docker-archive:FILE[:REF] or oci:DIR[:REF] is needed"
                    .to_owned(),
            ),
        }
    }
}

/// A path may hold colons itself: the longest one that exists wins, else it ends at the first.
fn split(rest: &str, exists: impl Fn(&Path) -> bool) -> (PathBuf, Option<String>) {
    if exists(Path::new(rest)) {
        return (rest.into(), None);
    }
    let colons: Vec<usize> = rest.match_indices(':').map(|(at, _)| at).collect();
    let end = colons
        .iter()
        .rev()
        .find(|at| exists(Path::new(&rest[..**at])))
        .or(colons.first());
    match end {
        Some(at) => (
            rest[..*at].into(),
            Some(rest[at + 1..].to_owned()).filter(|r| !r.is_empty()),
        ),
        None => (rest.into(), None),
    }
}

impl Source {
    /// Whether `text` names an archive and not an image that is there already.
    pub fn is_meant_by(text: &str) -> bool {
        PREFIXES.iter().any(|(prefix, _)| text.starts_with(prefix))
    }

    /// As the admin API names it. A folder is sent as an archive.
    pub fn transport_name(&self) -> &'static str {
        match self.transport {
            Transport::OciArchive | Transport::OciFolder => "oci-archive",
            Transport::DockerArchive => "docker-archive",
        }
    }

    /// The reference, or the name of the file without its endings. A docker archive has names of
    /// its own; in an OCI layout they are mostly `latest`, which says nothing.
    pub fn default_name(&self) -> Option<String> {
        if self.reference.is_some() || self.transport == Transport::DockerArchive {
            return self.reference.clone();
        }
        let name = self
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let endings = [".tar.gz", ".tgz", ".tar.zst", ".tar", ".oci"];
        let stem = endings.iter().find_map(|ending| name.strip_suffix(ending));
        Some(stem.unwrap_or(&name).to_owned()).filter(|stem| !stem.is_empty())
    }

    /// The archive's bytes, from their start.
    pub fn open(&self) -> io::Result<File> {
        let metadata = std::fs::metadata(&self.path)?;
        match self.transport {
            Transport::OciFolder if !metadata.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
            Transport::OciFolder => archive_of(&self.path),
            Transport::OciArchive | Transport::DockerArchive if metadata.is_dir() => {
                Err(io::ErrorKind::IsADirectory.into())
            }
            Transport::OciArchive | Transport::DockerArchive => File::open(&self.path),
        }
    }
}

/// The layout folder as one archive, in a file without a name.
fn archive_of(folder: &Path) -> io::Result<File> {
    use std::io::Seek as _;
    let mut archive = tar::Builder::new(tempfile::tempfile()?);
    archive.append_dir_all(".", folder)?;
    let mut file = archive.into_inner()?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_ends_at_the_first_colon_unless_a_longer_one_exists() {
        let split = |rest: &str, existing: &'static str| {
            let (path, reference) = split(rest, |path| path == Path::new(existing));
            (path.to_str().unwrap().to_owned(), reference)
        };
        assert_eq!(split("a.tar", ""), ("a.tar".into(), None));
        assert_eq!(split("a.tar:", "a.tar"), ("a.tar".into(), None));
        let python = Some("python:3.13".to_owned());
        assert_eq!(
            split("a.tar:python:3.13", ""),
            ("a.tar".into(), python.clone())
        );
        assert_eq!(
            split("a.tar:python:3.13", "a.tar"),
            ("a.tar".into(), python)
        );
        assert_eq!(
            split("a:b.tar:x", "a:b.tar"),
            ("a:b.tar".into(), Some("x".into()))
        );
        assert_eq!(split("a:b.tar", "a:b.tar"), ("a:b.tar".into(), None));
    }

    #[test]
    fn unknown_transport_or_empty_path_is_refused() {
        for bad in [
            "",
            "x",
            "docker:x",
            "oci:",
            "oci-archive:",
            "oci-archive::ref",
        ] {
            Source::from_str(bad).unwrap_err();
        }
    }

    #[test]
    fn default_name_is_the_reference_or_the_file_without_its_ending() {
        let name = |text: &str| Source::from_str(text).unwrap().default_name();
        assert_eq!(name("oci-archive:/x/demo.tar").unwrap(), "demo");
        assert_eq!(name("oci-archive:/x/demo.tar.gz").unwrap(), "demo");
        assert_eq!(name("docker-archive:/x/demo.tar:a/b:1").unwrap(), "a/b:1");
        assert_eq!(name("docker-archive:/x/demo.tar"), None);
        assert_eq!(name("oci:/x/layout").unwrap(), "layout");
    }

    #[test]
    fn folder_is_sent_as_an_archive_with_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        std::fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        std::fs::write(folder.path().join("blobs/sha256/00"), "blob").unwrap();
        let source = Source::from_str(&format!("oci:{}", folder.path().display())).unwrap();
        let mut archive = tar::Archive::new(source.open().unwrap());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        for wanted in ["oci-layout", "blobs/sha256/00"] {
            assert!(
                names.iter().any(|name| name.ends_with(wanted)),
                "{wanted} not in {names:?}"
            );
        }
    }

    #[test]
    fn folder_in_the_place_of_an_archive_and_the_other_way_round_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |text: String| Source::from_str(&text).unwrap().open();
        open(format!("oci-archive:{}", folder.path().display())).unwrap_err();
        open(format!("oci:{}", file.path().display())).unwrap_err();
    }
}
