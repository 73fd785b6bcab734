//! `chancery keys enable`, `disable`, `retire` and `destroy`

use super::{actor, find, token};
use crate::app::{MissingDatabase, UsageError};
use crate::cli::{Context, Outcome, output};
use crate::db::{Key, KeyChange, Store};
use crate::types::{KeyEvent, KeyStatus, Kid, RingId};

/// Which keys, and why.
#[derive(clap::Args)]
pub(in crate::cli) struct Change {
    /// Key ids, or beginnings of them that fit one key only
    #[arg(value_name = "KID", required_unless_present = "all")]
    kids: Vec<String>,
    /// Every key of the ring that it can happen to
    #[arg(long, conflicts_with = "kids")]
    all: bool,
    /// With --all: only keys of this status: active, disabled or retired
    #[arg(long, value_name = "STATUS", requires = "all")]
    status: Option<KeyStatus>,
    /// Why; it is kept with the key and in its history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// As [`Change`], with what only destruction has.
#[derive(clap::Args)]
pub(in crate::cli) struct Destroy {
    #[command(flatten)]
    change: Change,
    /// Also keys that are in use: the use ends, what is being signed is thrown away, and its batch is
    /// signed by another key
    #[arg(long)]
    force: bool,
    /// With --all: yes, destroy them all
    #[arg(long, requires = "all")]
    yes: bool,
}

/// How many keys one transaction changes: the ring is locked meanwhile.
const PAGE: usize = 200;

impl Destroy {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        if self.change.all && !self.yes {
            return Err(UsageError(
                "destroy --all wipes private keys for good: say --yes as well".to_owned(),
            )
            .into());
        }
        self.change.apply(context, KeyEvent::Destroyed, self.force)
    }
}

impl Change {
    pub(super) fn run(self, context: &Context, event: KeyEvent) -> anyhow::Result<Outcome> {
        self.apply(context, event, false)
    }

    fn apply(self, context: &Context, event: KeyEvent, force: bool) -> anyhow::Result<Outcome> {
        let database = context.connect(MissingDatabase::Refuse)?;
        let ring = context.ring(&database)?;
        let keys = database.store.keys(ring.id)?;
        // All names are looked up before anything changes.
        let chosen = self.choose(&keys, event)?;
        let actor = actor();
        let change = KeyChange { event, actor: &actor, reason: self.reason.as_deref(), force };
        if self.all {
            let changed = change_all(database.store.as_ref(), ring.id, &chosen, &change);
            token::wipe_destroyed(context, database.store.as_ref(), &ring, event)?;
            let changed = changed?;
            let keys = output::counted(changed, "key");
            output::print_line(&format!("{keys} of ring {} now {}", ring.name, event.status()))?;
            return Ok(Outcome::Done);
        }
        let changed = database.store.change_keys(ring.id, &chosen, &change);
        token::wipe_destroyed(context, database.store.as_ref(), &ring, event)?;
        let changed = changed?;
        for (kid, changed) in chosen.iter().zip(changed) {
            let verb = if changed { "is now" } else { "was already" };
            output::print_line(&format!("key {kid} {verb} {}", event.status()))?;
        }
        Ok(Outcome::Done)
    }

    fn choose(&self, keys: &[Key], event: KeyEvent) -> Result<Vec<Kid>, UsageError> {
        if !self.all {
            return self.kids.iter().map(|kid| Ok(find(keys, kid)?.kid.clone())).collect();
        }
        let fits = |key: &&Key| {
            event.may_follow(key.status) && self.status.is_none_or(|status| key.status == status)
        };
        Ok(keys.iter().filter(fits).map(|key| key.kid.clone()).collect())
    }
}

/// Changes keys, some hundred at a time; how many.
fn change_all(
    store: &dyn Store,
    ring: RingId,
    kids: &[Kid],
    change: &KeyChange<'_>,
) -> anyhow::Result<u64> {
    let mut changed = 0;
    let bar = output::key_bar("keys", kids.len() as u64);
    for page in kids.chunks(PAGE) {
        let page = store.change_keys(ring, page, change)?;
        changed += page.into_iter().filter(|changed| *changed).count() as u64;
        bar.set_position(changed);
    }
    bar.finish_and_clear();
    Ok(changed)
}
