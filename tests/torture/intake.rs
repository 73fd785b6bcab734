//! Records that arrive all the time by plain SQL, straight at the server: at once, late and never.
//!
//! What was committed is counted, and an insert whose outcome the server's crash left open is looked
//! up once the server is back. So the number of records that must be there is known.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;

use crate::chance::Chance;
use crate::pace::Pace;
use crate::support::database::values_of;

/// What the clients have brought.
#[derive(Default)]
pub(crate) struct Intake {
    /// Records whose transaction has committed.
    pub(crate) accepted: AtomicU64,
    /// Records whose transaction was rolled back, or lost in a crash of the server.
    pub(crate) refused: AtomicU64,
    /// Transactions whose outcome had to be looked up.
    pub(crate) looked_up: AtomicU64,
    /// Set while more records wait to be signed than makes sense.
    pub(crate) is_held: AtomicBool,
}

/// How a transaction behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One statement, committed by itself.
    AtOnce,
    /// A transaction that commits at its end, after so long.
    After(Duration),
    /// A transaction that takes back what it inserted, after so long.
    Never(Duration),
}

impl Intake {
    /// A client whose transactions are short.
    pub(crate) fn bring_steadily(&self, url: &str, pace: &Pace, mut chance: Chance) {
        self.bring("steady", url, pace, |number| {
            let way = if chance.one_in(2) { Way::AtOnce } else { Way::After(Duration::ZERO) };
            let records = if number % 50 == 0 { 100 } else { chance.between(1, 20) };
            (way, records, chance.milliseconds(10, 100))
        });
    }

    /// A client whose transactions stay open for seconds, and now and then come to nothing. What
    /// others insert meanwhile has to wait for it.
    pub(crate) fn bring_late(&self, url: &str, pace: &Pace, mut chance: Chance) {
        self.bring("late", url, pace, |_| {
            let time = chance.milliseconds(100, 2000);
            let way = if chance.one_in(3) { Way::Never(time) } else { Way::After(time) };
            (way, chance.between(1, 20), chance.milliseconds(200, 3000))
        });
    }

    /// Brings what `next` says: how, how many records, and the pause after them.
    fn bring(
        &self,
        client: &str,
        url: &str,
        pace: &Pace,
        mut next: impl FnMut(u64) -> (Way, u64, Duration),
    ) {
        let mut connection = None;
        for number in 1.. {
            let (way, records, pause) = next(number);
            let name = format!("{client}-{number}");
            let committed = connection
                .get_or_insert_with(|| connect(url))
                .batch_execute(&begin_of(way, &name, records))
                .and_then(|()| match way {
                    Way::AtOnce => Ok(true),
                    Way::After(time) | Way::Never(time) => {
                        pace.wait(time);
                        let commits = matches!(way, Way::After(_));
                        let end = if commits { "COMMIT" } else { "ROLLBACK" };
                        connection.as_mut().unwrap().batch_execute(end).map(|()| commits)
                    }
                });
            let committed = committed.unwrap_or_else(|_| {
                self.looked_up.fetch_add(1, Ordering::Relaxed);
                has_committed(connection.insert(connect(url)), &name, records)
            });
            let count = if committed { &self.accepted } else { &self.refused };
            count.fetch_add(records, Ordering::Relaxed);
            let mut goes_on = pace.wait(pause);
            while goes_on && self.is_held.load(Ordering::Relaxed) {
                goes_on = pace.wait(Duration::from_millis(50));
            }
            if !goes_on {
                return;
            }
        }
    }
}

fn begin_of(way: Way, name: &str, records: u64) -> String {
    let begin = if way == Way::AtOnce { "" } else { "BEGIN; " };
    format!(
        "{begin}INSERT INTO records (ring_id, external_id, payload)
         SELECT 1, '{name}-' || n, convert_to(repeat(md5('{name}-' || n), 1 + n % 16), 'UTF8')
         FROM generate_series(1, {records}) n"
    )
}

/// Whether a transaction whose connection broke has committed. Only the server's crash breaks a
/// client's connection, so nothing of it is under way any more.
fn has_committed(connection: &mut PgConnection, name: &str, records: u64) -> bool {
    let query = format!(
        "SELECT count(*) AS value FROM generate_series(1, {records}) n
         JOIN records r ON r.ring_id = 1 AND r.external_id = '{name}-' || n"
    );
    let found = values_of(connection, &query).unwrap_or_else(|error| panic!("{error}: {query}"));
    assert!(found == ["0"] || found == [records.to_string()], "{found:?} of {records}: {name}");
    found != ["0"]
}

/// Connects to a server that is down now and then, but not for long.
fn connect(url: &str) -> PgConnection {
    let patience = Pace::default();
    for _ in 0..600 {
        if let Ok(connection) = PgConnection::establish(url) {
            return connection;
        }
        patience.wait(Duration::from_millis(100));
    }
    panic!("the server was not to be reached for a minute");
}
