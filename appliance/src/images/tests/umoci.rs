//! Our tree against that of `umoci unpack`, which is the reference tool of the image format: names, types, modes, owners, times,
//! extended attributes, link counts, contents and device numbers, of the real image that the suite builds and of a table of nasty layers.
//!
//! Where umoci refuses a layer, or squashfs cannot hold what it says, the table gives the reason and the tree that is expected of
//! us; should umoci change, the test fails and the table is to be corrected.
//!
//! # Not compared
//! Times of directories (umoci makes parents that no layer names at the time of unpacking, and the specification says nothing), and
//! where holes are, since a file system may fill them. Sockets: no tar format has them.
//!
//! Needs root, for owners and devices, and umoci; `cargo dev test` has both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::images::squash::reader::{Line, read_lines};
use crate::images::testing::{Item, Layer, OciArchive, build, gzip, sha256};

const IMAGE_VARIABLE: &str = "CABANA_PYTHON_IMAGE";

/// `path → what it is`, one line each.
type Tree = BTreeMap<String, String>;

/// What umoci makes of the same layers.
enum Umoci {
    Agrees,
    /// umoci refuses, or makes another tree, for this reason. Ours is this one, by the specification or as near as squashfs can come.
    Differs {
        why: &'static str,
        expected: &'static [&'static str],
    },
    /// umoci takes it, and we refuse: the reason is in our error.
    WeRefuse(&'static str),
}

use Umoci::{Agrees, Differs, WeRefuse};

struct Case {
    name: &'static str,
    layers: Vec<Layer>,
    umoci: Umoci,
}

fn case(name: &'static str, layers: Vec<Layer>, umoci: Umoci) -> Case {
    Case {
        name,
        layers,
        umoci,
    }
}

fn item(path: &[u8], kind: u8) -> Item<'_> {
    Item {
        path,
        kind,
        ..Item::default()
    }
}

/// Which is missing, if this host cannot compare.
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can unpack owners and devices");
    }
    match Command::new("umoci").arg("--version").output() {
        Ok(_) => None,
        Err(_) => Some("there is no umoci; `cargo dev test` installs it"),
    }
}

