//! From the flags about a registry to user name and password.

use std::io::{self, Read as _};

use serde_json::{Value, json};

use super::args::RegistryFlags;
use crate::exit::{Exit, Failure};
use crate::images::registry::{Reference, RegistryHost};

/// Longest password that is read; registries have tokens of a few KiB.
const PASSWORD_BYTES: u64 = 64 << 10;

/// User and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub server: RegistryHost,
    pub username: String,
    pub password: String,
}

impl Login {
    /// `None` if no user is named. Without a server it is that of `image`.
    pub fn of(flags: &RegistryFlags, image: Option<&str>) -> Result<Option<Self>, Failure> {
        let usage = |line: String| Failure::new(Exit::Usage, line);
        let Some(username) = flags.registry_username.clone() else {
            return Ok(None);
        };
        let server = match (&flags.registry_server, image) {
            (Some(server), _) => {
                let server = server.trim_start_matches("https://").trim_end_matches('/');
                server
                    .parse()
                    .map_err(|why| usage(format!("--registry-server: {why}")))?
            }
            (None, Some(image)) => {
                let reference: Reference =
                    image.parse().map_err(|error| usage(format!("{error}")))?;
                reference.host
            }
            (None, None) => {
                return Err(usage("--registry-server is needed without --image".into()));
            }
        };
        let password = match (&flags.registry_password, flags.registry_password_stdin) {
            (Some(password), _) => password.clone(),
            (None, true) => read(io::stdin())?,
            (None, false) => {
                let line = "--registry-password or --registry-password-stdin is needed with --registry-username";
                return Err(usage(line.into()));
            }
        };
        Ok(Some(Self {
            server,
            username,
            password,
        }))
    }

    /// For the body of a pull.
    pub fn body(&self) -> Value {
        json!({
            "server": self.server.as_str(),
            "username": self.username,
            "password": self.password,
        })
    }

    /// What the password is called among the secrets of a pool, as `az` makes it up.
    pub fn secret_name(&self) -> String {
        let text = format!("{}-{}", self.server, self.username).to_ascii_lowercase();
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        text.chars()
            .filter(|c| *c != '.')
            .map(|c| if allowed(c) { c } else { '-' })
            .collect()
    }

    /// For the template of a pool.
    pub fn credentials(&self) -> Value {
        json!({
            "server": self.server.as_str(),
            "username": self.username,
            "passwordSecretRef": self.secret_name(),
        })
    }
}

/// One line; its end is no part of the password.
fn read(input: impl io::Read) -> Result<String, Failure> {
    let failed =
        |why: String| Failure::new(Exit::Failed, format!("Cannot read the password: {why}"));
    let mut text = String::new();
    input
        .take(PASSWORD_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    let password = text.trim_end_matches(['\n', '\r']);
    match password.is_empty() {
        true => Err(failed("there is none on standard input".into())),
        false => Ok(password.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(server: Option<&str>, password: Option<&str>) -> RegistryFlags {
        RegistryFlags {
            registry_server: server.map(str::to_owned),
            registry_username: Some("User@x".into()),
            registry_password: password.map(str::to_owned),
            registry_password_stdin: false,
        }
    }

    #[test]
    fn server_is_the_one_that_is_said_or_the_image_s() {
        let server = |server, image| {
            let login = Login::of(&flags(server, Some("p")), image)
                .unwrap()
                .unwrap();
            login.server.as_str().to_owned()
        };
        assert_eq!(
            server(Some("https://R.example/"), Some("other.example/x")),
            "r.example"
        );
        assert_eq!(server(None, Some("r.example:1/x:2")), "r.example:1");
        assert_eq!(server(None, Some("team/x")), "docker.io");
        for (server, password, image) in [
            (Some("a b"), Some("p"), None),
            (None, Some("p"), None),
            (None, Some("p"), Some("No Name")),
            (None, None, Some("x")),
        ] {
            let failure = Login::of(&flags(server, password), image).err().unwrap();
            assert_eq!(failure.exit, Exit::Usage);
        }
        assert!(
            Login::of(&RegistryFlags::default(), None)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn secret_has_a_name_that_a_pool_takes() {
        let login = Login::of(&flags(Some("r.example:5000"), Some("p")), None)
            .unwrap()
            .unwrap();
        assert_eq!(login.secret_name(), "rexample-5000-user-x");
        assert_eq!(
            login.credentials()["passwordSecretRef"],
            "rexample-5000-user-x"
        );
    }

    #[test]
    fn password_ends_with_its_line() {
        assert_eq!(read(&b"a b \n"[..]).unwrap(), "a b ");
        assert_eq!(read(&b"x\r\n"[..]).unwrap(), "x");
        assert!(read(&b"\n"[..]).is_err());
    }
}
