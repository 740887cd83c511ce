//! The image file: read back by `backhand` and by our own reader, equal bytes every time.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek};
use std::path::Path;

use backhand::{FilesystemReader, InnerNode};

use super::reader::read_image;
use super::{Shape, write_with};
use crate::images::Limits;
use crate::images::flatten::Flattener;
use crate::images::spool::{Spool, SpoolReader};
use crate::images::testing::{Item, Layer, OciArchive, build, gzip};
use crate::images::tree::{Dentry, Extent, InodeId, Meta, Node, Tree};

/// As images have it; `other_shapes_are_read_as_well` tries more.
const BLOCK_BYTES: usize = 1 << 17;

/// Bytes that do not compress, the same each time.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(length)
    .collect()
}

struct TreeBuilder {
    tree: Tree,
    spool: Spool,
}

impl TreeBuilder {
    fn new() -> Self {
        Self {
            tree: Tree::new(1_000_000, 100 << 20),
            spool: Spool::new(tempfile::tempfile().unwrap()),
        }
    }

    fn file(&mut self, name: &str, data: &[u8]) {
        let offset = self.spool.position();
        self.spool.write(data).unwrap();
        let length = data.len() as u64;
        self.node(name, Meta::default(), Node::File(Extent { offset, length }));
    }

    fn node(&mut self, name: &str, meta: Meta, node: Node) {
        let inode = self.tree.add(meta, node).unwrap();
        let dentry = Dentry { inode, layer: 0 };
        self.tree
            .link(InodeId::ROOT, name.as_bytes(), dentry)
            .unwrap();
    }

    fn finish(self) -> (Tree, SpoolReader) {
        (self.tree, self.spool.finish().unwrap())
    }

    fn image(self) -> Vec<u8> {
        let (tree, spool) = self.finish();
        image(&tree, &spool, 2)
    }
}

fn image(tree: &Tree, spool: &SpoolReader, threads: usize) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    write_with(tree, spool, &file, Shape::default(), threads).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Type letter, mode, uid, gid, mtime and content.
type Seen = (char, u16, u32, u32, u32, Vec<u8>);

/// Path → what `backhand` sees there.
fn by_backhand(image: &[u8]) -> BTreeMap<String, Seen> {
    let reader = FilesystemReader::from_reader(Cursor::new(image.to_vec())).unwrap();
    reader
        .files()
        .map(|node| {
            let (kind, content) = match &node.inner {
                InnerNode::File(file) => {
                    let mut bytes = Vec::new();
                    reader.file(file).reader().read_to_end(&mut bytes).unwrap();
                    ('f', bytes)
                }
                InnerNode::Symlink(link) => ('l', link.link.to_string_lossy().into_owned().into()),
                InnerNode::Dir(_) => ('d', Vec::new()),
                InnerNode::CharacterDevice(device) => {
                    ('c', device.device_number.to_string().into_bytes())
                }
                InnerNode::BlockDevice(device) => {
                    ('b', device.device_number.to_string().into_bytes())
                }
                InnerNode::NamedPipe => ('p', Vec::new()),
                InnerNode::Socket => ('s', Vec::new()),
            };
            let header = node.header;
            let path = node.fullpath.to_string_lossy().into_owned();
            let owner = (header.uid, header.gid);
            (
                path,
                (
                    kind,
                    header.permissions,
                    owner.0,
                    owner.1,
                    header.mtime,
                    content,
                ),
            )
        })
        .collect()
}

#[test]
fn backhand_reads_the_same_tree() {
    let big = noise(3 * BLOCK_BYTES + 5, 1);
    let layer = Layer::new()
        .item(&Item {
            path: b"d",
            kind: b'5',
            mode: 0o1777,
            uid: 5,
            gid: 6,
            mtime: 7,
            ..Item::default()
        })
        .file("d/small", b"small")
        .file("d/empty", b"")
        .file("d/big", &big)
        .symlink("d/link", "small")
        .item(&Item {
            path: b"null",
            kind: b'3',
            device: (1, 3),
            ..Item::default()
        })
        .item(&Item {
            path: b"pipe",
            kind: b'6',
            ..Item::default()
        });
    let (_, image) = build(&OciArchive::of(&[layer.finish()])).unwrap();
    let files = by_backhand(&image);
    let expected: BTreeMap<String, _> = [
        ("/", ('d', 0o755, 0, 0, 0, vec![])),
        ("/d", ('d', 0o1777, 5, 6, 7, vec![])),
        ("/d/big", ('f', 0o644, 0, 0, 0, big)),
        ("/d/empty", ('f', 0o644, 0, 0, 0, vec![])),
        ("/d/link", ('l', 0o777, 0, 0, 0, b"small".to_vec())),
        ("/d/small", ('f', 0o644, 0, 0, 0, b"small".to_vec())),
        ("/null", ('c', 0o644, 0, 0, 0, b"259".to_vec())),
        ("/pipe", ('p', 0o644, 0, 0, 0, vec![])),
    ]
    .map(|(path, entry)| (path.to_owned(), entry))
    .into();
    assert_eq!(files, expected);
}

