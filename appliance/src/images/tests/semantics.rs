//! What layers mean, as a table of nasty hand-made ones. Each test names the tree it expects.

use crate::images::ImageErrorCode;
use crate::images::testing::{Item, Layer, OciArchive, build, error_of, tree_of};

#[track_caller]
fn expect(layers: &[Layer], lines: &str) {
    let got = tree_of(layers);
    let want: String = lines
        .trim()
        .lines()
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    assert_eq!(got, want, "got:\n{got}want:\n{want}");
}

#[track_caller]
fn refuse(layers: &[Layer], code: ImageErrorCode, part: &str) {
    let error = error_of(layers);
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(part), "{error}");
}

#[test]
fn every_type_keeps_its_mode_owner_and_time() {
    let item = |path, kind, mode, uid, mtime| Item {
        path,
        kind,
        mode,
        uid,
        gid: uid + 1,
        mtime,
        ..Item::default()
    };
    let layer = Layer::new()
        .item(&Item {
            data: b"data",
            ..item(b"./suid", b'0', 0o4755, 1000, 11)
        })
        .item(&item(b"./tmp/", b'5', 0o1777, 0, 12))
        .item(&item(b"./setgid", b'5', 0o2750, 70_000, 13))
        .item(&Item {
            link: b"../etc/x",
            ..item(b"./link", b'2', 0o777, 1, 14)
        })
        .item(&Item {
            device: (1, 3),
            ..item(b"./null", b'3', 0o666, 0, 15)
        })
        .item(&Item {
            device: (259, 70_000),
            ..item(b"./disk", b'4', 0o660, 0, 16)
        })
        .item(&item(b"./pipe", b'6', 0o600, 0, 4_294_967_295));
    expect(
        &[layer],
        r#"
        / d 0755 0:0 t=0 links=4 #1
        /disk b 0660 0:1 t=16 links=1 #2 259:70000
        /link l 0777 1:2 t=14 links=1 #3 -> ../etc/x
        /null c 0666 0:1 t=15 links=1 #4 1:3
        /pipe p 0600 0:1 t=4294967295 links=1 #5
        /setgid d 2750 70000:70001 t=13 links=2 #6
        /suid f 4755 1000:1001 t=11 links=1 #7 "data"
        /tmp d 1777 0:1 t=12 links=2 #8
        "#,
    );
}

#[test]
fn whiteout_removes_files_and_directories_of_lower_layers_only() {
    let lower = Layer::new()
        .file("a", b"lower")
        .file("b", b"lower")
        .file("d/x", b"lower")
        .file("d/e/y", b"lower");
    let upper = Layer::new()
        .file(".wh.a", b"")
        .file("b", b"upper")
        .file(".wh.b", b"")
        .file(".wh.d", b"")
        .file(".wh.nothing", b"")
        .file("none/.wh.nothing", b"");
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=2 #1
        /b f 0644 0:0 t=0 links=1 #2 "upper"
        "#,
    );
}

#[test]
fn whiteout_of_a_directory_spares_what_its_own_layer_puts_there() {
    let lower = Layer::new()
        .file("d/old", b"lower")
        .file("d/e/old", b"lower");
    let new = |layer: Layer| layer.file("d/e/new", b"upper");
    let expected = r#"
        / d 0755 0:0 t=0 links=3 #1
        /d d 0755 0:0 t=0 links=3 #2
        /d/e d 0755 0:0 t=0 links=2 #3
        /d/e/new f 0644 0:0 t=0 links=1 #4 "upper"
        "#;
    let before = new(Layer::new().file(".wh.d", b""));
    expect(&[lower.clone(), before], expected);
    let after = new(Layer::new()).file(".wh.d", b"");
    expect(&[lower, after], expected);
}

#[test]
fn opaque_marker_hides_lower_names_wherever_it_stands() {
    let lower = Layer::new()
        .dir("d")
        .file("d/old", b"lower")
        .file("d/e/old", b"lower")
        .file("keep", b"lower");
    let expected = r#"
        / d 0755 0:0 t=0 links=3 #1
        /d d 0755 0:0 t=0 links=3 #2
        /d/e d 0755 0:0 t=0 links=2 #4
        /d/e/new f 0644 0:0 t=0 links=1 #6 "upper"
        /d/new f 0644 0:0 t=0 links=1 #5 "upper"
        /keep f 0644 0:0 t=0 links=1 #3 "lower"
        "#;
    let first = Layer::new()
        .file("d/.wh..wh..opq", b"")
        .file("d/new", b"upper")
        .file("d/e/new", b"upper");
    expect(&[lower.clone(), first], expected);
    let last = Layer::new()
        .file("d/new", b"upper")
        .file("d/e/new", b"upper")
        .file("d/.wh..wh..opq", b"");
    expect(&[lower, last], expected);
}

