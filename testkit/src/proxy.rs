//! A TCP proxy in front of a PostgreSQL server: the network between a client and it, and its faults.

mod replies;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Error, Postgres};
use replies::Replies;

const CHUNK_BYTES: usize = 64 * 1024;

/// A proxy on a port of its own, which forwards what it is not told to hold back.
///
/// Each client's connection becomes one to the server, made when the client comes; while the server
/// is down, clients are accepted and their connections closed. All ends with the value.
///
/// ```no_run
/// # fn main() -> Result<(), testkit::Error> {
/// let server = testkit::Postgres::shared();
/// let proxy = testkit::Proxy::in_front_of(server)?;
/// proxy.drop_commit_replies(1);
/// let insert = "BEGIN; CREATE TABLE t (n int); COMMIT";
/// assert!(server.sql_at(&proxy.url("postgres"), insert).is_err());
/// assert_eq!(server.sql("postgres", "SELECT to_regclass('t')")?, "t");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    network: Arc<Network>,
    port: u16,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy in front of a server, which may be down.
    ///
    /// # Errors
    ///
    /// When there is no port to listen on.
    pub fn in_front_of(server: &Postgres) -> Result<Proxy, Error> {
        Proxy::to_port(server.port()).map_err(Error::io("start a proxy"))
    }

    fn to_port(server_port: u16) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let network = Arc::new(Network {
            server_port,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let acceptor = {
            let network = Arc::clone(&network);
            thread::spawn(move || accept(&network, &listener))
        };
        Ok(Proxy { network, port, acceptor: Some(acceptor) })
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database behind the proxy, for the superuser. It asks for no encryption,
    /// in which the reply to a COMMIT could not be found.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The address of a database behind the proxy, for another role.
    #[must_use]
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// How many connections of clients are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.network.state().links.len()
    }

    /// Cuts every connection at once, with all that is on its way; how many these were.
    pub fn cut_all(&self) -> usize {
        let mut state = self.network.state();
        let cut = std::mem::take(&mut state.links);
        cut.iter().for_each(Link::cut);
        self.network.changed.notify_all();
        cut.len()
    }

    /// Cuts one connection, the `choice`-th from the oldest, counted round; whether there is any.
    pub fn cut_one(&self, choice: usize) -> bool {
        let mut state = self.network.state();
        if state.links.is_empty() {
            return false;
        }
        let index = choice % state.links.len();
        state.links.remove(index).cut();
        self.network.changed.notify_all();
        true
    }

    /// From now on holds each piece of data, of both directions, for so long before it goes on.
    pub fn set_delay(&self, delay: Duration) {
        self.network.state().delay = delay;
        self.network.changed.notify_all();
    }

    /// Accepts and forwards nothing while it is on: neither data nor the end of a connection. What
    /// has been held back goes on its way when it is off again.
    pub fn set_black_hole(&self, is_on: bool) {
        self.network.state().is_black_hole = is_on;
        self.network.changed.notify_all();
    }

    /// Drops the reply to each of the next `count` COMMITs: the server commits and says so, and
    /// then the connection is cut instead. Zero takes back what has not happened yet.
    pub fn drop_commit_replies(&self, count: u32) {
        self.network.state().replies_to_drop = count;
    }

    /// How many replies to a COMMIT have been dropped.
    #[must_use]
    pub fn dropped_commit_replies(&self) -> u64 {
        self.network.state().dropped_replies
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.network.state().has_ended = true;
        self.cut_all();
        // The acceptor looks up when somebody comes.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// What the threads of a proxy share.
#[derive(Debug)]
struct Network {
    server_port: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    has_ended: bool,
    is_black_hole: bool,
    delay: Duration,
    replies_to_drop: u32,
    dropped_replies: u64,
    accepted: u64,
    /// Those that have neither ended nor been cut, the oldest first.
    links: Vec<Link>,
}

/// A client's connection, and the server's half of it once there is one.
#[derive(Debug)]
struct Link {
    number: u64,
    streams: Vec<TcpStream>,
}

impl Link {
    fn cut(&self) {
        for stream in &self.streams {
            // One that its other end has closed is as good as cut.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Network {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a stream under a link's number; whether the link still is.
    fn attach(&self, number: u64, stream: &TcpStream) -> io::Result<bool> {
        stream.set_nodelay(true)?;
        let stream = stream.try_clone()?;
        let mut state = self.state();
        let link = state.links.iter_mut().find(|link| link.number == number);
        Ok(link.map(|link| link.streams.push(stream)).is_some())
    }

    /// Waits as long as data is held back; whether it may go on, which it may not once it is cut.
    fn may_pass(&self, number: u64) -> bool {
        let mut state = self.state();
        let due = Instant::now() + state.delay;
        loop {
            if !state.links.iter().any(|link| link.number == number) {
                return false;
            }
            let left = due.saturating_duration_since(Instant::now());
            state = if state.is_black_hole {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else if left.is_zero() {
                return true;
            } else {
                let woken = self.changed.wait_timeout(state, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Whether the reply to a COMMIT that has just been read is to be dropped.
    fn takes_reply(&self) -> bool {
        let mut state = self.state();
        let takes = state.replies_to_drop > 0;
        if takes {
            state.replies_to_drop -= 1;
            state.dropped_replies += 1;
        }
        takes
    }

    fn cut(&self, number: u64) {
        let mut state = self.state();
        state.links.iter().filter(|link| link.number == number).for_each(Link::cut);
        state.links.retain(|link| link.number != number);
        self.changed.notify_all();
    }
}

fn accept(network: &Arc<Network>, listener: &TcpListener) {
    for client in listener.incoming() {
        let number = {
            let mut state = network.state();
            if state.has_ended {
                return;
            }
            state.accepted += 1;
            let number = state.accepted;
            state.links.push(Link { number, streams: Vec::new() });
            number
        };
        let network = Arc::clone(network);
        thread::spawn(move || {
            // A client that left, or a server that is down: both end the connection.
            let _ = client.and_then(|client| connect_and_forward(&network, number, &client));
            network.cut(number);
        });
    }
}

/// Forwards both directions of a link until each has ended, or the link is cut.
fn connect_and_forward(network: &Network, number: u64, client: &TcpStream) -> io::Result<()> {
    if !network.attach(number, client)? || !network.may_pass(number) {
        return Ok(());
    }
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, network.server_port))?;
    if !network.attach(number, &server)? {
        return Ok(());
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            forward(network, number, client, &server, None);
        });
        forward(network, number, &server, client, Some(Replies::default()));
    });
    Ok(())
}

/// Forwards one direction until it ends, and then passes its end on.
fn forward(
    network: &Network,
    number: u64,
    mut from: &TcpStream,
    mut to: &TcpStream,
    mut replies: Option<Replies>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk);
        if !network.may_pass(number) {
            return;
        }
        let data = match read {
            Ok(bytes) if bytes > 0 => &chunk[..bytes],
            _ => break,
        };
        let written = match &mut replies {
            None => to.write_all(data),
            Some(replies) => {
                let passed = replies.pass(data, || network.takes_reply());
                if passed.is_dropped {
                    // What came before the reply is lost with it, as in a network that breaks.
                    return network.cut(number);
                }
                to.write_all(&passed.data)
            }
        };
        if written.is_err() {
            return network.cut(number);
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
