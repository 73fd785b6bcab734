//! The tables that are written row by row or by COPY, as diesel sees them on both databases.
//!
//! Only the columns that Chancery itself writes; the whole schema stands in migrations/.

diesel::table! {
    records (id) {
        id -> BigInt,
        ring_id -> BigInt,
        external_id -> Nullable<Text>,
        payload -> Binary,
    }
}

diesel::table! {
    signatures (record_id) {
        record_id -> BigInt,
        batch_id -> BigInt,
        signature -> Binary,
    }
}
