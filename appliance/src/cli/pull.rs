//! `cabana image pull`: a bar for each layer where somebody watches, lines elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use http::Method;
use http_body_util::BodyExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};

use super::args::PullImage;
use super::client::{self, Payload, broken};
use super::image::{Imported, report};
use super::login::Login;
use super::logs::Lines;
use crate::exit::{Exit, Failure};
use crate::images::registry::Progress;

/// Digits of a layer's digest that tell it from others.
const SHORT: usize = 12;

pub fn pull(pull: &PullImage) -> Result<Exit, Failure> {
    let login = Login::of(&pull.registry, Some(&pull.image))?;
    let pulled = fetch(&pull.connection.root, &pull.image, login.as_ref())?;
    report(&pull.output, &pulled, "is pulled")
}

/// Has the appliance pull, and shows how far it is on stderr.
fn fetch(root: &Path, image: &str, login: Option<&Login>) -> Result<Imported, Failure> {
    let body = json!({ "image": image, "registry": login.map(Login::body) });
    client::with_socket(root, async |socket| {
        let payload = Payload::Json(body);
        let mut body = client::stream(socket, Method::POST, "/images/pull", payload).await?;
        let (mut lines, mut display) = (Lines::default(), Display::new());
        let mut end = None;
        while let Some(frame) = body.frame().await {
            let bytes = frame.map_err(broken)?.into_data().unwrap_or_default();
            let shown = lines.push(&bytes, |line| {
                if let Some(last) = display.show(line)? {
                    end = Some(last);
                }
                Ok(())
            });
            shown.map_err(|error| Failure::of(Exit::Failed, &error))?;
        }
        display.clear();
        end.unwrap_or_else(|| {
            let line = "The appliance ended before the image was pulled; pull again to go on";
            Err(Failure::new(Exit::Unavailable, line))
        })
    })
}

/// The last line of an answer.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
enum Last {
    Done(Imported),
    Failed { error: Reason },
}

#[derive(Deserialize)]
struct Reason {
    code: String,
    message: String,
}

/// What has been shown.
struct Display {
    bars: Option<MultiProgress>,
    layers: HashMap<String, ProgressBar>,
}

impl Display {
    fn new() -> Self {
        Self {
            bars: io::stderr().is_terminal().then(MultiProgress::new),
            layers: HashMap::new(),
        }
    }

    /// Shows one line of the answer. The last one is given back.
    fn show(&mut self, line: &[u8]) -> io::Result<Option<Result<Imported, Failure>>> {
        let value: Value = serde_json::from_slice(line).map_err(io::Error::other)?;
        if let Ok(last) = Last::deserialize(&value) {
            return Ok(Some(match last {
                Last::Done(imported) => Ok(imported),
                Last::Failed {
                    error: Reason { code, message },
                } => {
                    let line = format!("{} ({code})", message.replace(['\n', '\r'], " "));
                    Err(Failure::new(Exit::Failed, line))
                }
            }));
        }
        // A step that a newer appliance knows is no reason to fail.
        if let Ok(step) = Progress::deserialize(&value) {
            match &step {
                Progress::Layer {
                    digest,
                    bytes,
                    total,
                } if self.bars.is_some() => {
                    self.layer(digest.hex(), *bytes, *total);
                }
                step => {
                    if let Some(text) = text(step) {
                        self.say(&text)?;
                    }
                }
            }
        }
        Ok(None)
    }

    fn layer(&mut self, digest: &str, bytes: u64, total: u64) {
        let Some(bars) = &self.bars else { return };
        let bar = self.layers.entry(digest.to_owned()).or_insert_with(|| {
            let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {eta}";
            let style =
                ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style);
            bars.add(bar.with_prefix(digest[..SHORT].to_owned()))
        });
        bar.set_position(bytes);
        if bytes == total {
            bar.abandon();
        }
    }

    fn say(&self, text: &str) -> io::Result<()> {
        match &self.bars {
            Some(bars) => bars.println(text),
            None => writeln!(io::stderr(), "{text}"),
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            // A terminal that is gone shows nothing anyway.
            let _ = bars.clear();
        }
    }
}

/// A step as a line; `None` if it is not worth one.
fn text(step: &Progress) -> Option<String> {
    Some(match step {
        Progress::Resolved { image, digest } => format!("{image} is {digest}"),
        Progress::Waiting => {
            "another pull of the same image is under way; waiting for it".to_owned()
        }
        Progress::Layer {
            digest,
            bytes,
            total,
        } if bytes == total => {
            #[allow(clippy::cast_precision_loss, reason = "a size for people")]
            let mib = *total as f64 / f64::from(1 << 20);
            format!("layer {}: {mib:.1} MiB", &digest.hex()[..SHORT])
        }
        Progress::Layer { .. } => return None,
        Progress::Retry { digest, reason } => {
            format!("layer {}: trying again, {reason}", &digest.hex()[..SHORT])
        }
        Progress::Building => "making the root image".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(line: &Value) -> Option<Result<Imported, Failure>> {
        let mut display = Display {
            bars: None,
            layers: HashMap::new(),
        };
        display.show(line.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn last_line_is_the_image_or_the_reason() {
        let done = json!({ "event": "done", "name": "a:1", "digest": "sha256:d", "rootImageBytes": 7, "cached": true });
        assert_eq!(show(&done).unwrap().unwrap().name, "a:1");
        let failed = json!({ "event": "failed", "error": { "code": "ImageNotFound", "message": "no\nsuch" } });
        let failure = show(&failed).unwrap().err().unwrap();
        assert_eq!(
            (failure.exit, failure.line.as_str()),
            (Exit::Failed, "no such (ImageNotFound)")
        );
        for other in [
            json!({ "event": "building" }),
            json!({ "event": "later" }),
            json!({}),
        ] {
            assert!(show(&other).is_none());
        }
    }

    #[test]
    fn layer_is_a_line_when_it_is_whole() {
        let layer = |bytes| {
            let digest = crate::images::Digest::of(b"x");
            text(&Progress::Layer {
                digest,
                bytes,
                total: 3 << 20,
            })
        };
        assert_eq!(layer(1), None);
        assert_eq!(layer(3 << 20).unwrap(), "layer 2d711642b726: 3.0 MiB");
    }
}
