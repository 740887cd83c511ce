//! `cabana session exec`.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use wire::exec::{ExecEnd, ExecRequest, FromCommand, Inbox, MAX_DATA_BYTES, ToCommand};

use super::args::ExecSession;
use super::client::{self, inside_path};
use super::terminal::{self, RawMode};
use crate::admin::EXEC_PROTOCOL;
use crate::exit::{Exit, Failure};
use crate::worker::tame;

/// Pieces of input, or of output, that wait for whoever takes them.
const PIECES: usize = 4;
/// Signals that end this command, and with it the one in the session. A terminal in raw mode sends none.
const ENDING: [SignalKind; 4] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
];
/// Added to a signal's number, as shells do.
const SIGNALLED: i32 = 128;
/// 128 and SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// What standard input and output are.
#[derive(Debug, Clone, Copy)]
struct Terminals {
    stdin: bool,
    stdout: bool,
}

/// Ends as the command did.
pub fn exec(exec: &ExecSession) -> Result<ExitCode, Failure> {
    let terminals = Terminals {
        stdin: io::stdin().is_terminal(),
        stdout: io::stdout().is_terminal(),
    };
    let request = request(exec, terminals, std::env::var("TERM").ok());
    let path = inside_path(&exec.target, "exec", &[]);
    let end = client::with_socket(&exec.connection.root, async |socket| {
        let stream = client::upgrade(socket, &path, EXEC_PROTOCOL).await?;
        // Without input the keyboard is still ours, and Ctrl-C with it.
        let is_raw = request.terminal.is_some() && request.stdin && terminals.stdin;
        // Put back at the end of this block, however it is left.
        let _raw = match is_raw {
            true => Some(RawMode::enter().map_err(|error| Failure::of(Exit::Failed, &error))?),
            false => None,
        };
        converse(stream, request).await
    })?;
    if let Some(message) = end.message {
        super::complain(&tame(&message));
    }
    Ok(end.code.into())
}

fn request(exec: &ExecSession, terminals: Terminals, term: Option<String>) -> ExecRequest {
    let tty = exec.tty.unwrap_or(terminals.stdin && terminals.stdout);
    let named = |(name, value): &(String, String)| format!("{name}={value}");
    let term = term.filter(|_| tty).map(|term| format!("TERM={term}"));
    ExecRequest {
        argv: exec.command.clone(),
        env: term.into_iter().chain(exec.env.iter().map(named)).collect(),
        user: exec.user.clone(),
        working_dir: exec.workdir.clone(),
        terminal: tty.then(terminal::size),
        stdin: exec.interactive.unwrap_or(terminals.stdin),
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{what}: {error}"))
}

/// Carries input and output until the command has ended.
async fn converse(stream: TokioIo<Upgraded>, request: ExecRequest) -> Result<ExecEnd, Failure> {
    let (from_agent, mut to_agent) = tokio::io::split(stream);
    let (with_input, in_terminal) = (request.stdin, request.terminal.is_some());
    let first = ToCommand::Request(Box::new(request));
    let first = first
        .encode()
        .map_err(|error| Failure::of(Exit::Usage, &error))?;
    let lost = |error| failed("The connection to the session broke off", &error);
    to_agent.write_all(&first).await.map_err(lost)?;
    let (output, mut written) = start_writer();
    let mut receiving = std::pin::pin!(receive(from_agent, output));
    let mut sending = std::pin::pin!(send(to_agent, with_input, in_terminal));
    let mut signals =
        ending_signals().map_err(|error| failed("Cannot watch for signals", &error))?;
    let mut sends = true;
    let end = loop {
        tokio::select! {
            end = &mut receiving => break end?,
            // The agent does not listen any more; it still says how the command ended.
            () = &mut sending, if sends => sends = false,
            code = ended_by(&mut signals) => return Ok(ExecEnd { code, message: None }),
            result = &mut written => return unwritten(result),
        }
    };
    match written.await {
        Ok(Ok(())) => Ok(end),
        result => unwritten(result),
    }
}

/// Somebody who has read enough (`| head`) ends this as it would end the command itself.
fn unwritten(
    result: Result<io::Result<()>, oneshot::error::RecvError>,
) -> Result<ExecEnd, Failure> {
    match result {
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(failed("Cannot write the command's output", &error))
        }
        _ => Ok(ExecEnd {
            code: BROKEN_PIPE,
            message: None,
        }),
    }
}

/// One piece of output, and where it belongs.
enum Piece {
    Out(Vec<u8>),
    Err(Vec<u8>),
}

/// Writes on a thread of its own, because writing may block and the rest must go on.
fn start_writer() -> (mpsc::Sender<Piece>, oneshot::Receiver<io::Result<()>>) {
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let (done, is_done) = oneshot::channel();
    std::thread::spawn(move || {
        let mut write = || -> io::Result<()> {
            while let Some(piece) = pieces.blocking_recv() {
                match piece {
                    Piece::Out(bytes) => {
                        let mut stdout = io::stdout().lock();
                        stdout.write_all(&bytes)?;
                        stdout.flush()?;
                    }
                    Piece::Err(bytes) => io::stderr().write_all(&bytes)?,
                }
            }
            Ok(())
        };
        let _ = done.send(write());
    });
    (sender, is_done)
}