#[test]
fn opaque_root_hides_everything_below() {
    let lower = Layer::new().file("a", b"lower");
    let upper = Layer::new().file("b", b"upper").file(".wh..wh..opq", b"");
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=2 #1
        /b f 0644 0:0 t=0 links=1 #2 "upper"
        "#,
    );
}

/// Others have shipped whiteouts as hard links and looked for regular files only.
#[test]
fn whiteout_counts_by_its_name_whatever_its_type() {
    let lower = Layer::new().file("a", b"1").file("b", b"2").file("c", b"3");
    let upper = Layer::new()
        .hard_link(".wh.a", "nowhere")
        .item(&Item {
            path: b".wh.b",
            kind: b'3',
            ..Item::default()
        })
        .dir(".wh.c");
    expect(&[lower, upper], "/ d 0755 0:0 t=0 links=2 #1");
}

#[test]
fn removed_name_may_come_back_in_a_later_layer() {
    let layers = [
        Layer::new().file("a", b"1"),
        Layer::new().file(".wh.a", b""),
        Layer::new().symlink("a", "b"),
    ];
    expect(
        &layers,
        "/ d 0755 0:0 t=0 links=2 #1
         /a l 0777 0:0 t=0 links=1 #2 -> b",
    );
}

#[test]
fn whiteouts_of_nothing_and_inside_whiteouts_are_refused() {
    let code = ImageErrorCode::ImageCorrupt;
    refuse(
        &[Layer::new().file(".wh.", b"")],
        code,
        "Whiteout of nothing",
    );
    refuse(
        &[Layer::new().file(".wh...", b"")],
        code,
        "Whiteout of nothing",
    );
    refuse(
        &[Layer::new().file(".wh.d/x", b"")],
        code,
        "name of a whiteout",
    );
}

#[test]
fn aufs_housekeeping_is_skipped() {
    let layer = Layer::new()
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"x")
        .file(".wh..wh.aufs", b"");
    expect(&[layer], "/ d 0755 0:0 t=0 links=2 #1");
}

#[test]
fn directory_over_directory_merges_and_takes_the_new_metadata() {
    let lower = Layer::new()
        .item(&Item {
            path: b"d",
            kind: b'5',
            mode: 0o700,
            uid: 5,
            mtime: 1,
            pax: &[("SCHILY.xattr.user.old", b"1")],
            ..Item::default()
        })
        .file("d/lower", b"1");
    let upper = Layer::new().file("d/upper", b"2").item(&Item {
        path: b"d",
        kind: b'5',
        mode: 0o755,
        uid: 6,
        mtime: 2,
        pax: &[("SCHILY.xattr.user.new", b"2")],
        ..Item::default()
    });
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=3 #1
        /d d 0755 6:0 t=2 links=2 #2 {user.new=2}
        /d/lower f 0644 0:0 t=0 links=1 #3 "1"
        /d/upper f 0644 0:0 t=0 links=1 #4 "2"
        "#,
    );
}

#[test]
fn other_type_replaces_what_was_there_with_all_it_held() {
    let lower = Layer::new()
        .file("dir-to-file/x", b"1")
        .file("file-to-dir", b"1")
        .symlink("link-to-dir", "file-to-dir")
        .file("dir-to-link/x", b"1");
    let upper = Layer::new()
        .file("dir-to-file", b"2")
        .dir("file-to-dir")
        .file("file-to-dir/y", b"2")
        .dir("link-to-dir")
        .symlink("dir-to-link", "/nowhere");
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=4 #1
        /dir-to-file f 0644 0:0 t=0 links=1 #2 "2"
        /dir-to-link l 0777 0:0 t=0 links=1 #3 -> /nowhere
        /file-to-dir d 0755 0:0 t=0 links=2 #4
        /file-to-dir/y f 0644 0:0 t=0 links=1 #6 "2"
        /link-to-dir d 0755 0:0 t=0 links=2 #5
        "#,
    );
}

#[test]
fn hard_links_share_one_inode_within_and_across_layers() {
    let lower = Layer::new()
        .file("a", b"shared")
        .hard_link("dir/b", "./a")
        .file("d", b"alone");
    let upper = Layer::new().hard_link("c", "/dir/b");
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=3 #1
        /a f 0644 0:0 t=0 links=3 #2 "shared"
        /c f 0644 0:0 t=0 links=3 #2 "shared"
        /d f 0644 0:0 t=0 links=1 #3 "alone"
        /dir d 0755 0:0 t=0 links=2 #4
        /dir/b f 0644 0:0 t=0 links=3 #2 "shared"
        "#,
    );
}

