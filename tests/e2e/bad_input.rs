//! What is wrong gets one clear line or one clear error, and nothing is half made.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use e2e::appliance::{free_address, new_root, serve_command};
use e2e::client::within;
use e2e::{Cli, TestAppliance, artifacts, client};
use hyper::Method;
use hyper::header::AUTHORIZATION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use e2e::cli::Ran;

e2e::tests! {
    Anywhere: [
        bad_flags_are_refused_in_one_line_that_names_them,
        bad_configuration_is_refused_by_key_before_anything_is_touched,
        client_without_an_appliance_is_told_where_it_looked,
    ];
    Own: [
        bad_image_archives_are_refused_and_leave_nothing,
    ];
    Shared: [
        bad_pool_settings_are_refused_and_make_no_pool,
        bad_token_requests_are_refused,
        bad_identifiers_are_refused_and_start_no_session,
        request_for_something_that_is_not_there_is_not_found,
        malformed_requests_are_refused_and_the_appliance_goes_on,
    ];
}

/// EX_USAGE of sysexits.h.
const USAGE: i32 = 64;
/// EX_UNAVAILABLE.
const UNREACHABLE: i32 = 69;

fn bad_flags_are_refused_in_one_line_that_names_them() {
    let create = [
        "sessionpool",
        "create",
        "--name",
        "pool",
        "--image",
        "demo",
        "--target-port",
    ];
    let with_port = |more: &[&'static str]| [&create[..], &["8080"], more].concat();
    let table: Vec<(Vec<&str>, &str)> = vec![
        (vec![], "cabana --help"),
        (vec!["fly"], "fly"),
        (vec!["serve", "--lissten", "x"], "--lissten"),
        (vec!["serve", "--listen", "8443"], "--listen"),
        (vec!["serve", "--listen", "localhost:8443"], "--listen"),
        (vec!["doctor", "--loud"], "--loud"),
        (create[..6].to_vec(), "--target-port"),
        ([&create[..], &["0"]].concat(), "--target-port"),
        ([&create[..], &["65536"]].concat(), "--target-port"),
        (with_port(&["--cpu", "many"]), "--cpu"),
        (with_port(&["--cpu", "-1"]), "--cpu"),
        (with_port(&["--memory", "0.5"]), "--memory"),
        (with_port(&["--max-sessions", "0"]), "--max-sessions"),
        (with_port(&["--fork-point", "later"]), "--fork-point"),
        (
            with_port(&["--ephemeral-storage", "8"]),
            "--ephemeral-storage",
        ),
        (vec!["golden", "inspect"], "FILE"),
        (
            with_port(&["--cooldown-period", "soon"]),
            "--cooldown-period",
        ),
        (with_port(&["--env-vars", "NAME"]), "--env-vars"),
        (vec!["image", "import"], "SOURCE"),
        (vec!["image", "import", "ftp:demo.tar"], "oci-archive:"),
        (vec!["token", "create", "--ttl=-1h"], "--ttl"),
        (vec!["token", "create", "--ttl", "1 fortnight"], "--ttl"),
        (vec!["token", "create", "--role", "king"], "king"),
    ];
    for (arguments, named) in table {
        Cli::without_root()
            .run(&arguments)
            .assert_refused(USAGE, &[named]);
    }
}

fn bad_configuration_is_refused_by_key_before_anything_is_touched() {
    let table = [
        ("lissten = \"127.0.0.1:1\"", "lissten"),
        ("listen = 8443", "listen"),
        ("listen = \"localhost\"", "listen"),
        ("domain = \"-x.example\"", "domain"),
        ("min_cooldown_seconds = 0", "min_cooldown_seconds"),
        ("start_timeout_seconds = \"60\"", "start_timeout_seconds"),
        ("spare_workers = 65", "spare_workers"),
        ("parallel_starts = 0", "parallel_starts"),
        ("uid_base = 0", "uid_base"),
        ("listen = ", ":1:"),
        ("[listen]\n", "listen"),
        ("\u{0}", ":1:"),
    ];
    for (text, named) in table {
        let root = new_root();
        let file = root.path().join("bad.toml");
        fs::write(&file, text).unwrap();
        let mut command = e2e::appliance::bare_serve_command(root.path());
        let ran = Ran::of(command.arg("--config").arg(&file));
        ran.assert_refused(USAGE, &[named]);
        assert_eq!(
            files_below(root.path()),
            BTreeSet::from([file]),
            "{text:?} has touched the root"
        );
    }
    let root = new_root();
    let missing = root.path().join("missing.toml");
    let ran = Ran::of(
        serve_command(root.path(), free_address())
            .arg("--config")
            .arg(&missing),
    );
    ran.assert_refused(USAGE, &[missing.to_str().unwrap()]);
}

fn client_without_an_appliance_is_told_where_it_looked() {
    let root = new_root();
    let socket = root.path().join("run/cabana/admin.sock");
    for command in [
        &["sessionpool", "list"][..],
        &["image", "ls"],
        &["token", "create"],
    ] {
        let ran = Cli::with_root(root.path()).run(command);
        ran.assert_refused(UNREACHABLE, &[socket.to_str().unwrap(), "cabana serve"]);
    }
}

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path))
        } else {
            assert!(files.insert(path))
        }
    }
    files
}