#[test]
fn tree_of_nasty_layers_is_that_of_umoci() {
    if let Some(why) = missing() {
        println!("SKIPPED: tree_of_nasty_layers_is_that_of_umoci: {why}");
        return;
    }
    let mut wrong = String::new();
    for Case {
        name,
        layers,
        umoci,
    } in table()
    {
        let archive = archive(&layers);
        let ours = build(&archive)
            .map(|(_, image)| tree_of_image(&image))
            .map_err(|error| error.message);
        let theirs = unpacked(|folder| extract(&archive, folder));
        if let Err(difference) = judge(&umoci, ours, theirs) {
            wrong.push_str(&format!("{name}:\n{difference}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn tree_of_the_debian_image_is_that_of_umoci() {
    let missing = missing().map(str::to_owned);
    let image = std::env::var_os(IMAGE_VARIABLE);
    let none = || format!("{IMAGE_VARIABLE} names no image; `cargo dev test` builds it");
    let why = missing.or_else(|| image.is_none().then(none));
    let (None, Some(image)) = (why.clone(), image) else {
        let why = why.unwrap_or_default();
        println!("SKIPPED: tree_of_the_debian_image_is_that_of_umoci: {why}");
        return;
    };
    let archive = fs::read(image).unwrap();
    let (_, root) = build(&archive).unwrap();
    let ours = tree_of_image(&root);
    let theirs = unpacked(|folder| extract(&archive, folder)).unwrap();
    assert!(theirs.len() > 1000, "{} files", theirs.len());
    assert_eq!(differences(&ours, &theirs), "");
}

fn judge(
    umoci: &Umoci,
    ours: Result<Tree, String>,
    theirs: Result<Tree, String>,
) -> Result<(), String> {
    match (umoci, ours, theirs) {
        (WeRefuse(part), Err(error), Ok(_)) if error.contains(part) => Ok(()),
        (Agrees, Ok(ours), Ok(theirs)) => match differences(&ours, &theirs) {
            same if same.is_empty() => Ok(()),
            differences => Err(differences),
        },
        (Differs { why, expected }, Ok(ours), theirs) => {
            if theirs.as_ref().is_ok_and(|theirs| *theirs == ours) {
                return Err(format!("umoci agrees by now: {why}"));
            }
            let expected = expected.iter().map(|line| {
                let (path, rest) = line.split_once(' ').unwrap();
                (path.to_owned(), rest.to_owned())
            });
            match differences(&ours, &expected.collect()) {
                same if same.is_empty() => Ok(()),
                differences => Err(format!("{differences}umoci: {theirs:#?}")),
            }
        }
        (_, ours, theirs) => Err(format!("ours: {ours:#?}\numoci: {theirs:#?}")),
    }
}

fn differences(ours: &Tree, theirs: &Tree) -> String {
    let mut text = String::new();
    let names = ours.keys().chain(theirs.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let (ours, theirs) = (ours.get(name), theirs.get(name));
        if ours != theirs {
            text.push_str(&format!(
                "{name}\n  ours:   {ours:?}\n  theirs: {theirs:?}\n"
            ));
        }
    }
    text
}

/// An archive of these layers as umoci wants it, compressed.
fn archive(layers: &[Layer]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| layer.clone().finish())
        .map(|plain| (gzip(&plain), plain))
        .collect();
    let mut archive = OciArchive::default();
    let manifest = archive.image(&layers, "amd64", &serde_json::json!({}));
    archive.list(&manifest, Some("latest"), None);
    archive.finish()
}

fn extract(archive: &[u8], folder: &Path) {
    tar::Archive::new(archive).unpack(folder).unwrap();
}

/// What umoci makes of the layout that `extract` puts into a folder.
fn unpacked(extract: impl FnOnce(&Path)) -> Result<Tree, String> {
    let folder = tempfile::tempdir().unwrap();
    let (layout, bundle) = (folder.path().join("layout"), folder.path().join("bundle"));
    extract(&layout);
    let index = fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let tag = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    let unpacked = Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:{}", layout.display(), tag.as_str().unwrap()))
        .arg(&bundle)
        .output()
        .unwrap();
    if !unpacked.status.success() {
        return Err(String::from_utf8_lossy(&unpacked.stderr).into_owned());
    }
    Ok(tree_of_folder(&bundle.join("rootfs")))
}

/// One name, with all that is compared.
struct Found {
    path: String,
    letter: &'static str,
    /// Permissions and owner.
    access: String,
    mtime: i64,
    /// The same for names of the same file.
    inode: u64,
    links: u64,
    details: String,
}

fn tree(found: Vec<Found>) -> Tree {
    let mut first = BTreeMap::new();
    for one in found.iter().rev() {
        first.insert(one.inode, one.path.clone());
    }
    let line = |one: Found| {
        let mut line = format!("{} {}", one.letter, one.access);
        if one.letter != "d" {
            line.push_str(&format!(" t={}", one.mtime));
        }
        line.push_str(&format!(" links={}", one.links));
        if one.letter != "d" && one.links > 1 {
            line.push_str(&format!(" is={}", first[&one.inode]));
        }
        if !one.details.is_empty() {
            line.push_str(&format!(" {}", one.details));
        }
        (one.path, line)
    };
    found.into_iter().map(line).collect()
}

fn tree_of_image(image: &[u8]) -> Tree {
    let found = read_lines(image).into_iter().map(
        |Line {
             path,
             letter,
             access,
             mtime,
             inode,
             links,
             details,
         }| Found {
            path,
            letter,
            access,
            mtime: mtime.into(),
            inode: inode.into(),
            links: links.into(),
            details: match details.find(" holes=") {
                Some(at) => {
                    let rest = details[at + 1..].find(' ').map(|end| at + 1 + end);
                    format!(
                        "{}{}",
                        &details[..at],
                        rest.map_or("", |rest| &details[rest..])
                    )
                }
                None => details,
            },
        },
    );
    tree(found.collect())
}

fn tree_of_folder(root: &Path) -> Tree {
    let mut found = Vec::new();
    let mut todo = vec![(root.to_owned(), String::new())];
    while let Some((path, name)) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut links = metadata.nlink();
        let mode = rustix::fs::FileType::from_raw_mode(metadata.mode());
        let device = || {
            let device = metadata.rdev();
            format!(
                "{}:{}",
                rustix::fs::major(device),
                rustix::fs::minor(device)
            )
        };
        use rustix::fs::FileType as Type;
        let (letter, mut details) = match mode {
            Type::Directory => {
                let mut entries: Vec<_> = fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap())
                    .collect();
                let is_folder = |entry: &&fs::DirEntry| entry.file_type().unwrap().is_dir();
                // What a file system counts here differs; POSIX's own count does not.
                links = 2 + entries.iter().filter(is_folder).count() as u64;
                todo.extend(entries.drain(..).map(|entry| {
                    let child = entry.file_name();
                    let child = format!("{name}/{}", child.as_bytes().escape_ascii());
                    (entry.path(), child)
                }));
                ("d", String::new())
            }
            Type::RegularFile => ("f", content(&fs::read(&path).unwrap())),
            Type::Symlink => {
                let target = fs::read_link(&path).unwrap();
                let target = target.as_os_str().as_bytes().escape_ascii();
                ("l", format!("-> {target}"))
            }
            Type::CharacterDevice => ("c", device()),
            Type::BlockDevice => ("b", device()),
            Type::Fifo => ("p", String::new()),
            other => panic!("{other:?} at {name}"),
        };
        let xattrs = xattrs(&path);
        if !xattrs.is_empty() {
            let blank = if details.is_empty() { "" } else { " " };
            details.push_str(&format!("{blank}{{{xattrs}}}"));
        }
        let (uid, gid) = (metadata.uid(), metadata.gid());
        found.push(Found {
            path: if name.is_empty() { "/".into() } else { name },
            letter,
            access: format!("{:04o} {uid}:{gid}", metadata.mode() & 0o7777),
            mtime: metadata.mtime(),
            inode: metadata.ino(),
            links,
            details,
        });
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    tree(found)
}

/// As `squash::reader` shows it.
fn content(data: &[u8]) -> String {
    match data.len() {
        0..=40 => format!("\"{}\"", data.escape_ascii()),
        length => format!("{length} bytes {}", &sha256(data)[..8]),
    }
}

fn xattrs(path: &Path) -> String {
    /// The kernel's XATTR_LIST_MAX and XATTR_SIZE_MAX.
    const LIMIT: usize = 65536;
    let mut buffer = vec![0; LIMIT];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..length].split(|byte| *byte == 0);
    let mut names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    names.sort();
    let pairs = names.into_iter().map(|name| {
        let mut value = vec![0; LIMIT];
        let text = OsString::from_vec(name.to_vec());
        let length = rustix::fs::lgetxattr(path, &text, &mut value[..]).unwrap();
        let value = match length {
            0..=40 => value[..length].escape_ascii().to_string(),
            length => format!("{length} bytes"),
        };
        format!("{}={value}", name.escape_ascii())
    });
    pairs.collect::<Vec<_>>().join(", ")
}

#[rustfmt::skip]
fn table() -> Vec<Case> {
    let new = Layer::new;
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let target = "t".repeat(3000);
    let mut holes = b"2\n512\n3\n2048\n2\n".to_vec();
    holes.resize(512, 0);
    holes.extend_from_slice(b"abcde");
    vec![
        case("every type with mode, owner and time, setuid and setgid bits, devices", vec![new()
            .item(&Item { mode: 0o4755, uid: 1000, gid: 1001, mtime: 11, data: b"data", ..item(b"./suid", b'0') })
            .item(&Item { mode: 0o1777, ..item(b"./tmp/", b'5') })
            .item(&Item { mode: 0o2750, uid: 70_000, gid: 5, ..item(b"./setgid", b'5') })
            .item(&Item { mode: 0o6711, ..item(b"./both", b'0') })
            .item(&Item { mode: 0o777, uid: 3, link: b"../etc/x", mtime: 14, ..item(b"./link", b'2') })
            .item(&Item { mode: 0o666, device: (1, 3), mtime: 15, ..item(b"./null", b'3') })
            .item(&Item { mode: 0o660, gid: 6, device: (259, 70_000), ..item(b"./disk", b'4') })
            .item(&Item { mode: 0o600, mtime: 16, ..item(b"./pipe", b'6') })], Agrees),
        case("metadata of the root", vec![new().item(&Item { mode: 0o700, uid: 7, ..item(b"./", b'5') }).file("a", b"")], Agrees),
        case("whiteouts of files and directories of lower layers", vec![
            new().file("a", b"lower").file("b", b"lower").dir("d").dir("d/e").file("d/x", b"1").file("d/e/y", b"1"),
            new().file(".wh.a", b"").file(".wh.d", b"").file(".wh.nothing", b"")], Agrees),
        case("whiteout before and after what its own layer brings", vec![
            new().file("a", b"lower").file("b", b"lower"),
            new().file(".wh.a", b"").file("a", b"upper").file("b", b"upper").file(".wh.b", b"")], Agrees),
        case("whiteout of a directory that its own layer brings again", vec![
            new().dir("d").dir("d/e").file("d/old", b"1").file("d/e/old", b"1"),
            new().file(".wh.d", b"").dir("d").dir("d/e").file("d/e/new", b"2")], Agrees),
        case("whiteout behind the directory that its own layer brings again", vec![
            new().dir("d").dir("d/e").file("d/old", b"1").file("d/e/old", b"1"),
            new().dir("d").dir("d/e").file("d/e/new", b"2").file(".wh.d", b"")], Agrees),
        case("opaque directory, marker first", vec![
            new().dir("d").dir("d/e").file("d/old", b"1").file("d/e/old", b"1").file("keep", b"1"),
            new().dir("d").file("d/.wh..wh..opq", b"").file("d/new", b"2").dir("d/e").file("d/e/new", b"2")], Agrees),
        case("opaque directory, marker last", vec![
            new().dir("d").dir("d/e").file("d/old", b"1").file("d/e/old", b"1"),
            new().dir("d").file("d/new", b"2").dir("d/e").file("d/e/new", b"2").file("d/.wh..wh..opq", b"")], Agrees),
        case("opaque root", vec![new().file("a", b"1").dir("d").file("d/x", b"1"), new().file("b", b"2").file(".wh..wh..opq", b"")], Agrees),
        case("whiteout that is a hard link, a device, a directory", vec![
            new().file("a", b"1").file("b", b"2").file("c", b"3").file("keep", b"4"),
            new().hard_link(".wh.a", "keep").item(&item(b".wh.b", b'3')).dir(".wh.c")], Agrees),
        case("removed and back in a later layer", vec![new().file("a", b"1"), new().file(".wh.a", b""), new().symlink("a", "b")], Agrees),
        case("directory over directory", vec![
            new().item(&Item { mode: 0o700, uid: 5, ..item(b"d", b'5') }).file("d/lower", b"1"),
            new().item(&Item { mode: 0o755, uid: 6, ..item(b"d", b'5') }).file("d/upper", b"2")], Agrees),
        case("file becomes directory and the other way round", vec![
            new().dir("dir-to-file").file("dir-to-file/x", b"1").file("file-to-dir", b"1").dir("dir-to-link").file("dir-to-link/x", b"1"),
            new().file("dir-to-file", b"2").dir("file-to-dir").file("file-to-dir/y", b"2").symlink("dir-to-link", "/nowhere")], Agrees),
        case("symlink becomes directory", vec![
            new().dir("usr").symlink("link", "usr"),
            new().dir("link").file("link/x", b"2")], Agrees),
        case("hard links within and across layers", vec![
            new().file("a", b"shared").dir("dir").hard_link("dir/b", "a").file("d", b"alone"),
            new().hard_link("c", "dir/b")], Agrees),
        case("hard links to replaced and removed targets", vec![
            new().file("a", b"old").hard_link("b", "a").hard_link("c", "a"),
            new().file("a", b"new").file(".wh.b", b"").hard_link("d", "a").hard_link("e", "c")], Agrees),
        case("hard link that replaces a file", vec![new().file("a", b"1").file("b", b"2"), new().hard_link("b", "a")], Agrees),
        case("hard link to a symlink", vec![new().file("file", b"1").symlink("s", "file").hard_link("t", "s")], Agrees),
        case("hard link with an absolute target", vec![new().dir("etc").file("etc/a", b"1").hard_link("b", "/etc/a")], Agrees),
        case("hard link to a device", vec![new().item(&Item { device: (1, 5), ..item(b"zero", b'3') }).hard_link("again", "zero")], Agrees),
        case("names through symlinks, absolute and with ..", vec![
            new().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").symlink("out", "../../../../..").symlink("abs", "/usr"),
            new().file("lib/a", b"1").file("out/usr/b", b"2").file("abs/c", b"3")], Agrees),
        case("absolute and dotted names", vec![new().dir("etc").file("/etc/hosts", b"1").file("etc/./x/../passwd", b"2")], Agrees),
        case("name that leaves the image", vec![new().file("a", b"").file("../escape", b"1")], WeRefuse("leaves the image")),
        case("absolute symlinks and those with .. stay as they are", vec![new().symlink("a", "/etc/passwd").symlink("b", "../../../x")], Agrees),
        case("file capability and other attributes", vec![new()
            .item(&Item { pax: &[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.nasty", b"\n=\x01 12 a=b\n")], ..item(b"ping", b'0') })
            .item(&Item { pax: &[("SCHILY.xattr.trusted.t", b"1")], ..item(b"d", b'5') })
            .item(&Item { pax: &[("SCHILY.xattr.trusted.l", b"1")], link: b"ping", ..item(b"link", b'2') })], Agrees),
        case("attributes of a directory that a later layer has without", vec![
            new().item(&Item { pax: &[("SCHILY.xattr.user.old", b"1")], ..item(b"d", b'5') }),
            new().item(&Item { pax: &[("SCHILY.xattr.user.new", b"2")], ..item(b"d", b'5') })], Agrees),
        case("file capability on a setuid file of another owner", vec![new()
            .item(&Item { mode: 0o4755, uid: 9, pax: &[("SCHILY.xattr.security.capability", capability)], ..item(b"x", b'0') })], Agrees),
        case("sparse file, PAX 0.1", vec![new().item(&Item { data: b"abcde", pax: &[("GNU.sparse.name", b"real-name"),
            ("GNU.sparse.size", b"4096"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"512,3,2048,2")], ..item(b"GNUSparseFile.1/x", b'0') })], Agrees),
        case("sparse file, PAX 1.0", vec![new().item(&Item { data: &holes, pax: &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real-name"), ("GNU.sparse.realsize", b"4096")], ..item(b"GNUSparseFile.1/x", b'0') })], Agrees),
        case("sparse file, old GNU", vec![gnu_sparse()], Differs {
            why: "it knows no entries of type S, which GNU tar writes with --sparse --format=gnu",
            expected: &["/ d 0755 0:0 links=2", "/holes f 0644 0:0 t=0 links=1 4096 bytes cb3c0649"] }),
        case("long names and targets", vec![new().dir(&"d".repeat(200)).file(&long, b"gnu").symlink("s", &target)], Agrees),
        case("names that are not UTF-8", vec![new().file("a", b"").item(&Item { data: b"1", ..item(b"latin-\xe9", b'0') })
            .item(&Item { data: b"2", ..item(b"nl\nname", b'0') })], Agrees),
        case("fractions of a second", vec![new().item(&Item { pax: &[("mtime", b"77.9")], ..item(b"a", b'0') })], Agrees),
        case("time before 1970", vec![new().item(&Item { pax: &[("mtime", b"-1")], ..item(b"a", b'0') })], Differs {
            why: "squashfs holds no time before 1970",
            expected: &["/ d 0755 0:0 links=2", "/a f 0644 0:0 t=0 links=1 \"\""] }),
        case("the same name twice in a layer", vec![new().file("a", b"1").file("a", b"2").dir("d").file("d/x", b"1").file("d", b"3")], Agrees),
    ]
}

/// Three bytes at 512 and two at 2048 of 4096.
fn gnu_sparse() -> Layer {
    let octal =
        |value: u64| -> [u8; 12] { format!("{value:011o}\0").into_bytes().try_into().unwrap() };
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..5].copy_from_slice(b"holes");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(5);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.realsize = octal(4096);
    for (place, (offset, length)) in gnu.sparse.iter_mut().zip([(512, 3), (2048, 2), (4096, 0)]) {
        place.offset = octal(offset);
        place.numbytes = octal(length);
    }
    header.set_cksum();
    Layer::new().raw(header.as_bytes()).padded(b"abcde")
}