#[test]
fn same_archive_gives_the_same_bytes_every_time() {
    let mut layer = Layer::new();
    for index in 0..200 {
        layer = layer.file(&format!("dir{}/{index}", index % 7), &noise(index * 50, 9));
    }
    let archive = OciArchive::of(&[layer.finish()]);
    let (first, one) = build(&archive).unwrap();
    let (second, two) = build(&archive).unwrap();
    assert_eq!(first, second);
    assert!(one == two);
}

#[test]
fn how_layers_are_compressed_does_not_change_the_image() {
    let layer = Layer::new().file("a", &noise(300_000, 3)).finish();
    let mut packed = OciArchive::default();
    let layers = [(gzip(&layer), layer.clone())];
    let manifest = packed.image(&layers, "amd64", &serde_json::json!({}));
    packed.list(&manifest, None, None);
    let (_, from_plain) = build(&OciArchive::of(&[layer])).unwrap();
    let (_, from_gzip) = build(&packed.finish()).unwrap();
    assert!(from_plain == from_gzip);
}

#[test]
fn number_of_threads_does_not_change_a_byte() {
    let mut builder = TreeBuilder::new();
    for index in 0..40u32 {
        builder.file(&format!("big{index}"), &noise(BLOCK_BYTES + 7, index));
        builder.file(&format!("small{index}"), &noise(9_000, index));
    }
    let (tree, spool) = builder.finish();
    let one = image(&tree, &spool, 1);
    assert!(one == image(&tree, &spool, 3));
    assert!(one == image(&tree, &spool, 8));
}

#[test]
fn files_around_the_block_size_come_back_whole() {
    let sizes = [
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        2 * BLOCK_BYTES,
        5 * BLOCK_BYTES / 2,
    ];
    let mut builder = TreeBuilder::new();
    let mut seed = 0;
    for (kind, make) in [
        ("noise", noise as fn(usize, u32) -> Vec<u8>),
        ("text", |length, _| {
            b"0123456789".repeat(length / 10 + 1)[..length].to_vec()
        }),
    ] {
        for size in sizes {
            seed += 1;
            builder.file(&format!("{kind}{size}"), &make(size, seed));
        }
    }
    let files = by_backhand(&builder.image());
    let mut seed = 0;
    for size in sizes {
        seed += 1;
        assert!(
            files[&format!("/noise{size}")].5 == noise(size, seed),
            "{size}"
        );
        assert_eq!(files[&format!("/text{size}")].5.len(), size);
    }
}

#[test]
fn blocks_of_zeros_take_no_space() {
    let mut holes = vec![0; 8 * BLOCK_BYTES];
    holes[3 * BLOCK_BYTES] = 1;
    let mut builder = TreeBuilder::new();
    builder.file("holes", &holes);
    builder.file("zeros", &vec![0; 4 * BLOCK_BYTES + 1]);
    let image = builder.image();
    assert!(image.len() <= 8192, "{} bytes", image.len());
    let text = read_image(&image);
    assert!(text.contains("holes=7"), "{text}");
    assert!(text.contains("holes=5"), "{text}");
    assert!(by_backhand(&image)["/holes"].5 == holes);
}

#[test]
fn equal_files_are_stored_once() {
    let data = noise(2 * BLOCK_BYTES, 5);
    let small = noise(50_000, 6);
    let mut builder = TreeBuilder::new();
    for index in 0..10 {
        builder.file(&format!("big{index}"), &data);
        builder.file(&format!("small{index}"), &small);
    }
    // Of the same length, but not equal.
    builder.file("other", &noise(50_000, 7));
    let image = builder.image();
    assert!(image.len() < 2 * BLOCK_BYTES + 120_000, "{}", image.len());
    let files = by_backhand(&image);
    assert!(files["/big9"].5 == data && files["/small9"].5 == small);
    assert!(files["/other"].5 == noise(50_000, 7));
}

#[test]
fn directory_of_thousands_of_names_is_complete_and_in_order() {
    let mut builder = TreeBuilder::new();
    for index in 0..5_000 {
        builder.file(&format!("name-{index:05}-{}", "x".repeat(20)), b"");
    }
    let image = builder.image();
    assert_eq!(read_image(&image).lines().count(), 5_001);
    assert_eq!(by_backhand(&image).len(), 5_001);
}