async fn receive(
    mut stream: ReadHalf<TokioIo<Upgraded>>,
    output: mpsc::Sender<Piece>,
) -> Result<ExecEnd, Failure> {
    let mut inbox = Inbox::default();
    let mut buffer = vec![0; MAX_DATA_BYTES];
    loop {
        while let Some(frame) = inbox
            .next_from_command()
            .map_err(|error| Failure::of(Exit::Failed, &error))?
        {
            let piece = match frame {
                FromCommand::Stdout(bytes) => Piece::Out(bytes),
                FromCommand::Stderr(bytes) => Piece::Err(bytes),
                FromCommand::End(end) => return Ok(end),
                FromCommand::Unknown => continue,
            };
            // A writer that has gone says why.
            let _ = output.send(piece).await;
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                let line = "The session ended before the command did";
                return Err(Failure::new(Exit::Failed, line));
            }
            Ok(count) => inbox.push(&buffer[..count]),
        }
    }
}

/// Sends input and the window's size, until the agent takes no more.
async fn send(mut stream: WriteHalf<TokioIo<Upgraded>>, with_input: bool, in_terminal: bool) {
    let (sender, mut input) = mpsc::channel(PIECES);
    if with_input {
        let sender = sender.clone();
        std::thread::spawn(move || read_input(&sender));
    }
    let mut resized = signal(SignalKind::window_change()).ok();
    loop {
        let frame = tokio::select! {
            frame = input.recv() => frame,
            () = window_change(&mut resized), if in_terminal => Some(ToCommand::Resize(terminal::size())),
        };
        let Some(Ok(bytes)) = frame.as_ref().map(ToCommand::encode) else {
            return;
        };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn window_change(resized: &mut Option<Signal>) {
    match resized {
        Some(resized) => drop(resized.recv().await),
        None => std::future::pending().await,
    }
}

/// On a thread of its own, which is left behind in its `read` when the command has ended.
fn read_input(sender: &mpsc::Sender<ToCommand>) {
    let mut buffer = vec![0; MAX_DATA_BYTES];
    loop {
        let stdin = rustix::stdio::stdin();
        let read = rustix::io::retry_on_intr(|| rustix::io::read(stdin, &mut buffer[..]));
        let frame = match read {
            Ok(count) if count > 0 => ToCommand::Stdin(buffer[..count].to_vec()),
            _ => ToCommand::CloseStdin,
        };
        let is_last = frame == ToCommand::CloseStdin;
        if sender.blocking_send(frame).is_err() || is_last {
            return;
        }
    }
}

fn ending_signals() -> io::Result<Vec<(i32, Signal)>> {
    let watch = |kind: SignalKind| Ok((kind.as_raw_value(), signal(kind)?));
    ENDING.into_iter().map(watch).collect()
}

/// Resolves when one of the signals came; the code is what a shell would report.
async fn ended_by(signals: &mut [(i32, Signal)]) -> u8 {
    std::future::poll_fn(|context| {
        for (number, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(
                    u8::try_from(SIGNALLED + *number).unwrap_or(u8::MAX),
                );
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, SessionCommand};
    use clap::Parser as _;

    fn parsed(flags: &[&str]) -> ExecSession {
        let before = [
            "cabana",
            "session",
            "exec",
            "--name",
            "p",
            "--identifier",
            "user",
        ];
        let arguments = before
            .iter()
            .chain(flags)
            .chain(&["--", "ls", "-l", "--", "x"]);
        let cli = Cli::try_parse_from(arguments).unwrap();
        let Command::Session(SessionCommand::Exec(exec)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(exec.command, ["ls", "-l", "--", "x"]);
        exec
    }

    fn asked(flags: &[&str], stdin: bool, stdout: bool) -> (bool, bool) {
        let terminals = Terminals { stdin, stdout };
        let request = request(&parsed(flags), terminals, Some("vt100".into()));
        let tty = request.terminal.is_some();
        assert_eq!(
            request.env.first().is_some_and(|it| it == "TERM=vt100"),
            tty
        );
        (request.stdin, tty)
    }

    #[test]
    fn terminal_and_input_are_the_default_for_who_has_a_terminal() {
        assert_eq!(asked(&[], true, true), (true, true));
        assert_eq!(asked(&[], true, false), (true, false));
        assert_eq!(asked(&[], false, true), (false, false));
    }

    #[test]
    fn flags_win_over_what_there_is() {
        for both in [&["-it"][..], &["-i", "-t"], &["--interactive", "--tty"]] {
            assert_eq!(asked(both, false, false), (true, true), "{both:?}");
        }
        assert_eq!(asked(&["--interactive"], false, false), (true, false));
        assert_eq!(asked(&["--tty=false"], true, true), (true, false));
        assert_eq!(
            asked(&["--interactive=false", "-t"], true, true),
            (false, true)
        );
    }

    #[test]
    fn settings_of_the_operator_are_sent() {
        let exec = parsed(&[
            "--user",
            "app:logs",
            "--workdir",
            "/srv",
            "-e",
            "A=b=c",
            "--env",
            "D=",
        ]);
        let terminals = Terminals {
            stdin: false,
            stdout: false,
        };
        let request = request(&exec, terminals, Some("xterm".into()));
        assert_eq!(request.env, ["A=b=c", "D="]);
        assert_eq!(request.user.as_deref(), Some("app:logs"));
        assert_eq!(request.working_dir.as_deref(), Some("/srv"));
    }
}
