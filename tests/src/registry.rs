//! Debian's `docker-registry` on loopback, with the images of real servers.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::json;

use crate::artifacts;

const PROGRAM: &str = "docker-registry";
/// Its last word before the address, when it takes connections.
const LISTENING: &str = "listening on 127.0.0.1:";

/// A running registry. Dropped, it is gone.
pub struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("there is room for a file");
        let file = folder.path().join("config.yml");
        // YAML is a superset of JSON.
        let config = json!({
            "version": 0.1,
            "log": { "level": "info" },
            "storage": {
                "filesystem": { "rootdirectory": artifacts::registry_storage() },
                "maintenance": { "readonly": { "enabled": true } },
            },
            "http": { "addr": "127.0.0.1:0", "secret": "unused" },
        });
        fs::write(&file, config.to_string()).expect("there is room for a file");
        let mut process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {PROGRAM}: {error}"));
        let mut log = BufReader::new(process.stderr.take().expect("it is a pipe"));
        let mut said = String::new();
        let port = loop {
            let from = said.len();
            let read = log.read_line(&mut said).expect("its log is text");
            assert_ne!(read, 0, "the registry ended: {said}");
            if let Some((_, rest)) = said[from..].split_once(LISTENING) {
                let digits = rest.chars().take_while(char::is_ascii_digit);
                break digits.collect::<String>();
            }
        };
        // Somebody must read, or it waits for that at last.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self {
            process,
            host: format!("127.0.0.1:{port}"),
        }
    }

    /// The name of one of its images, as a pool is given it.
    pub fn image(&self, name: &str) -> String {
        format!("{}/debian/{name}:12", self.host)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