/// The distance between a listing's number and its header's has 16 bits.
#[test]
fn hard_links_far_apart_in_the_tree_keep_their_number() {
    let mut flattener = Flattener::new(&Limits::default());
    flattener.begin_layer();
    let mut names: Vec<_> = (0..40_000).map(|index| format!("b/{index}")).collect();
    names.push("a".into());
    let entry = |path: &str, kind, link: &str| crate::images::tar::Entry {
        path: path.into(),
        kind,
        link: link.into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        device: (0, 0),
        xattrs: Vec::new(),
        size: 0,
        chunks: None,
        data_offset: 0,
        stored: 0,
    };
    use crate::images::tar::EntryKind::{File, HardLink};
    for name in &names {
        flattener
            .apply(entry(name, File, ""), Extent::default())
            .unwrap();
    }
    flattener
        .apply(entry("c/far", HardLink, "a"), Extent::default())
        .unwrap();
    flattener
        .apply(entry("c/near", File, ""), Extent::default())
        .unwrap();
    let (tree, _) = flattener.finish();
    let spool = Spool::new(tempfile::tempfile().unwrap()).finish().unwrap();
    let image = image(&tree, &spool, 1);
    let reader = FilesystemReader::from_reader(Cursor::new(image.clone())).unwrap();
    assert!(
        reader
            .files()
            .any(|node| node.fullpath == Path::new("/c/far"))
    );
    // The reader compares every listing's number with its inode's.
    let text = read_image(&image);
    assert!(text.contains("/c/far f 0644 0:0 t=0 links=2 #2 "), "names");
}

#[test]
fn tables_of_many_pieces_are_found_again() {
    let mut builder = TreeBuilder::new();
    for index in 0..3_000u32 {
        let value = index.to_string().into_bytes();
        let meta = Meta {
            uid: index,
            gid: 100_000 + index,
            xattrs: Some(Box::new(vec![(b"user.number".to_vec(), value)])),
            ..Meta::default()
        };
        builder.node(&format!("{index}"), meta, Node::Fifo);
    }
    let text = read_image(&builder.image());
    assert!(text.contains(" 2999:102999 ") && text.contains("{user.number=2999}"));
    assert!(text.contains(" 0:100000 ") && text.contains("{user.number=0}"));
}

#[test]
fn more_owners_than_the_format_can_hold_are_refused() {
    let mut builder = TreeBuilder::new();
    for index in 0..33_000u32 {
        let meta = Meta {
            uid: index,
            gid: 100_000 + index,
            ..Meta::default()
        };
        builder.node(&format!("{index}"), meta, Node::Fifo);
    }
    let (tree, spool) = builder.finish();
    let file = tempfile::tempfile().unwrap();
    let error = write_with(&tree, &spool, &file, Shape::default(), 1)
        .err()
        .unwrap();
    assert!(error.message.contains("65535 owners"), "{error}");
}

#[test]
fn empty_image_is_an_image() {
    let image = TreeBuilder::new().image();
    assert_eq!(read_image(&image), "/ d 0755 0:0 t=0 links=2 #1\n");
    assert_eq!(image.len(), 4096);
    assert_eq!(by_backhand(&image).len(), 1);
}

#[test]
fn other_shapes_are_read_as_well_and_have_names() {
    for text in ["zstd1/4K", "zstd19/1024K", "stored/32K"] {
        let shape: Shape = text.parse().unwrap();
        assert_eq!(shape.to_string(), text);
        let mut builder = TreeBuilder::new();
        let data = [noise(70_000, 1), vec![7; 3 << 20]].concat();
        builder.file("big", &data);
        builder.file("small", b"few");
        let (tree, spool) = builder.finish();
        let mut file = tempfile::tempfile().unwrap();
        write_with(&tree, &spool, &file, shape, 2).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let text = read_image(&bytes);
        let expected = &crate::images::testing::sha256(&data)[..8];
        assert!(
            text.contains(&format!("bytes {expected}")),
            "{shape}: {text}"
        );
        assert_eq!(by_backhand(&bytes)["/small"].5, b"few");
    }
    for bad in [
        "zstd3",
        "zstd0/128K",
        "zstd23/128K",
        "zstd3/3K",
        "zstd3/2048K",
        "lz4/128K",
        "stored3/4K",
    ] {
        assert!(bad.parse::<Shape>().is_err(), "{bad}");
    }
    assert_eq!(Shape::default().to_string(), "zstd3/128K");
}
