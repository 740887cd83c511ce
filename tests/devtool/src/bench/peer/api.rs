//! The peer's API: HTTP/1.1 over a Unix socket, one small request after the other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A snapshot is written within this on an emulated processor.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const SOCKET_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether the socket is there: the peer says nothing when it is.
const LOOK: Duration = Duration::from_millis(1);

pub struct Api(BufReader<UnixStream>);

impl Api {
    /// Waits until the peer listens.
    pub fn connect(socket: &Path) -> Result<Self> {
        let started = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    stream
                        .set_read_timeout(Some(ANSWER_LIMIT))
                        .context("Cannot use the peer's socket")?;
                    return Ok(Self(BufReader::new(stream)));
                }
                Err(error) if started.elapsed() > SOCKET_LIMIT => {
                    return Err(error).with_context(|| {
                        format!("The peer does not listen on {}", socket.display())
                    });
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    pub fn put(&mut self, path: &str, body: &Value) -> Result<()> {
        self.request("PUT", path, body)
    }

    pub fn patch(&mut self, path: &str, body: &Value) -> Result<()> {
        self.request("PATCH", path, body)
    }

    fn request(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let failed = || format!("The peer did not answer {method} {path}");
        let stream = self.0.get_mut();
        stream.write_all(request.as_bytes()).with_context(failed)?;
        let (status, answer) = self.answer().with_context(failed)?;
        if !(200..300).contains(&status) {
            bail!("The peer refused {method} {path} with {status}: {answer}");
        }
        Ok(())
    }

    /// Status and body.
    fn answer(&mut self) -> Result<(u16, String)> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                bail!("it closed the connection");
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines.first().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|text| text.parse().ok());
        let length = lines.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse::<u64>().ok())?
        });
        let mut body = String::new();
        (&mut self.0)
            .take(length.unwrap_or(0))
            .read_to_string(&mut body)?;
        Ok((status.context("it sent no status")?, body))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use serde_json::json;

    use super::*;

    /// Answers each request with the next of `answers`; gives back what was asked.
    fn serve(
        listener: UnixListener,
        answers: [&'static str; 2],
    ) -> std::thread::JoinHandle<Vec<String>> {
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut asked = Vec::new();
            for answer in answers {
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).unwrap();
                asked.push(String::from_utf8_lossy(&request[..count]).into_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        })
    }

    #[test]
    fn requests_go_out_one_by_one_and_a_refusal_is_told_in_the_peers_words() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let answers = [
            "HTTP/1.1 204 \r\nServer: x\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 400 \r\nContent-Length: 15\r\n\r\n{\"fault\":\"none\"",
        ];
        let server = serve(UnixListener::bind(&socket).unwrap(), answers);
        let mut api = Api::connect(&socket).unwrap();
        api.put("/actions", &json!({ "a": 1 })).unwrap();
        let error = api.patch("/vm", &json!({})).unwrap_err().to_string();
        assert!(error.contains("PATCH /vm with 400: {\"fault\""), "{error}");
        let asked = server.join().unwrap();
        assert!(
            asked[0].starts_with("PUT /actions HTTP/1.1\r\n"),
            "{asked:?}"
        );
        assert!(
            asked[0].ends_with("Content-Length: 7\r\n\r\n{\"a\":1}"),
            "{asked:?}"
        );
    }
}
