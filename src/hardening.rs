//! Keeps the memory of a process that has keys to itself: no core dumps, no look into it by other
//! processes of the same user, and no swap.
//!
//! A program of its own, started anew, loses all of this. There is none.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{LockMemory, MemoryConfig};

/// Protects this process as `config` says, before it has anything to protect.
///
/// # Errors
/// If the operating system does not let it, where that is required.
pub fn protect(config: &MemoryConfig) -> Result<Protection, HardeningError> {
    if !config.core_dumps {
        forbid_core_dumps().map_err(HardeningError::CoreDumps)?;
    }
    match config.lock {
        LockMemory::Off => Ok(Protection { locked: false, hint: None }),
        LockMemory::Auto => match lock_memory() {
            Ok(()) => Ok(Protection { locked: true, hint: None }),
            Err(hint) => Ok(Protection { locked: false, hint: Some(hint) }),
        },
        LockMemory::Required => match lock_memory() {
            Ok(()) => Ok(Protection { locked: true, hint: None }),
            Err(hint) => Err(HardeningError::Lock(hint)),
        },
    }
}

/// What of it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// No page of the memory is ever swapped out.
    pub locked: bool,
    /// Why not, where it was to be.
    pub hint: Option<NotLocked>,
}

/// Why a process may not have its keys in memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HardeningError {
    /// Core dumps cannot be switched off.
    #[error("cannot switch core dumps off (memory.core_dumps)")]
    CoreDumps(#[source] io::Error),
    /// Memory is to be locked and cannot be.
    #[error("memory.lock is \"required\", but {0}")]
    Lock(NotLocked),
}

/// Why memory is not locked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLocked {
    /// A limit that allocations would run into later, and fail.
    #[error(
        "memory cannot be locked: RLIMIT_MEMLOCK is {limit_bytes} bytes, and must be unlimited; set \
         LimitMEMLOCK=infinity in the unit, `ulimits: memlock: -1` or the capability IPC_LOCK in Docker, or \
         `ulimit -l unlimited` in the shell"
    )]
    Limit {
        /// The limit.
        limit_bytes: u64,
    },
    /// The operating system refused.
    #[error("memory cannot be locked: {0}")]
    Refused(String),
}

/// Neither a core file nor, but for root, a debugger or a reader of `/proc/PID/mem`.
fn forbid_core_dumps() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Not asked for what holds: a service manager may have set it, and forbidden the call.
    if getrlimit(Resource::Core) != none {
        setrlimit(Resource::Core, none)?;
    }
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Locks what is in memory and whatever will be, each page when it is first touched.
///
/// Under a limit that holds, locking what will be would make allocations fail. Nothing tells whether it
/// holds: who has the capability is free of it, but not one of a user namespace's own. So locking what
/// there is already is tried first, which is more than the limit where that is small.
#[cfg(target_os = "linux")]
fn lock_memory() -> Result<(), NotLocked> {
    use rustix::mm::{MlockAllFlags, mlockall, munlockall};

    let refused = |error: rustix::io::Errno| NotLocked::Refused(error.to_string());
    let present = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT;
    if let Some(limit_bytes) = getrlimit(Resource::Memlock).current {
        let is_beyond = mapped_bytes().is_some_and(|mapped| mapped > limit_bytes);
        if mlockall(present).is_err() {
            return Err(NotLocked::Limit { limit_bytes });
        }
        if !is_beyond {
            munlockall().map_err(refused)?;
            return Err(NotLocked::Limit { limit_bytes });
        }
    }
    mlockall(present | MlockAllFlags::FUTURE).map_err(refused)
}

#[cfg(not(target_os = "linux"))]
fn lock_memory() -> Result<(), NotLocked> {
    Err(NotLocked::Refused("it is on Linux only".to_owned()))
}

/// The size of this process's address space.
#[cfg(target_os = "linux")]
fn mapped_bytes() -> Option<u64> {
    // In pages, the first of the numbers (proc(5)).
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_whitespace().next()?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_protected_makes_no_core_dump_and_is_not_dumpable() {
        let config = MemoryConfig { lock: LockMemory::Off, core_dumps: false };
        let protection = protect(&config).unwrap();
        assert_eq!(protection, Protection { locked: false, hint: None });
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        assert_eq!(getrlimit(Resource::Core), none);
        let behavior = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(behavior, rustix::process::DumpableBehavior::NotDumpable);
        // And once more, when nothing is left to do.
        protect(&config).unwrap();
    }

    #[test]
    fn the_address_space_is_measured() {
        assert!(mapped_bytes().unwrap() > 1 << 20);
    }
}
