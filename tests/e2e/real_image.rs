//! A distribution's own servers, made into images from its packages and pulled from its registry, work as they are.

use e2e::{Pool, Registry, TestAppliance, artifacts};
use hyper::Method;

e2e::tests! {
    Shared: [
        debian_of_a_registry_runs_a_script_that_only_a_pool_knows,
        nginx_of_a_registry_serves_its_own_page_and_refusals,
        node_of_a_registry_answers_with_its_version,
        python_of_a_registry_serves_its_files_through_the_front_door,
    ];
}

/// Debian 12 has these; see `images.rs` of devtool.
const DEBIAN: &str = "12.";
const PERL: &str = "v5.36.";
const NGINX: &str = "nginx/1.22.";
const NODE: &str = "v18.";

/// A server in the one language that is in every Debian system.
const SERVER: &str = r#"
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 8000, Listen => 8) or die $!;
while (my $caller = $listener->accept) {
    while (<$caller>) { last if /^\r?$/ }
    open my $file, "<", "/etc/debian_version" or die $!;
    my $text = sprintf "%vd %s", $^V, <$file>;
    printf $caller "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", length $text, $text;
    close $caller;
}
"#;

/// A pool of an image that is pulled for it, with what runs in it and where that listens.
fn pool<'a>(
    host: &'a TestAppliance,
    registry: &Registry,
    name: &str,
    port: &str,
    command: &[&str],
) -> Pool<'a> {
    let flags = ["--image", &registry.image(name), "--target-port", port];
    host.pool(name).with(&flags).with(command).create()
}

fn debian_of_a_registry_runs_a_script_that_only_a_pool_knows(host: &TestAppliance) {
    let registry = Registry::start();
    let command = ["--command", "perl", "--args", "-e", SERVER];
    let pool = pool(host, &registry, "debian", "8000", &command);
    let text = pool.session("user-1").text("/");
    let (perl, debian) = text.split_once(' ').expect("there are two words");
    assert!(format!("v{perl}").starts_with(PERL), "{text}");
    assert!(debian.starts_with(DEBIAN), "{text}");
}

fn nginx_of_a_registry_serves_its_own_page_and_refusals(host: &TestAppliance) {
    let registry = Registry::start();
    let pool = pool(host, &registry, "nginx", "80", &[]);
    let session = pool.session("user-1");
    let page = session.get("/");
    assert_eq!(page.status, 200, "{page:#?}");
    assert!(page.text().contains("Welcome to nginx!"), "{}", page.text());
    let missing = session.get("/no/such/file");
    assert_eq!(missing.status, 404);
    for answer in [&page, &missing] {
        let server = answer.headers["server"].to_str().unwrap();
        assert!(server.starts_with(NGINX), "{server}");
        assert!(!answer.headers.contains_key("x-ms-error-code"));
    }
}

fn node_of_a_registry_answers_with_its_version(host: &TestAppliance) {
    let registry = Registry::start();
    let pool = pool(host, &registry, "node", "8080", &[]);
    let version = pool.session("user-1").text("/");
    assert!(version.starts_with(NODE), "{version}");
}

fn python_of_a_registry_serves_its_files_through_the_front_door(host: &TestAppliance) {
    let registry = Registry::start();
    let server = [
        "--command",
        "python3",
        "--args",
        "-m",
        "http.server",
        "8000",
        "--bind",
        "127.0.0.1",
        "--directory",
        "/",
    ];
    let pool = pool(host, &registry, "python", "8000", &server);
    let session = pool.session("user-1");

    let release = session.get("/etc/os-release");
    assert_eq!(release.status, 200, "{release:#?}");
    assert!(release.text().contains("ID=debian"), "{}", release.text());
    // The interpreter says which one it is, and the package manager which one is there.
    let status = session.text("/var/lib/dpkg/status");
    let installed = status
        .split("\n\n")
        .find_map(|package| package.strip_prefix("Package: python3.11-minimal\n"))
        .and_then(|fields| fields.split_once("\nVersion: "))
        .map(|(_, version)| version)
        .expect("python is a package");
    let version: String = installed
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let server = release.headers["server"].to_str().unwrap();
    assert!(server.starts_with("SimpleHTTP/"), "{server}");
    assert!(
        server.ends_with(&format!("Python/{version}")),
        "{server}, not {version}"
    );
    // A directory, a link and a file that is not there: the server answers, not the platform.
    assert!(session.get("/etc/").text().contains("os-release"));
    assert_eq!(session.get("/etc/debian_version").status, 200);
    let missing = session.get("/no/such/file");
    assert_eq!(missing.status, 404);
    assert!(
        !missing.headers.contains_key("x-ms-error-code"),
        "{missing:#?}"
    );
    assert_eq!(
        session.call(Method::POST, "/", "x").status,
        501,
        "python's own refusal"
    );

    // The archive that was pushed is the image that was pulled.
    let source = format!("oci-archive:{}", artifacts::python_image().display());
    let imported = host
        .cli()
        .json(&["image", "import", &source, "--name", "debian-python"]);
    let pulled = host
        .cli()
        .json(&["sessionpool", "show", "--name", "python"]);
    let container = &pulled["properties"]["customContainerTemplate"]["containers"][0];
    assert_eq!(
        (&imported["cached"], &imported["digest"]),
        (&true.into(), &container["imageDigest"])
    );
}
