//! Pools and sessions as the tests see them.

use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::AUTHORIZATION;
use hyper::http::request;
use hyper::{Method, Request};
use serde_json::{Value, json};

use crate::cli::Ran;
use crate::client::{Answer, Body, empty, full};
use crate::process::{self, Process};
use crate::{Client, TestAppliance};

/// Pools of the command line live in this subscription.
const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";
const RESOURCE_GROUP: &str = "default";

/// What filling a pool, or moving it over to a new revision, may take on an emulated processor.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);
/// Between two looks at a pool.
const PAUSE: Duration = Duration::from_millis(200);

/// What a pool is made from. Without more it runs the demo image.
pub struct PoolBuilder<'a> {
    host: &'a TestAppliance,
    name: String,
    flags: Vec<String>,
}

/// A pool that exists.
pub struct Pool<'a> {
    host: &'a TestAppliance,
    pub name: String,
}

/// One identifier of a pool, and a token to use it.
#[derive(Clone)]
pub struct Session<'a> {
    host: &'a TestAppliance,
    client: Client,
    pool: String,
    token: String,
    pub identifier: String,
}

impl<'a> PoolBuilder<'a> {
    pub fn new(host: &'a TestAppliance, name: &str) -> Self {
        Self {
            host,
            name: name.to_owned(),
            flags: Vec::new(),
        }
    }

    /// Flags of `cabana sessionpool create`.
    #[must_use]
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    pub fn create(self) -> Pool<'a> {
        let (host, name) = (self.host, self.name.clone());
        let ran = self.run();
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        host.pool_was_made(&name);
        Pool { host, name }
    }

    /// Makes it by a PUT of these properties on the admin socket, for what the command line has no flags for.
    /// Flags are not used. The image, its size and port are as with [`Self::create`] where the properties
    /// are silent.
    pub fn put(self, properties: Value) -> Result<Pool<'a>, String> {
        let Self { host, name, .. } = self;
        let mut whole = json!({
            "customContainerTemplate": {
                "containers": [{
                    "image": host.demo_image(),
                    "resources": { "cpu": 1.0, "memory": "0.5Gi" },
                }],
                "ingress": { "targetPort": 8080 },
            },
        });
        merge(&mut whole, properties);
        let target = resource(&name, "");
        let body = json!({ "location": "local", "properties": whole });
        let answer = host.admin(Method::PUT, &target, &body);
        if answer.status >= 300 {
            return Err(answer.text());
        }
        host.pool_was_made(&name);
        Ok(Pool { host, name })
    }

    /// For a pool that may be refused.
    pub fn run(self) -> Ran {
        let Self {
            host,
            name,
            mut flags,
        } = self;
        let default = |flags: &mut Vec<String>, flag: &str, value: &str| {
            if !flags.iter().any(|given| given == flag) {
                flags.extend([flag.to_owned(), value.to_owned()]);
            }
        };
        if !flags.iter().any(|given| given == "--image") {
            flags.extend(["--image".to_owned(), host.demo_image().to_owned()]);
        }
        default(&mut flags, "--target-port", "8080");
        // A whole CPU: on an emulated processor a quarter of one is very slow.
        default(&mut flags, "--cpu", "1.0");
        default(&mut flags, "--memory", "0.5Gi");
        // Most tests count workers, and want none that nobody asked for.
        default(&mut flags, "--ready-sessions", "0");
        let mut arguments = vec!["sessionpool", "create", "--name", &name];
        arguments.extend(flags.iter().map(String::as_str));
        host.cli().run(&arguments)
    }
}

impl<'a> Pool<'a> {
    pub(crate) fn existing(host: &'a TestAppliance, name: &str) -> Self {
        Self {
            host,
            name: name.to_owned(),
        }
    }

