//! The transactions of others, anywhere on the server, that hold Chancery up.

use std::time::Duration;

use diesel::pg::PgConnection;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName};

use super::ring_bind;
use crate::db::models::{FlagRow, word};
use crate::db::shared::{Session, TxResult};
use crate::db::{Blocker, StoreError};
use crate::types::RingId;

/// Oldest first; a snapshot counts when it is `old_snapshot` old.
///
/// A role that is no member of `pg_read_all_stats` is not told when others' transactions began; of
/// those the oldest writer on the server counts, without its age.
pub(in crate::db) fn blockers(
    c: &mut PgConnection,
    old_snapshot: Duration,
) -> TxResult<Vec<Blocker>> {
    let query = format!(
        "
        SELECT pid, coalesce(datname, '') AS database,
               coalesce(application_name, '') AS application,
               CASE WHEN backend_xid IS NOT NULL THEN 'writer' ELSE 'snapshot' END AS kind,
               extract(epoch FROM clock_timestamp() - xact_start)::BIGINT AS age_s
        FROM pg_stat_activity
        WHERE pid <> pg_backend_pid()
          AND CASE WHEN backend_xid IS NOT NULL
                   THEN xact_start < clock_timestamp() - interval '5 seconds'
                        OR (xact_start IS NULL
                            AND backend_xid = pg_snapshot_xmin(pg_current_snapshot())::xid)
                   ELSE backend_xmin IS NOT NULL AND datname = current_database()
                        AND xact_start < clock_timestamp() - interval '{} seconds' END
        UNION ALL
        SELECT 0, database, gid, 'prepared',
               extract(epoch FROM clock_timestamp() - prepared)::BIGINT
        FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - interval '5 seconds'
        ORDER BY age_s DESC NULLS LAST LIMIT 10",
        old_snapshot.as_secs()
    );
    let rows = c.rows::<BlockerRow>(&query, &[])?;
    Ok(rows.into_iter().map(Blocker::try_from).collect::<Result<Vec<_>, StoreError>>()?)
}

/// Whether there is a record behind the cursor that no checkout may take yet.
pub(super) fn is_held_back(c: &mut PgConnection, ring: RingId) -> QueryResult<bool> {
    let query = "
        SELECT EXISTS (SELECT 1 FROM records r
                       WHERE r.ring_id = g.id AND (r.inserted_xid, r.id) > (g.cursor_xid, g.cursor_id)
                         AND r.inserted_xid >= pg_snapshot_xmin(pg_current_snapshot())::TEXT::BIGINT
                                               + chancery_xid_offset()) AS value
        FROM rings g WHERE g.id = $1";
    Ok(c.row::<FlagRow>(query, &ring_bind(ring))?.value)
}

#[derive(QueryableByName)]
struct BlockerRow {
    #[diesel(sql_type = Integer)]
    pid: i32,
    #[diesel(sql_type = Text)]
    database: String,
    #[diesel(sql_type = Text)]
    application: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    age_s: Option<i64>,
}

impl TryFrom<BlockerRow> for Blocker {
    type Error = StoreError;

    fn try_from(row: BlockerRow) -> Result<Self, StoreError> {
        Ok(Blocker {
            kind: word(&row.kind)?,
            pid: row.pid,
            database: row.database,
            application: row.application,
            age_s: row.age_s,
        })
    }
}