/// On an appliance of its own, since of an image that is there already nothing is read again.
fn bad_image_archives_are_refused_and_leave_nothing() {
    let host = TestAppliance::start();
    let image = artifacts::demo_image();
    let good = fs::read(&image).unwrap();
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    let folder = new_root();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let archive = |name: &str, content: Vec<u8>| {
        fs::write(path(name), content).unwrap();
        format!("oci-archive:{}", path(name))
    };
    let demo = image.display();
    let table = [
        (archive("empty.tar", Vec::new()), ""),
        (archive("zeros.tar", vec![0; 10240]), ""),
        (
            archive("text.tar", b"this is not an archive\n".repeat(100)),
            "",
        ),
        (
            archive("truncated.tar", good[..good.len() / 2].to_vec()),
            "",
        ),
        (archive("changed.tar", changed), ""),
        (
            format!("oci-archive:{}", path("missing.tar")),
            "missing.tar",
        ),
        (format!("oci-archive:{demo}:no-such-tag"), "no-such-tag"),
        (format!("docker-archive:{demo}"), ""),
        (format!("oci:{demo}"), "demo"),
        (format!("oci:{}", folder.path().display()), ""),
    ];
    let images = host.root().join("var/lib/cabana/images");
    let before = (files_below(&images), host.traces());
    for (source, named) in &table {
        let ran = host
            .cli()
            .run(&["image", "import", source, "--name", "bad"]);
        ran.assert_refused(1, &[named]);
        let listed = host.cli().json(&["image", "ls"]);
        assert_eq!(listed, serde_json::json!([]), "{source} has made an image");
        assert_eq!(files_below(&images), before.0, "{source} has left files");
        let left = host.traces().since(&before.1);
        assert!(left.is_empty(), "{source} has left {left:#?}");
    }
    // And the good one is still welcome.
    host.demo_image();
    host.stop();
}

fn bad_pool_settings_are_refused_and_make_no_pool(host: &TestAppliance) {
    let image = host.demo_image();
    let before = host.cli().json(&["sessionpool", "list"]);
    let create = |name: &str, image: &str, more: &[&str]| {
        // With an equals sign, or a name that begins with a hyphen is taken for a flag.
        let name = format!("--name={name}");
        let arguments = [
            "sessionpool",
            "create",
            &name,
            "--image",
            image,
            "--target-port",
            "8080",
        ];
        host.cli().run(&[&arguments[..], more].concat())
    };
    let long = "x".repeat(64);
    for name in [
        "ab",
        "Upper",
        "under_score",
        "-hyphen",
        "hyphen-",
        "1digit",
        "dot.dot",
        "é-accent",
        long.as_str(),
    ] {
        create(name, image, &[]).assert_refused(1, &["pool name"]);
    }
    create("pool-x", "no-such-image", &[]).assert_refused(1, &["no-such-image"]);
    create("pool-x", "sha256:00", &[]).assert_refused(1, &["sha256:00"]);
    let table: [(&[&str], &str); 7] = [
        (&["--cooldown-period", "0"], "cooldown"),
        (&["--cooldown-period", "999999999"], "cooldown"),
        (&["--cpu", "1000"], "cpu"),
        (&["--memory", "1Mi"], "memory"),
        (&["--memory", "999999Gi"], "memory"),
        (&["--ephemeral-storage", "0.5Gi"], "ephemeral"),
        (&["--ephemeral-storage", "2000Gi"], "ephemeral"),
    ];
    for (flags, named) in table {
        let ran = create("pool-x", image, flags);
        assert!(ran.stderr.to_lowercase().contains(named), "{ran:#?}");
        ran.assert_refused(1, &[]);
    }
    assert_eq!(
        host.cli().json(&["sessionpool", "list"]),
        before,
        "a refused pool is listed"
    );
}

fn bad_token_requests_are_refused(host: &TestAppliance) {
    host.cli()
        .run(&["token", "create", "--ttl", "100000d"])
        .assert_refused(1, &[]);
    host.cli()
        .run(&["token", "create", "--pool", "Not_A_Name"])
        .assert_refused(1, &["Not_A_Name"]);
}

