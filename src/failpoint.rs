//! Named points in the protocol and the actors where a test can stop, kill or fail this process.
//!
//! Only a build with the feature `failpoints` has them; in any other each is an empty function. The
//! environment says what happens, once for each entry:
//!
//! ```text
//! CHANCERY_FAILPOINTS=store.copied=stop,check_out.committed=fail@3
//! ```
//!
//! stops the process by SIGSTOP when it first comes past `store.copied`, and lets its third checkout
//! fail after the commit as if the connection had been lost. The actions are `stop`, `kill`
//! (SIGKILL), `panic`, `fail` and `delay` (half a second, of the thread that passes), and `@N` is
//! the passage at which they act. A point that exists in the code of one database only is never
//! passed on the other.

/// The points: each step of the protocol with its places, in the order in which they are passed.
///
/// Of a transaction, `begun` comes after its BEGIN, and `committed` after its COMMIT, before the
/// reply is used; the places in between stand after the statement that does what they say. Where
/// one statement does several things, only the last of their places is passed.
pub const POINTS: &[(&str, &[&str])] = &[
    (
        "check_out",
        &[
            "begun",
            "ring_locked",
            "keys_chosen",
            "retries_opened",
            "ranges_chosen",
            "batches_inserted",
            "uses_opened",
            "cursor_moved",
            "committed",
        ],
    ),
    ("load", &["begun", "read"]),
    (
        "store",
        &[
            "begun",
            "uses_locked",
            "copying",
            "copied",
            "uses_closed",
            "keys_stamped",
            "batches_stored",
            "committed",
        ],
    ),
    (
        "give_up",
        &["begun", "uses_locked", "uses_closed", "keys_stamped", "batches_failed", "committed"],
    ),
    (
        "reclaim",
        &[
            "begun",
            "ring_locked",
            "uses_found",
            "uses_closed",
            "keys_stamped",
            "batches_failed",
            "committed",
        ],
    ),
    ("renew", &["begun", "renewed", "committed"]),
    ("sweep", &["begun", "ring_locked", "moved", "committed"]),
    ("report", &["begun", "committed"]),
    ("keys", &["begun", "committed"]),
    ("rewrap", &["begun", "resealed", "committed"]),
    ("intake", &["begun", "committed"]),
    ("admin", &["begun", "committed"]),
    ("key_manager", &["checking_out", "checked_out", "returning"]),
    ("supervisor", &["starting", "settled"]),
    ("batch", &["started", "loaded", "signed", "stored", "ended"]),
    ("signer", &["signing", "signed"]),
    ("writer", &["grouped", "storing", "answered"]),
];

/// What a point says when it was told to fail.
#[derive(Debug, thiserror::Error)]
#[error("failpoint {step}.{place}")]
pub struct Injected {
    step: &'static str,
    place: &'static str,
}

/// Passes a point.
///
/// # Errors
/// [`Injected`], where it was told to fail.
#[inline]
pub fn pass(step: &'static str, place: &'static str) -> Result<(), Injected> {
    #[cfg(feature = "failpoints")]
    if registry::act(step, place) {
        return Err(Injected { step, place });
    }
    #[cfg(not(feature = "failpoints"))]
    let _ = (step, place);
    Ok(())
}

/// Passes a point where nothing can fail; `fail` does nothing there.
#[inline]
pub fn reach(step: &'static str, place: &'static str) {
    let _ = pass(step, place);
}

/// Checks what the environment asks for, and says so in the log.
///
/// # Errors
/// What is wrong with it.
pub fn check() -> Result<(), String> {
    #[cfg(feature = "failpoints")]
    if !registry::entries()?.is_empty() {
        tracing::warn!("failpoints are set: this process will stop, fail or die on purpose");
    }
    Ok(())
}

#[cfg(feature = "failpoints")]
mod registry {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::POINTS;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Action {
        Stop,
        Kill,
        Panic,
        Fail,
        Delay,
    }

    #[derive(Debug)]
    pub(super) struct Entry {
        step: &'static str,
        place: &'static str,
        action: Action,
        at: u64,
        passed: AtomicU64,
    }

