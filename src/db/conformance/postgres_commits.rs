//! Step 4, on PostgreSQL only: a connection that dies while a transaction's fate is unknown.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::actions::{RING, add_keys, check_out, insert, sign, sign_all};
use super::fixture::{Fixture, Pg, options};
use super::judge::{assert_lawful, assert_signed};
use crate::db::{PgStore, SignedBatch, Store, StoreError, StoreOutcome};

/// Between a store and the server: once armed, it lets the next COMMIT through and then breaks the
/// connection instead of passing on the reply.
struct Proxy {
    port: u16,
    armed: Arc<AtomicBool>,
    swallowed: Arc<AtomicU32>,
}

impl Proxy {
    fn before(server_port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (armed, swallowed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let proxy = Proxy { port, armed: armed.clone(), swallowed: swallowed.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server_port)).unwrap();
                let breaks = Arc::new(AtomicBool::new(false));
                let (armed, swallowed) = (armed.clone(), swallowed.clone());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let sees_commit = breaks.clone();
                std::thread::spawn(move || {
                    copy(from, to, |bytes| {
                        let commit = bytes.windows(7).any(|window| window == b"COMMIT\0");
                        if commit && armed.swap(false, Ordering::SeqCst) {
                            sees_commit.store(true, Ordering::SeqCst);
                        }
                        true
                    });
                });
                std::thread::spawn(move || {
                    copy(server, client, |_| {
                        // What comes back after COMMIT says that it has been done.
                        let reply = breaks.load(Ordering::SeqCst);
                        swallowed.fetch_add(reply.into(), Ordering::SeqCst);
                        !reply
                    });
                });
            }
        });
        proxy
    }
}

/// Passes bytes on until an end, or until `passes` says no: then both sides see the end.
fn copy(mut from: TcpStream, mut to: TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
        && passes(&buffer[..count])
        && to.write_all(&buffer[..count]).is_ok()
    {}
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn group(store: &dyn Store) -> Vec<SignedBatch> {
    let batches = check_out(store, RING, 2, 5).batches;
    assert_eq!(batches.len(), 2);
    batches.iter().map(|batch| sign(store, batch)).collect()
}

#[test]
fn a_store_whose_commit_s_reply_is_lost_on_the_way_is_settled_by_repeating_it() {
    let f = Pg::new();
    let proxy = Proxy::before(f.database.server().port());
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", proxy.port, f.database.name());
    let store = PgStore::open(&url, &options("a")).unwrap();
    add_keys(&store, RING, 3);
    insert(&f, &store, RING, 20);
    let signed = group(&store);

    proxy.armed.store(true, Ordering::SeqCst);
    let error = store.store_batches(RING, &signed).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.is_retryable());
    assert_eq!(proxy.swallowed.load(Ordering::SeqCst), 1);
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 10, "it was committed");
    let repeated = store.store_batches(RING, &signed).unwrap();
    assert_eq!(repeated, [StoreOutcome::AlreadyStored; 2]);

    // A checkout whose reply is lost leaves uses that nobody knows of: their leases end them.
    proxy.armed.store(true, Ordering::SeqCst);
    let request =
        crate::db::CheckOut { ring: RING, max_batches: 1, batch_size: super::actions::size(5) };
    let error = store.check_out(&request).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert_eq!(store.open_uses().unwrap().len(), 1);
    f.expire("1 = 1");
    let reclaimed = store.reclaim(RING, crate::db::ReclaimScope::Expired).unwrap();
    assert_eq!(reclaimed.uses.len(), 1);
    sign_all(&f, &store, RING, 5);
    assert_signed(&f, &store, RING, 20);
}

#[test]
fn a_store_whose_session_is_ended_before_its_commit_is_repeated_in_full() {
    let f = Pg::alone();
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(&f, &*store, RING, 20);
    let signed = group(&*store);
    let mut holder = f.session();
    // The store waits for the ring's row, with all its signatures written and nothing committed.
    holder.run("BEGIN; SELECT 1 FROM rings FOR NO KEY UPDATE");
    let error = std::thread::scope(|scope| {
        let storing = scope.spawn(|| store.store_batches(RING, &signed));
        f.wait_until_blocked("chancery/a");
        let ended = f.session().number(
            "SELECT count(pg_terminate_backend(pid)) AS value FROM pg_stat_activity
             WHERE application_name = 'chancery/a' AND wait_event_type = 'Lock'",
        );
        assert_eq!(ended, 1);
        storing.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert_eq!(f.number("SELECT count(*) AS value FROM signatures"), 0);
    holder.run("ROLLBACK");
    assert_lawful(&f, &*store);
    assert_eq!(store.store_batches(RING, &signed).unwrap(), [StoreOutcome::Stored; 2]);
    sign_all(&f, &*store, RING, 5);
    assert_signed(&f, &*store, RING, 20);
}

#[test]
fn a_store_goes_on_by_itself_after_its_idle_sessions_were_ended() {
    let f = Pg::new();
    let store = f.open("a");
    add_keys(&*store, RING, 3);
    insert(&f, &*store, RING, 20);
    let signed = group(&*store);
    let ended = f.number(
        "SELECT count(pg_terminate_backend(pid)) AS value FROM pg_stat_activity
         WHERE application_name = 'chancery/a' AND datname = current_database()",
    );
    assert!(ended > 0);
    assert_eq!(store.store_batches(RING, &signed).unwrap(), [StoreOutcome::Stored; 2]);
    sign_all(&f, &*store, RING, 5);
    assert_signed(&f, &*store, RING, 20);
}