fn bad_identifiers_are_refused_and_start_no_session(host: &TestAppliance) {
    let pool = host.pool("picky").create();
    let base = e2e::pool::endpoint(&pool.name);
    let before = host.traces();
    let (long, accepted) = ("x".repeat(129), ["a|-&^%$#(){}[];<>"]);
    let queries = [
        String::new(),
        "?identifer=user-1".to_owned(),
        "?identifier".to_owned(),
        "?identifier=".to_owned(),
        "?identifier=abc".to_owned(),
        format!("?identifier={long}"),
        "?identifier=user%201".to_owned(),
        "?identifier=user%0a1".to_owned(),
        "?identifier=user%00".to_owned(),
        "?identifier=caf%C3%A9".to_owned(),
        "?identifier=user%ff".to_owned(),
        "?identifier=user%2".to_owned(),
        "?identifier=user-1&identifier=user-1".to_owned(),
        "?identifier=user-1&%69dentifier=user-2".to_owned(),
    ];
    for query in queries {
        let request = host
            .client()
            .request(Method::GET, &format!("{base}/{query}"));
        let request = request
            .header(AUTHORIZATION, format!("Bearer {}", host.token()))
            .body(client::empty())
            .unwrap();
        let answer = host.block_on(host.client().send(request));
        let error = answer.assert_refused(400, "SessionRequestValidationFailed");
        assert_eq!(error["target"], "identifier", "{query}: {error}");
    }
    assert_eq!(
        host.traces().since(&before),
        [""; 0],
        "a refused identifier has started something"
    );
    // The other side of the rule: every character that the cloud service documents.
    for identifier in accepted {
        assert_eq!(
            pool.session(identifier).get("/").status,
            200,
            "{identifier}"
        );
    }
}

fn request_for_something_that_is_not_there_is_not_found(host: &TestAppliance) {
    let get = |target: &str| {
        let request = host.client().request(Method::GET, target);
        let request = request
            .header(AUTHORIZATION, format!("Bearer {}", host.token()))
            .body(client::empty())
            .unwrap();
        host.block_on(host.client().send(request))
    };
    let base = e2e::pool::endpoint("no-such-pool");
    get(&format!("{base}/?identifier=user-1")).assert_refused(404, "SessionPoolNotFound");
    let other_group = base.replace("/default/", "/other/");
    get(&format!("{other_group}/?identifier=user-1")).assert_refused(404, "SessionPoolNotFound");
    for target in [
        "/",
        "/favicon.ico",
        "/subscriptions/x",
        "/sessionPools/demo?identifier=user-1",
    ] {
        get(target).assert_refused(404, "ResourceNotFound");
    }
}

fn malformed_requests_are_refused_and_the_appliance_goes_on(host: &TestAppliance) {
    let session = host.shared_session();
    let boot = session.boot_id();
    let target = session.target("/echo");
    let head = format!(
        "Host: {}\r\nAuthorization: {}\r\nConnection: close\r\n",
        host.address(),
        session.authorization()
    );
    let table = [
        "\r\n\r\n\0\0\0\0".to_owned(),
        "GET\r\n\r\n".to_owned(),
        format!("GET {target} HTTP/9.9\r\n{head}\r\n"),
        format!("GET {target}\r\n\r\n"),
        format!(
            "GET {target} HTTP/1.1\r\nAuthorization: {}\r\n\r\n",
            session.authorization()
        ),
        format!("GET {target} HTTP/1.1\r\n{head}Host: elsewhere\r\n\r\n"),
        format!("GET {target} HTTP/1.1\r\n{head}Bad Header: x\r\n\r\n"),
        format!("GET {target} HTTP/1.1\r\n{head}X-Folded: a\r\n b\r\n\r\n"),
        format!("POST {target} HTTP/1.1\r\n{head}Content-Length: -1\r\n\r\n"),
        format!("POST {target} HTTP/1.1\r\n{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        format!("POST {target} HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        format!(
            "GET {target} HTTP/1.1\r\n{head}X-Long: {}\r\n\r\n",
            "x".repeat(200_000)
        ),
    ];
    for request in table {
        let shown: String = request.chars().take(200).collect();
        let answer = host.block_on(async {
            let mut tls = host.client().tls(&["http/1.1"]).await;
            // The appliance may refuse and close before it has read everything; then these fail.
            let _ = tls.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = within("the end of the connection", tls.read_to_end(&mut answer)).await;
            String::from_utf8_lossy(&answer).into_owned()
        });
        let refused = answer.is_empty()
            || answer.starts_with("HTTP/1.1 4")
            || answer.starts_with("HTTP/1.0 4");
        assert!(refused, "the answer to {shown:?} is {answer:?}");
        assert!(
            !answer.contains("bodyBytes"),
            "the container has seen {shown:?}"
        );
    }
    // Not TLS at all: refused, and not waited for.
    host.block_on(async {
        let mut tcp = TcpStream::connect(host.address()).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        // A reset is a refusal as well.
        let _ = within("the end of the connection", tcp.read_to_end(&mut answer)).await;
        assert!(
            !answer.starts_with(b"HTTP/"),
            "plain HTTP is answered on the TLS port"
        );
    });
    assert_eq!(session.boot_id(), boot);
}
