//! What PostgreSQL and libpq say, told apart.
//!
//! diesel keeps the SQLSTATE to itself and maps only a few to a kind, so the rest is known by its
//! phrases. libpq's are English, because it is built without translations. The server's are asked
//! for in English by each session; before there is one, a server that speaks another language is
//! tried again, which costs `database.wait_s` and no more.

use diesel::result::{ConnectionError, DatabaseErrorKind, Error as DieselError};

use crate::db::{Refusal, StoreError};

/// What time alone does not heal: a name, a right or a setting is wrong.
const HOPELESS: [&str; 12] = [
    "authentication failed",
    "no password supplied",
    "pg_hba.conf",
    "does not exist",
    "permission denied",
    "is not permitted to log in",
    "not currently accepting connections",
    "server does not support SSL",
    "certificate verify failed",
    "certificate file",
    "invalid connection option",
    "invalid URI",
];

/// The database has no room, or its disk fails. The last four are the operating system's.
const STORAGE: [&str; 8] = [
    "could not extend file",
    "could not write",
    "could not fsync",
    "could not create file",
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "Read-only file system",
];

/// The connection, or the server behind it, is gone or is not there yet.
const UNAVAILABLE: [&str; 13] = [
    "terminating connection",
    "the database system is",
    "server closed the connection",
    "connection to server",
    "no connection to the server",
    "could not send data to server",
    "could not receive data from server",
    "SSL SYSCALL error",
    "SSL connection has been closed",
    "idle-in-transaction timeout",
    "too many clients",
    "too many connections",
    "remaining connection slots",
];

/// The statement gave way to somebody or something else.
const BUSY: [&str; 4] =
    ["deadlock detected", "canceling statement due to", "out of memory", "out of shared memory"];

/// Why no connection came about.
pub(super) fn connect_error(error: ConnectionError) -> StoreError {
    match error {
        ConnectionError::BadConnection(message) => {
            let message = one_line(&message);
            if says(&message, &HOPELESS) {
                StoreError::Connect(message)
            } else {
                StoreError::Unavailable(message)
            }
        }
        ConnectionError::CouldntSetupConfiguration(error) => classify(error),
        other => StoreError::Connect(one_line(&other.to_string())),
    }
}

/// Why a statement failed.
pub(in crate::db) fn classify(error: DieselError) -> StoreError {
    let DieselError::DatabaseError(kind, info) = &error else {
        return match error {
            // Only a COPY writes by itself: the connection broke in the middle of it.
            DieselError::SerializationError(error) => {
                StoreError::Unavailable(one_line(&format!("a COPY broke off: {error}")))
            }
            DieselError::BrokenTransactionManager => {
                StoreError::Unavailable("the connection broke inside a transaction".to_owned())
            }
            DieselError::RollbackErrorOnCommit { commit_error, .. } => classify(*commit_error),
            other => StoreError::Database(one_line(&other.to_string())),
        };
    };
    let message = one_line(info.message());
    match kind {
        DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
            StoreError::Unavailable(message)
        }
        DatabaseErrorKind::SerializationFailure => StoreError::Busy(message),
        DatabaseErrorKind::ReadOnlyTransaction => StoreError::Standby(message),
        DatabaseErrorKind::UniqueViolation if info.table_name() == Some("signatures") => {
            let detail = info.details().map_or(message, one_line);
            StoreError::Refused(Refusal::DoubleSign(detail))
        }
        DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::CheckViolation => {
            StoreError::Refused(Refusal::Constraint(message))
        }
        _ if says(&message, &BUSY) => StoreError::Busy(message),
        _ if says(&message, &STORAGE) => StoreError::Storage(message),
        _ if says(&message, &UNAVAILABLE) => StoreError::Unavailable(message),
        _ => StoreError::Database(message),
    }
}

fn says(message: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| message.contains(phrase))
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str) -> StoreError {
        let info = Box::new(message.to_owned());
        classify(DieselError::DatabaseError(DatabaseErrorKind::Unknown, info))
    }

    #[test]
    fn what_a_failing_disk_says_is_a_storage_error_and_is_tried_again() {
        for message in [
            "could not extend file \"base/16384/16452\": No space left on device",
            "could not extend file \"base/5/2608\": wrote only 4096 of 8192 bytes at block 9",
            "could not write to file \"base/pgsql_tmp/pgsql_tmp77.0\": No space left on device",
            "could not access status of transaction 0: No space left on device",
            "could not fsync file \"base/5/1259\": Input/output error",
            "could not open file \"pg_xact/0000\": Read-only file system",
        ] {
            let error = said(message);
            assert!(matches!(error, StoreError::Storage(_)), "{error:?}");
            assert!(error.is_retryable());
        }
    }

    #[test]
    fn a_connection_that_ends_in_the_middle_of_a_copy_blames_no_batch() {
        for message in [
            "server closed the connection unexpectedly This probably means the server terminated",
            "no connection to the server",
            "could not send data to server: Broken pipe",
            "could not receive data from server: Connection reset by peer",
            "SSL SYSCALL error: EOF detected",
        ] {
            let error = said(message);
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        }
    }

    #[test]
    fn an_error_of_the_data_itself_is_neither_storage_nor_tried_again() {
        for message in [
            "invalid page in block 3 of relation base/16384/16452",
            "could not open file \"base/16384/16452\": No such file or directory",
            "record 7 has a signature",
        ] {
            let error = said(message);
            assert!(matches!(error, StoreError::Database(_)), "{error:?}");
        }
    }

    #[test]
    fn a_wrong_password_is_told_though_another_address_of_the_host_refuses() {
        let both = "connection to server at \"::1\", port 5432 failed: Connection refused\n\
                    connection to server at \"127.0.0.1\", port 5432 failed: FATAL:  \
                    password authentication failed for user \"a\"";
        let error = connect_error(ConnectionError::BadConnection(both.to_owned()));
        assert!(matches!(error, StoreError::Connect(_)), "{error:?}");
    }
}