    pub fn session(&self, identifier: &str) -> Session<'a> {
        self.session_with(identifier, self.host.token())
    }

    /// A session that is used with a token of one's own.
    pub fn session_with(&self, identifier: &str, token: &str) -> Session<'a> {
        Session {
            host: self.host,
            client: self.host.client(),
            pool: self.name.clone(),
            token: token.to_owned(),
            identifier: identifier.to_owned(),
        }
    }

    /// The resource's properties; `None`: there is no such pool.
    pub fn properties(&self) -> Option<Value> {
        let target = resource(&self.name, "");
        let answer = self.host.admin(Method::GET, &target, &Value::Null);
        (answer.status != 404).then(|| answer.json()["properties"].take())
    }

    #[track_caller]
    pub fn counts(&self) -> Counts {
        let properties = self.properties();
        Counts::of(&properties.unwrap_or_else(|| panic!("there is no pool {}", self.name)))
    }

    /// Waits until the pool's properties are as wanted. It says what it holds and not when that changes, so it is asked
    /// again and again.
    #[track_caller]
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        loop {
            let shown = self.properties().unwrap_or_default();
            if wanted(&shown) {
                return;
            }
            assert!(
                begun.elapsed() < CHANGE_LIMIT,
                "{} is not {what}: {shown:#}\n{}",
                self.name,
                self.host.report(0)
            );
            thread::sleep(PAUSE);
        }
    }

    /// Waits until so many sessions are ready and allocated, nothing is on its way and no start has failed since.
    #[track_caller]
    pub fn wait_for_counts(&self, ready: u64, allocated: u64) {
        self.wait_for(Counts::settled(ready, allocated));
    }

    #[track_caller]
    pub fn wait_for(&self, wanted: Counts) {
        let what = format!("{wanted:?}");
        self.wait_until(&what, |shown| {
            !shown.is_null() && Counts::of(shown) == wanted
        });
    }

    /// What the administration says of a session; `None`: there is none.
    pub fn look(&self, identifier: &str) -> Option<Value> {
        let target = resource(
            &self.name,
            &format!("/sessions/{}", percent_encode(identifier)),
        );
        let answer = self.host.admin(Method::GET, &target, &Value::Null);
        (answer.status < 400).then(|| answer.json())
    }

    /// The process of a session.
    #[track_caller]
    pub fn worker_of(&self, identifier: &str) -> Process {
        let look = self.look(identifier);
        let look = look.unwrap_or_else(|| panic!("{identifier} has no session"));
        let id = look["worker"].as_str().expect("a session has a worker");
        process::of_worker(id).unwrap_or_else(|| panic!("no process of worker {id}: {look}"))
    }

    /// Ends all sessions of the pool. Returns when nothing of them is left.
    pub fn delete(self) {
        self.host
            .cli()
            .ok(&["sessionpool", "delete", "--name", &self.name]);
        self.host.pool_was_deleted(&self.name);
    }
}

/// What a pool holds, as the resource says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub ready: u64,
    pub allocated: u64,
    pub pending: u64,
    pub draining: u64,
    /// Starts that failed in a row.
    pub failed: u64,
}

impl Counts {
    /// Nothing is on its way and nothing failed.
    pub fn settled(ready: u64, allocated: u64) -> Self {
        Self {
            ready,
            allocated,
            pending: 0,
            draining: 0,
            failed: 0,
        }
    }

    fn of(properties: &Value) -> Self {
        let count = |name: &str| {
            let count = properties["sessionCounts"][name].as_u64();
            count.unwrap_or_else(|| panic!("no count {name}: {properties}"))
        };
        Self {
            ready: count("ready"),
            allocated: count("allocated"),
            pending: count("pending"),
            draining: count("draining"),
            failed: count("failed"),
        }
    }
}

/// Path of a pool's endpoint, without a slash at its end.
pub fn endpoint(pool: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/sessionPools/{pool}")
}

/// The pool's address for the administration, or that of something in it. In the version that shows all there is.
fn resource(pool: &str, inside: &str) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}/providers/Microsoft.App/sessionPools/{pool}{inside}\
         ?api-version=2025-10-02-preview"
    )
}

impl Session<'_> {
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Path and query of the whole request; `path` is what the container gets, with its own query.
    pub fn target(&self, path: &str) -> String {
        let separator = if path.contains('?') { '&' } else { '?' };
        format!(
            "{}{path}{separator}identifier={}",
            endpoint(&self.pool),
            percent_encode(&self.identifier)
        )
    }

    /// The start of a request, with the token.
    pub fn request(&self, method: Method, path: &str) -> request::Builder {
        self.client
            .request(method, &self.target(path))
            .header(AUTHORIZATION, self.authorization())
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        self.client.send(request).await
    }

    pub fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Bytes::new())
    }

    pub fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = self.whole_request(method, path, body.into());
        self.host.block_on(self.send(request))
    }

    /// The same of an appliance that may end at any moment. `None`: it was not answered.
    pub fn try_call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Option<Answer> {
        let request = self.whole_request(method, path, body.into());
        self.host.block_on(self.client.try_send(request))
    }

    fn whole_request(&self, method: Method, path: &str, body: Bytes) -> Request<Body> {
        let body = if body.is_empty() { empty() } else { full(body) };
        self.request(method, path)
            .body(body)
            .expect("the parts of the request are well formed")
    }

    /// The text of a successful answer.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:#?}");
        answer.text()
    }

    /// What names the guest's boot, the same as long as it is the same guest.
    #[track_caller]
    pub fn boot_id(&self) -> String {
        let id = self.get("/id").json();
        id["bootId"]
            .as_str()
            .unwrap_or_else(|| panic!("no boot id: {id}"))
            .to_owned()
    }

    /// Runs a program in the container.
    #[track_caller]
    pub fn exec(&self, argv: &[&str]) -> Value {
        self.call(Method::POST, "/exec", json!({ "argv": argv }).to_string())
            .json()
    }
}

/// Puts the values of `more` over those of `value`; lists are merged item by item.
fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, more) in more {
                merge(fields.entry(name).or_insert(Value::Null), more);
            }
        }
        (Value::Array(items), Value::Array(more)) => {
            for (index, more) in more.into_iter().enumerate() {
                match items.get_mut(index) {
                    Some(item) => merge(item, more),
                    None => items.push(more),
                }
            }
        }
        (value, more) => *value = more,
    }
}

/// Encodes what may not stand in a query as it is.
pub fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
