//! What a service is made of, as the wiring hands it over, and how its node is doing.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use tokio::sync::watch;
use tokio::time::timeout;

use super::PATIENCE;
use crate::actors::db_writer::{DbWriter, DbWriterSnapshot};
use crate::actors::key_manager::{KeyManager, KeyManagerSnapshot};
use crate::actors::messages::Observe;
use crate::actors::supervisor::{State, Supervisor, SupervisorSnapshot};
use crate::actors::troubles::Troubles;
use crate::config::HttpConfig;
use crate::db::{Ring, Store};
use crate::keyring::Keks;
use crate::keyring::pkcs11::Token;
use crate::metrics::Timings;
use crate::types::{BatchSize, NodeId};

/// What a service is made of.
pub struct Service {
    /// Where it listens.
    pub listener: TcpListener,
    /// How.
    pub config: HttpConfig,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The rings that it serves, at least one, each with the actors that sign it; `None` on a node that
    /// signs nothing.
    pub rings: Vec<(Ring, Option<Signing>)>,
    /// This start of this process.
    pub node: NodeId,
    /// The node's name for people.
    pub node_name: String,
    /// How long a drain may take.
    pub lease: Duration,
}

/// The signing half of a node, as one ring sees it.
#[derive(Clone)]
pub struct Signing {
    /// The ring's Supervisor.
    pub supervisor: Addr<Supervisor>,
    /// Those of all rings of the node, for orders to the node as a whole.
    pub supervisors: Arc<[Addr<Supervisor>]>,
    /// Its KeyManager.
    pub key_manager: Addr<KeyManager>,
    /// Its DbWriter.
    pub writer: Addr<DbWriter>,
    /// What keeps it from its work.
    pub troubles: Troubles,
    /// How long its work takes.
    pub timings: Timings,
    /// How many batches it has stored.
    pub stored: watch::Receiver<u64>,
    /// How many signer threads it has.
    pub signers: usize,
    /// Records in a full batch of the ring.
    pub batch_size: BatchSize,
    /// Where new private keys go.
    pub custody: Custody,
}

/// What keeps the private keys of a ring.
#[derive(Clone, Debug)]
pub enum Custody {
    /// The database, sealed under the first of these KEKs.
    Keks(Arc<Keks>),
    /// A token.
    Token(Token),
}

/// How a node is doing.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeState {
    /// `running`, `paused`, `draining`, `stopped`, or `no signing`.
    pub(super) state: &'static str,
    pub(super) supervisor: SupervisorSnapshot,
    pub(super) key_manager: KeyManagerSnapshot,
    pub(super) writer: DbWriterSnapshot,
}

impl NodeState {
    /// Asks the actors, each for a moment only.
    pub(super) async fn of(signing: Option<&Signing>) -> NodeState {
        let mut node = NodeState {
            state: "no signing",
            supervisor: SupervisorSnapshot::default(),
            key_manager: KeyManagerSnapshot::default(),
            writer: DbWriterSnapshot::default(),
        };
        let Some(signing) = signing else { return node };
        let supervisor = timeout(PATIENCE, signing.supervisor.send(Observe::new()));
        let key_manager = timeout(PATIENCE, signing.key_manager.send(Observe::new()));
        let writer = timeout(PATIENCE, signing.writer.send(Observe::new()));
        let (supervisor, key_manager, writer) = futures::join!(supervisor, key_manager, writer);
        node.state = "stopped";
        if let Ok(Ok(seen)) = supervisor {
            node.supervisor = seen;
            node.state = match seen.state {
                State::Running => "running",
                State::Paused => "paused",
                State::Draining => "draining",
            };
        }
        if let Ok(Ok(seen)) = key_manager {
            node.key_manager = seen;
        }
        if let Ok(Ok(seen)) = writer {
            node.writer = seen;
        }
        node
    }
}
