//! Endpoints about the process and the machine it runs on.

use std::env;
use std::fs;
use std::process::Stdio;
use std::thread;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use rustix::process::{Signal, getpid, kill_process};
use rustix::system::{RebootCommand, reboot, sysinfo, uname};
use serde_json::{Map, Value, json};
use tokio::process::Command;

use crate::query;
use crate::reply::{self, Reply};

pub fn environment() -> Reply {
    let variables: Map<String, Value> = env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into(),
            )
        })
        .collect();
    reply::json(&Value::Object(variables))
}

/// What tells one guest from another, and how large it is.
pub fn identity() -> Reply {
    let line = |path| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim_end().to_owned())
    };
    reply::json(&json!({
        "hostname": uname().nodename().to_string_lossy(),
        "pid": getpid().as_raw_nonzero().get(),
        "bootId": line("/proc/sys/kernel/random/boot_id"),
        "machineId": line("/etc/machine-id"),
        "hostnameFile": line("/etc/hostname"),
        "hosts": line("/etc/hosts"),
        "memoryBytes": sysinfo().totalram,
        "cpus": thread::available_parallelism().map_or(0, Into::into),
    }))
}

/// Runs `{"argv": [...]}` and answers `{"code", "stdout", "stderr"}`.
pub async fn exec(request: Request<Incoming>) -> Reply {
    let argv = match request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
    {
        Ok(body) => serde_json::from_slice::<Value>(&body).ok().and_then(|job| {
            job.get("argv")?
                .as_array()?
                .iter()
                .map(|word| word.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        }),
        Err(e) => {
            return reply::problem(
                StatusCode::BAD_REQUEST,
                &format!("the body ended early: {e}"),
            );
        }
    };
    let Some((program, arguments)) = argv.as_deref().and_then(<[String]>::split_first) else {
        return reply::problem(
            StatusCode::BAD_REQUEST,
            r#"the body is not {"argv": ["program", ...]}"#,
        );
    };
    match Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
    {
        Ok(output) => reply::json(&json!({
            "code": output.status.code(),
            "stdout": String::from_utf8_lossy(&output.stdout),
            "stderr": String::from_utf8_lossy(&output.stderr),
        })),
        Err(e) => reply::problem(
            StatusCode::BAD_REQUEST,
            &format!("cannot run {program:?}: {e}"),
        ),
    }
}

/// Ends the server without an answer.
pub fn exit(request: &Request<Incoming>) -> Reply {
    match query::number::<_, u8>(request, "code", 0) {
        Ok(code) => {
            println!("demo: exiting with status {code} on request");
            std::process::exit(code.into());
        }
        Err(refusal) => *refusal,
    }
}

/// Ends the server by a signal, SIGABRT unless told otherwise, without an answer.
pub fn crash(request: &Request<Incoming>) -> Reply {
    let number = match query::number(request, "signal", Signal::ABORT.as_raw()) {
        Ok(number) => number,
        Err(refusal) => return *refusal,
    };
    let Some(signal) = Signal::from_named_raw(number) else {
        return reply::problem(
            StatusCode::BAD_REQUEST,
            &format!("there is no signal {number}"),
        );
    };
    println!("demo: crashing with signal {number} on request");
    // Twice: the runtime's own handler, made for stack overflows, swallows a first SIGSEGV or SIGBUS.
    for _ in 0..2 {
        if let Err(e) = kill_process(getpid(), signal) {
            return reply::problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("cannot send signal {number}: {e}"),
            );
        }
    }
    // The first process of a PID namespace gets no signal that it sends itself (pid_namespaces(7)), but it
    // does not survive the instruction that this ends in.
    std::process::abort()
}

/// `how=off`, `how=restart` or `how=halt`: asks the kernel itself, as a hostile tenant would.
pub fn power(request: &Request<Incoming>) -> Reply {
    let command = match query::parameter(request, "how").as_deref() {
        None | Some("off") => RebootCommand::PowerOff,
        Some("restart") => RebootCommand::Restart,
        Some("halt") => RebootCommand::Halt,
        Some(other) => {
            return reply::problem(
                StatusCode::BAD_REQUEST,
                &format!("how is off, restart or halt, not {other:?}"),
            );
        }
    };
    match reboot(command) {
        Ok(()) => reply::text("still here\n"),
        Err(e) => reply::problem(StatusCode::FORBIDDEN, &format!("reboot: {e}")),
    }
}

/// Writes one line to stdout.
pub fn stdout(request: &Request<Incoming>) -> Reply {
    println!("{}", query::parameter(request, "text").unwrap_or_default());
    reply::empty(StatusCode::NO_CONTENT)
}