#[test]
fn replaced_or_removed_hard_link_leaves_the_others_alone() {
    let lower = Layer::new()
        .file("a", b"old")
        .hard_link("b", "a")
        .hard_link("c", "a");
    let upper = Layer::new().file("a", b"new").file(".wh.b", b"");
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=2 #1
        /a f 0644 0:0 t=0 links=1 #2 "new"
        /c f 0644 0:0 t=0 links=1 #3 "old"
        "#,
    );
}

#[test]
fn hard_link_to_a_symlink_is_a_second_name_of_the_symlink() {
    let layer = Layer::new()
        .file("file", b"1")
        .symlink("s", "file")
        .hard_link("t", "s");
    expect(
        &[layer],
        r#"
        / d 0755 0:0 t=0 links=2 #1
        /file f 0644 0:0 t=0 links=1 #2 "1"
        /s l 0777 0:0 t=0 links=2 #3 -> file
        /t l 0777 0:0 t=0 links=2 #3 -> file
        "#,
    );
}

#[test]
fn hard_links_to_nothing_and_to_directories_are_refused() {
    let code = ImageErrorCode::ImageCorrupt;
    refuse(
        &[Layer::new().hard_link("a", "none")],
        code,
        "does not exist",
    );
    let dir = Layer::new().dir("d").hard_link("a", "d");
    refuse(&[dir], code, "is a directory");
    refuse(
        &[Layer::new().hard_link("a", "../etc/passwd")],
        code,
        "leaves the image",
    );
}

#[test]
fn symlinked_parents_are_followed_inside_the_image() {
    let lower = Layer::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("out", "../../../../..")
        .symlink("abs", "/usr");
    let upper = Layer::new()
        .file("lib/a", b"1")
        .file("out/usr/b", b"2")
        .file("abs/c", b"3");
    expect(
        &[lower, upper],
        r#"
        / d 0755 0:0 t=0 links=3 #1
        /abs l 0777 0:0 t=0 links=1 #2 -> /usr
        /lib l 0777 0:0 t=0 links=1 #3 -> usr/lib
        /out l 0777 0:0 t=0 links=1 #4 -> ../../../../..
        /usr d 0755 0:0 t=0 links=3 #5
        /usr/b f 0644 0:0 t=0 links=1 #6 "2"
        /usr/c f 0644 0:0 t=0 links=1 #7 "3"
        /usr/lib d 0755 0:0 t=0 links=2 #8
        /usr/lib/a f 0644 0:0 t=0 links=1 #9 "1"
        "#,
    );
}

#[test]
fn paths_that_leave_the_image_or_cross_files_are_refused() {
    let code = ImageErrorCode::ImageCorrupt;
    for path in ["../x", "a/../../x", "/..", "./../../etc/passwd"] {
        refuse(&[Layer::new().file(path, b"")], code, "leaves the image");
    }
    let cross = Layer::new().file("a", b"").file("a/b", b"");
    refuse(&[cross], code, "a directory must be");
    let looped = Layer::new().symlink("s", "s").file("s/x", b"");
    refuse(&[looped], code, "Too many symlinks");
}

#[test]
fn absolute_and_dotted_paths_land_inside() {
    let layer = Layer::new()
        .file("/etc/hosts", b"1")
        .file("etc/./x/../passwd", b"2");
    expect(
        &[layer],
        r#"
        / d 0755 0:0 t=0 links=3 #1
        /etc d 0755 0:0 t=0 links=2 #2
        /etc/hosts f 0644 0:0 t=0 links=1 #3 "1"
        /etc/passwd f 0644 0:0 t=0 links=1 #4 "2"
        "#,
    );
}

#[test]
fn root_entry_sets_the_metadata_of_the_root() {
    let layer = Layer::new().item(&Item {
        path: b"./",
        kind: b'5',
        mode: 0o700,
        uid: 7,
        mtime: 9,
        ..Item::default()
    });
    expect(&[layer], "/ d 0700 7:0 t=9 links=2 #1");
}

