//! What the two clients do, as proptest generates it.
//!
//! An operation names a key use or a key by a number that is taken modulo how many there are when
//! it runs, so every list of operations makes sense, and so does each that it shrinks to.

use proptest::prelude::*;

use crate::db::{NewRecord, ReclaimScope};
use crate::types::KeyEvent;

/// One of the two nodes on the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    A,
    B,
}

impl Client {
    pub(super) const BOTH: [Client; 2] = [Client::A, Client::B];

    /// As it stands in `key_uses.node`.
    pub(super) fn node(self) -> &'static str {
        match self {
            Client::A => "a",
            Client::B => "b",
        }
    }

    pub(super) fn other(self) -> Client {
        match self {
            Client::A => Client::B,
            Client::B => Client::A,
        }
    }
}

/// A key use, from the side of a client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pick {
    /// An open one of its own.
    Mine(u8),
    /// An open one of the other client.
    Theirs(u8),
    /// One that has ended, of either.
    Ended(u8),
}

/// What is wrong with the first batch of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A signature is missing.
    Missing,
    /// A signature is for a record that has one.
    SignedBefore,
}

/// A record to be inserted; where it has an external id, one of a few, and one of two payloads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Draft {
    Anonymous,
    Named { name: u8, version: bool },
}

impl Draft {
    /// The record, with a payload that no other record of its ring has. `serial` counts those
    /// without an external id.
    pub(super) fn record(self, serial: &mut u32) -> NewRecord {
        match self {
            Draft::Anonymous => {
                *serial += 1;
                NewRecord { external_id: None, payload: format!("record {serial}").into_bytes() }
            }
            Draft::Named { name, version } => NewRecord {
                external_id: Some(format!("name {name}")),
                payload: format!("named {name} {version}").into_bytes(),
            },
        }
    }
}

/// One operation.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Insert(Client, Vec<Draft>),
    /// A transaction past the store inserts so many records and stays open.
    OpenIntake(u8),
    /// It commits, or rolls back.
    CloseIntake {
        commit: bool,
    },
    /// A client past the store puts a record before all others.
    PutFirst,
    AddKeys(Client, u32),
    ChangeKey(Client, u8, KeyEvent),
    CheckOut {
        client: Client,
        max_batches: u32,
        batch_size: u32,
    },
    Load(Client, Pick, usize),
    Store(Client, Vec<Pick>, Option<Flaw>),
    GiveUp {
        client: Client,
        uses: Vec<Pick>,
        failed: bool,
    },
    Renew(Client, Vec<Pick>),
    /// The leases of these end.
    Expire(Client, Vec<Pick>),
    Reclaim(Client, ReclaimScope),
    Sweep(Client),
}

/// Lists of up to `most` operations, the first of which are an insert and keys.
pub(super) fn operations(most: usize) -> impl Strategy<Value = Vec<Operation>> {
    let begin = (insert(), (client(), 1..4_u32).prop_map(|(c, n)| Operation::AddKeys(c, n)));
    (begin, prop::collection::vec(operation(), 1..most)).prop_map(|((insert, keys), mut rest)| {
        rest.splice(0..0, [keys, insert]);
        rest
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let event = prop_oneof![
        4 => Just(KeyEvent::Disabled),
        4 => Just(KeyEvent::Enabled),
        1 => Just(KeyEvent::Retired),
        1 => Just(KeyEvent::Destroyed),
    ];
    let flaw = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Flaw::Missing)),
        2 => Just(Some(Flaw::SignedBefore)),
    ];
    let scope = prop_oneof![4 => Just(ReclaimScope::Expired), 1 => Just(ReclaimScope::All)];
    prop_oneof![
        6 => insert(),
        2 => (1..4_u8).prop_map(Operation::OpenIntake),
        3 => any::<bool>().prop_map(|commit| Operation::CloseIntake { commit }),
        2 => Just(Operation::PutFirst),
        2 => (client(), 1..3_u32).prop_map(|(c, n)| Operation::AddKeys(c, n)),
        2 => (client(), any::<u8>(), event).prop_map(|(c, k, e)| Operation::ChangeKey(c, k, e)),
        14 => (client(), 0..4_u32, 1..5_u32).prop_map(|(client, max_batches, batch_size)| {
            Operation::CheckOut { client, max_batches, batch_size }
        }),
        2 => (client(), pick(), 1..40_usize).prop_map(|(c, p, b)| Operation::Load(c, p, b)),
        11 => (client(), picks(), flaw).prop_map(|(c, p, f)| Operation::Store(c, p, f)),
        6 => (client(), picks(), any::<bool>())
            .prop_map(|(client, uses, failed)| Operation::GiveUp { client, uses, failed }),
        3 => (client(), picks()).prop_map(|(c, p)| Operation::Renew(c, p)),
        4 => (client(), picks()).prop_map(|(c, p)| Operation::Expire(c, p)),
        4 => (client(), scope).prop_map(|(c, s)| Operation::Reclaim(c, s)),
        2 => client().prop_map(Operation::Sweep),
    ]
}

fn client() -> impl Strategy<Value = Client> {
    prop_oneof![Just(Client::A), Just(Client::B)]
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        6 => any::<u8>().prop_map(Pick::Mine),
        2 => any::<u8>().prop_map(Pick::Theirs),
        2 => any::<u8>().prop_map(Pick::Ended),
    ]
}

fn picks() -> impl Strategy<Value = Vec<Pick>> {
    prop::collection::vec(pick(), 1..4)
}

fn insert() -> impl Strategy<Value = Operation> {
    let draft = prop_oneof![
        3 => Just(Draft::Anonymous),
        1 => (0..5_u8, any::<bool>()).prop_map(|(name, version)| Draft::Named { name, version }),
    ];
    (client(), prop::collection::vec(draft, 1..8)).prop_map(|(c, d)| Operation::Insert(c, d))
}
