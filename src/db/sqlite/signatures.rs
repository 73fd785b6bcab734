//! How a batch's signatures are inserted on SQLite.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary};
use diesel::sqlite::{Sqlite, SqliteConnection};

use crate::db::shared::{Bind, Session, TxResult};
use crate::db::{Refusal, SignedBatch, StoreError};
use crate::signing::Signature;
use crate::types::{BatchId, RecordId};

/// How many signatures one statement inserts. With more it gains little (docs/BENCHMARKS.md).
const ROWS_AT_ONCE: usize = 50;

/// A statement that inserts a batch's signatures, `ROWS` of them. A type of its own and not a text with
/// parameters: a connection finds it again without reading the text.
struct InsertSignatures<'a, const ROWS: usize> {
    batch: BatchId,
    rows: &'a [(RecordId, Signature); ROWS],
}

impl<const ROWS: usize> QueryFragment<Sqlite> for InsertSignatures<'_, ROWS> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let mut before = "INSERT INTO signatures (batch_id, record_id, signature) VALUES (";
        for (record, signature) in self.rows {
            out.push_sql(before);
            out.push_bind_param::<BigInt, _>(&self.batch.0)?;
            out.push_sql(", ");
            out.push_bind_param::<BigInt, _>(&record.0)?;
            out.push_sql(", ");
            out.push_bind_param::<Binary, [u8]>(signature.as_bytes())?;
            before = "), (";
        }
        out.push_sql(")");
        Ok(())
    }
}

impl<const ROWS: usize> QueryId for InsertSignatures<'_, ROWS> {
    type QueryId = InsertSignatures<'static, ROWS>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const ROWS: usize> RunQueryDsl<SqliteConnection> for InsertSignatures<'_, ROWS> {}

pub(super) fn insert_signatures(c: &mut SqliteConnection, batch: &SignedBatch) -> TxResult<()> {
    let query = "SELECT record_count AS value FROM batches WHERE id = $1";
    let expected = c.prepared_number(query, &[Bind::Int(batch.key_use.batch.0)])?.unsigned_abs();
    let found = batch.signatures.len() as u64;
    if expected != found {
        return Err(StoreError::Refused(Refusal::Count { expected, found }).into());
    }
    let batch_id = batch.key_use.batch;
    let (groups, rest) = batch.signatures.as_chunks::<ROWS_AT_ONCE>();
    let mut inserted = 0;
    for rows in groups {
        inserted += InsertSignatures { batch: batch_id, rows }.execute(c)? as u64;
    }
    for row in rest {
        let rows = std::array::from_ref(row);
        inserted += InsertSignatures { batch: batch_id, rows }.execute(c)? as u64;
    }
    if inserted != expected {
        return Err(StoreError::Refused(Refusal::Count { expected, found: inserted }).into());
    }
    Ok(())
}
