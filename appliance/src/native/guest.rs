//! A worker without a hypervisor: it carries out orders, and its guest is an agent.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::process::{Child, Command};
use wire::HostMessage;
use wire::frame::{checked_length, decode, encode};

use crate::warden::channel;
use crate::warden::protocol::Status;
use crate::worker::orders::{Answer, Order};

/// What a worker says whose guest has powered off.
const POWER_OFF: &str = r#"{"end":"powerOff"}"#;

/// From the start of a worker to its end.
pub async fn live(fds: Vec<OwnedFd>, agent: &Path) -> (Status, Option<String>) {
    let ended = run(fds, agent).await.unwrap();
    assert!(ended.success(), "the agent ended with {ended}");
    (Status::Code(0), Some(POWER_OFF.to_owned()))
}

async fn run(fds: Vec<OwnedFd>, agent: &Path) -> io::Result<std::process::ExitStatus> {
    let [vsock, console, orders] = <[OwnedFd; 3]>::try_from(fds).unwrap();
    drop(console);
    let vsock = UnixListener::from(vsock);
    let socket = vsock.local_addr()?.as_pathname().unwrap().to_owned();
    let mut desk = Desk::open(orders).await?;
    let (first, files) = desk.order().await?;
    let (Order::Boot { spec, .. } | Order::Restore { spec, .. }) = first else {
        panic!("{first:?} and no guest")
    };
    // The disk is the last of a boot's files.
    let disk_bytes = files.last().unwrap().metadata()?.len();
    // There are a thousand of this one, in one process.
    drop(files);
    // The appliance has one connection to the socket that was there. All later ones are the agent's own.
    std::fs::remove_file(&socket)?;
    let mut guest = start(agent, &socket).await?;
    vsock.set_nonblocking(true)?;
    let vsock = tokio::net::UnixListener::from_std(vsock)?;
    let (control, _) = vsock.accept().await?;
    drop(vsock);
    let port = Port::reserve()?;
    let talk = join(control, UnixStream::connect(&socket).await?, port.number);
    tokio::pin!(talk);
    desk.done();
    let mut talking = true;
    loop {
        tokio::select! {
            ended = guest.wait() => {
                if talking {
                    // Its last words are still on the way.
                    let _ = talk.await;
                }
                return ended;
            }
            _ = &mut talk, if talking => talking = false,
            order = desk.order() => match order {
                Ok((Order::Save, files)) => {
                    let [mut state, memory, disk] = <[File; 3]>::try_from(files).unwrap();
                    state.write_all(b"nothing")?;
                    memory.set_len(u64::from(spec.mem_mib) << 20)?;
                    disk.set_len(disk_bytes)?;
                    desk.done();
                }
                Ok((Order::SaveWorkingSet, mut files)) => {
                    files[0].write_all(b"nothing")?;
                    desk.done();
                }
                Ok(_) => desk.done(),
                // The appliance has gone. So must a worker, once the warden has.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

async fn start(agent: &Path, socket: &Path) -> io::Result<Child> {
    let mut guest = Command::new(agent)
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut line = String::new();
    let stdout = guest.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).await?;
    assert!(line.starts_with("listening on "), "{line:?}");
    Ok(guest)
}

/// Joins the two ends of a control stream until the guest's is closed.
async fn join(host: UnixStream, guest: UnixStream, port: u16) -> io::Result<()> {
    let (from_host, mut to_host) = host.into_split();
    let (mut from_guest, to_guest) = guest.into_split();
    tokio::select! {
        copied = tokio::io::copy(&mut from_guest, &mut to_host) => copied.map(drop),
        passed = pass_on(from_host, to_guest, port) => {
            passed?;
            tokio::io::copy(&mut from_guest, &mut to_host).await.map(drop)
        }
    }
}

/// Gives the container its own port on the way.
async fn pass_on(from: OwnedReadHalf, mut to: OwnedWriteHalf, port: u16) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = String::new();
    from.read_line(&mut line).await?;
    to.write_all(line.as_bytes()).await?;
    loop {
        let mut prefix = [0; 4];
        if from.read_exact(&mut prefix).await.is_err() {
            return Ok(());
        }
        let mut body = vec![0; checked_length(prefix).unwrap()];
        from.read_exact(&mut body).await?;
        let mut message: HostMessage = decode(&body).unwrap();
        if let HostMessage::Start(spec) = &mut message {
            spec.target_port = port;
            spec.env.push(format!("PORT={port}"));
        }
        to.write_all(&encode(&message).unwrap()).await?;
    }
}

/// A port of loopback that nobody else gets, and that the container can bind all the same.
struct Port {
    number: u16,
    _socket: OwnedFd,
}

impl Port {
    fn reserve() -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, sockopt};
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = SocketAddr::try_from(getsockname(&socket)?)?;
        Ok(Self {
            number: address.port(),
            _socket: socket,
        })
    }
}

/// Where orders come in.
struct Desk {
    appliance: UnixDatagram,
}

impl Desk {
    async fn open(listener: OwnedFd) -> io::Result<Self> {
        let listener = watched(listener)?;
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let accept = || Ok(rustix::net::accept_with(&listener, flags)?);
        let appliance = listener.async_io(Interest::READABLE, accept).await?;
        Ok(Self {
            appliance: watched(appliance)?,
        })
    }

    async fn order(&mut self) -> io::Result<(Order, Vec<File>)> {
        let receive = || channel::receive(self.appliance.as_fd(), true);
        let message = self.appliance.async_io(Interest::READABLE, receive).await?;
        let message = message.ok_or(io::ErrorKind::UnexpectedEof)?;
        let order = Order::parse(&message.bytes).unwrap();
        order.check(&message.fds).unwrap();
        Ok((order, message.fds.into_iter().map(File::from).collect()))
    }

    fn done(&self) {
        let answer = Answer::Done { steps: Vec::new() };
        // It may have gone.
        let _ = channel::send(self.appliance.as_fd(), &answer.encode(), &[], false);
    }
}

/// tokio has no type for `SOCK_SEQPACKET`; of this one only the readiness is used.
fn watched(socket: OwnedFd) -> io::Result<UnixDatagram> {
    let socket = std::os::unix::net::UnixDatagram::from(socket);
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}