#[test]
fn extended_attributes_are_kept_byte_for_byte() {
    // A real capability, and one that holds the bytes a line-wise PAX reader trips over.
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let nasty = b"\n=\0 12 a=b\n";
    let layer = Layer::new()
        .item(&Item {
            path: b"ping",
            pax: &[
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.nasty", nasty),
                ("SCHILY.xattr.trusted.empty", b""),
            ],
            ..Item::default()
        })
        .item(&Item {
            path: b"pipe",
            kind: b'6',
            pax: &[("SCHILY.xattr.trusted.p", b"1")],
            ..Item::default()
        })
        .item(&Item {
            path: b"s",
            kind: b'2',
            link: b"target",
            pax: &[("SCHILY.xattr.trusted.p", b"1")],
            ..Item::default()
        })
        .item(&Item {
            path: b"null",
            kind: b'3',
            device: (1, 3),
            pax: &[("SCHILY.xattr.trusted.p", b"1")],
            ..Item::default()
        });
    expect(
        &[layer],
        r#"
        / d 0755 0:0 t=0 links=2 #1
        /null c 0644 0:0 t=0 links=1 #2 1:3 {trusted.p=1}
        /ping f 0644 0:0 t=0 links=1 #3 "" {security.capability=\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00, trusted.empty=, user.nasty=\n=\x00 12 a=b\n}
        /pipe p 0644 0:0 t=0 links=1 #4 {trusted.p=1}
        /s l 0777 0:0 t=0 links=1 #5 -> target {trusted.p=1}
        "#,
    );
}

#[test]
fn attributes_that_cannot_be_kept_are_named_in_a_warning() {
    let item = |path, pax| Item {
        path,
        pax,
        ..Item::default()
    };
    let layer = Layer::new()
        .item(&item(
            b"a",
            &[("SCHILY.xattr.system.posix_acl_access", b"acl")],
        ))
        .item(&item(
            b"b",
            &[
                ("SCHILY.xattr.system.posix_acl_access", b"acl"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.selinux", b"label"),
            ],
        ))
        .finish();
    let (report, _) = build(&OciArchive::of(&[layer])).unwrap();
    assert_eq!(
        report.warnings,
        [
            "Extended attribute system.posix_acl_access of 2 file(s) left out, squashfs holds \
             only user., trusted. and security.; first: a",
            "Extended attribute trusted.overlay.opaque of 1 file(s) left out, it would act on \
             the guest's own overlay; first: b",
        ]
    );
}

#[test]
fn long_and_non_utf8_names_are_kept() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let target = "t".repeat(3000);
    let layer = Layer::new()
        .file(&long, b"gnu")
        .item(&Item {
            path: b"short",
            data: b"pax",
            pax: &[("path", b"pax/\xff\xfe\n=name")],
            ..Item::default()
        })
        .symlink("s", &target);
    let tree = tree_of(&[layer]);
    assert!(tree.contains(&format!("/{long} f 0644")), "{tree}");
    assert!(tree.contains(r"/pax/\xff\xfe\n=name f 0644"), "{tree}");
    assert!(tree.contains(&format!("-> {target}\n")), "{tree}");
}

#[test]
fn names_and_paths_beyond_what_linux_can_hold_are_refused() {
    let code = ImageErrorCode::ImageUnsupported;
    let name = Layer::new().file(&"n".repeat(256), b"");
    refuse(&[name], code, "Name of 256 bytes");
    let path = Layer::new().file(&"p/".repeat(2048), b"");
    refuse(&[path], code, "Path of 4096 bytes");
    let device = Layer::new().item(&Item {
        path: b"x",
        kind: b'3',
        device: (4096, 0),
        ..Item::default()
    });
    refuse(&[device], code, "Device number 4096:0");
}

#[test]
fn deep_tree_is_built_without_recursion() {
    // The reader of these tests does recurse, so it gets a stack to do so.
    let reader = std::thread::Builder::new().stack_size(64 << 20);
    let count = reader.spawn(|| {
        let deep = "d/".repeat(1000);
        tree_of(&[Layer::new().file(&format!("{deep}f"), b"x")])
            .lines()
            .count()
    });
    assert_eq!(count.unwrap().join().unwrap(), 1002);
}

#[test]
fn metadata_beyond_the_years_of_squashfs_is_clamped() {
    let item = |path, mtime| Item {
        path,
        pax: mtime,
        ..Item::default()
    };
    let layer = Layer::new()
        .item(&item(b"before", &[("mtime", b"-1.5")]))
        .item(&item(b"fraction", &[("mtime", b"77.9")]))
        .item(&item(b"later", &[("mtime", b"99999999999")]));
    expect(
        &[layer],
        r#"
        / d 0755 0:0 t=0 links=2 #1
        /before f 0644 0:0 t=0 links=1 #2 ""
        /fraction f 0644 0:0 t=77 links=1 #3 ""
        /later f 0644 0:0 t=4294967295 links=1 #4 ""
        "#,
    );
}