    /// What the environment asks for.
    pub(super) fn entries() -> Result<&'static [Entry], String> {
        static ENTRIES: OnceLock<Result<Vec<Entry>, String>> = OnceLock::new();
        let parse_environment = || match std::env::var("CHANCERY_FAILPOINTS") {
            Ok(text) => parse(&text),
            Err(_) => Ok(Vec::new()),
        };
        ENTRIES.get_or_init(parse_environment).as_deref().map_err(Clone::clone)
    }

    pub(super) fn parse(text: &str) -> Result<Vec<Entry>, String> {
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(parse_entry).collect()
    }

    fn parse_entry(text: &str) -> Result<Entry, String> {
        let wrong = |why: &str| format!("CHANCERY_FAILPOINTS: {text:?}: {why}");
        let (point, action) = text.split_once('=').ok_or_else(|| wrong("expected POINT=ACTION"))?;
        let (action, at) = action.split_once('@').unwrap_or((action, "1"));
        let (step, place) =
            find(point).ok_or_else(|| wrong("there is no such point; src/failpoint.rs has all"))?;
        let action = match action {
            "stop" => Action::Stop,
            "kill" => Action::Kill,
            "panic" => Action::Panic,
            "fail" => Action::Fail,
            "delay" => Action::Delay,
            _ => return Err(wrong("the action is stop, kill, panic, fail or delay")),
        };
        let at = at.parse().ok().filter(|at| *at > 0).ok_or_else(|| wrong("@N counts from 1"))?;
        Ok(Entry { step, place, action, at, passed: AtomicU64::new(0) })
    }

    fn find(point: &str) -> Option<(&'static str, &'static str)> {
        let (step, place) = point.split_once('.')?;
        let (step, places) = POINTS.iter().find(|(name, _)| *name == step)?;
        let place = places.iter().find(|name| **name == place)?;
        Some((step, place))
    }

    /// Acts where it is the turn of an entry; whether the point is to fail.
    #[expect(clippy::panic, reason = "that is the action")]
    pub(super) fn act(step: &str, place: &str) -> bool {
        debug_assert!(
            POINTS.iter().any(|(name, places)| *name == step && places.contains(&place)),
            "{step}.{place} is not in the list of failpoints"
        );
        let mut fails = false;
        for entry in entries().unwrap_or_default() {
            if (entry.step, entry.place) != (step, place)
                || entry.passed.fetch_add(1, Ordering::SeqCst) + 1 != entry.at
            {
                continue;
            }
            tracing::warn!("failpoint {step}.{place}: {:?}", entry.action);
            match entry.action {
                Action::Stop => stop(),
                Action::Kill => drop(kill_process(getpid(), Signal::KILL)),
                Action::Panic => panic!("failpoint {step}.{place}"),
                Action::Fail => fails = true,
                Action::Delay => delay(),
            }
        }
        fails
    }

    /// Returns after the process is continued.
    #[expect(clippy::disallowed_methods, reason = "no call waits for the stop")]
    fn stop() {
        let _ = kill_process(getpid(), Signal::STOP);
        // The kernel may give the signal to another thread, and this one would go on beyond the
        // point until the stop reaches it.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }

    #[expect(clippy::disallowed_methods, reason = "that is the action")]
    fn delay() {
        std::thread::sleep(std::time::Duration::from_millis(500));
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn entries_are_read_with_their_passage() {
            let entries = parse("store.copied=stop, check_out.committed=fail@3").unwrap();
            let read: Vec<_> = entries.iter().map(|e| (e.step, e.place, e.action, e.at)).collect();
            assert_eq!(
                read,
                [("store", "copied", Action::Stop, 1), ("check_out", "committed", Action::Fail, 3)]
            );
            assert!(parse("").unwrap().is_empty());
        }

        #[test]
        fn what_cannot_be_read_is_refused() {
            for (text, why) in [
                ("store.copied", "expected POINT=ACTION"),
                ("store.baked=stop", "no such point"),
                ("copied=stop", "no such point"),
                ("store.copied=explode", "the action is"),
                ("store.copied=stop@0", "counts from 1"),
                ("store.copied=stop@x", "counts from 1"),
            ] {
                let error = parse(text).unwrap_err();
                assert!(error.contains(why) && error.contains(text), "{error}");
            }
        }
    }
}
