//! A distribution's own image, made from its packages, works as it is.

use e2e::{TestAppliance, artifacts};
use hyper::Method;

e2e::tests! {
    Shared: [
        python_of_a_debian_image_serves_its_files_through_the_front_door,
    ];
}

fn python_of_a_debian_image_serves_its_files_through_the_front_door(host: &TestAppliance) {
    let source = format!("oci-archive:{}", artifacts::python_image().display());
    let imported = host
        .cli()
        .json(&["image", "import", &source, "--name", "debian-python"]);
    assert!(
        imported["digest"].as_str().unwrap().starts_with("sha256:"),
        "{imported}"
    );
    let again = host
        .cli()
        .json(&["image", "import", &source, "--name", "debian-python"]);
    assert_eq!(
        (&again["cached"], &again["digest"]),
        (&true.into(), &imported["digest"])
    );

    let flags = [
        "--image",
        "debian-python",
        "--target-port",
        "8000",
        "--memory",
        "0.5Gi",
    ];
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
    let pool = host.pool("debian").with(&flags).with(&server).create();
    let session = pool.session("user-1");

    let release = session.get("/etc/os-release");
    assert_eq!(release.status, 200, "{release:#?}");
    assert!(release.text().contains("ID=debian"), "{}", release.text());
    assert_eq!(
        release.headers["server"]
            .to_str()
            .unwrap()
            .split('/')
            .next(),
        Some("SimpleHTTP")
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
}
