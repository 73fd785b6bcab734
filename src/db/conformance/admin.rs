//! What administrators do: the chain of the log, tokens, pauses, drains, and the way out of quarantine.

use std::sync::Barrier;
use std::time::Duration;

use super::actions::{RING, add_keys, check_out, check_out_one, insert, sign_all};
use super::fixture::{Fixture, options};
use super::judge::assert_signed;
use super::on_both;
use crate::db::{
    AdminAction, AdminEntry, GiveUp, NewToken, NodeOrders, NodeReport, Shortage, Store, StoreError,
    StoreOptions,
};
use crate::types::{KeyEvent, Kid, NodeState, Provider, Role, Tick, TokenId};

on_both! {
    each_change_writes_one_entry_and_the_entries_hash_one_another,
    a_change_that_fails_leaves_no_entry_and_an_entry_that_fails_no_change,
    entries_of_many_at_once_make_one_chain,
    what_stands_in_the_log_stays,
    a_token_is_known_by_its_hash_until_it_is_revoked_or_expires,
    a_paused_ring_checks_nothing_out_and_finishes_what_is_in_flight,
    a_drain_is_for_the_nodes_that_run_then,
    only_a_quarantined_batch_is_sent_back_and_with_all_its_attempts,
    a_ring_is_made_once_with_its_provider_and_its_entry_in_the_log,
    rings_side_by_side_share_neither_keys_nor_records_nor_a_pause,
}

/// The log as a whole, which must be a chain up to its head.
fn chain(store: &dyn Store) -> Vec<AdminEntry> {
    let entries = store.admin_log(0, 10_000).unwrap();
    let mut last = AdminEntry::NO_HASH.to_owned();
    for (n, entry) in entries.iter().enumerate() {
        assert_eq!(entry.seq, n as i64 + 1);
        assert_eq!(entry.previous_hash, last);
        assert_eq!(entry.hash, entry.computed_hash());
        last.clone_from(&entry.hash);
    }
    assert_eq!(store.admin_log_head().unwrap(), (entries.len() as i64, last));
    entries
}

fn actions(store: &dyn Store) -> Vec<String> {
    chain(store).into_iter().map(|entry| entry.action).collect()
}

fn action<'a>(target: &str) -> AdminAction<'a> {
    AdminAction {
        actor: "somebody",
        action: "thing.done",
        target: target.to_owned(),
        detail: serde_json::json!({ "text": "größe \" \\ \n" }),
    }
}

fn token(hash: u8) -> NewToken {
    let roles = vec![Role::Reader, Role::KeyAdmin];
    NewToken { name: "a name".to_owned(), roles, hash: [hash; 32], valid_for: None }
}

fn each_change_writes_one_entry_and_the_entries_hash_one_another<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert_eq!(chain(&*store), []);
    add_keys(&*store, RING, 3);
    let kid = Kid("kid-1".to_owned());
    assert!(store.change_key(&kid, KeyEvent::Disabled, "somebody", Some("why")).unwrap());
    assert!(!store.change_key(&kid, KeyEvent::Disabled, "somebody", None).unwrap());
    store.add_token(&token(1), "somebody").unwrap();
    assert!(store.revoke_token(TokenId(1), "somebody").unwrap());
    assert!(!store.revoke_token(TokenId(1), "somebody").unwrap());
    assert!(store.set_paused(RING, true, "somebody").unwrap());
    assert!(!store.set_paused(RING, true, "somebody").unwrap());
    assert!(store.set_paused(RING, false, "somebody").unwrap());
    store.request_drain("somebody").unwrap();
    store.log_action(&action("this")).unwrap();
    let expected = [
        "keys.added",
        "key.disabled",
        "token.created",
        "token.revoked",
        "ring.paused",
        "ring.resumed",
        "nodes.drained",
        "thing.done",
    ];
    assert_eq!(actions(&*store), expected);
    let entries = chain(&*store);
    assert_eq!((entries[1].actor.as_str(), entries[1].target.as_str()), ("somebody", "key kid-1"));
    assert_eq!(entries[1].detail, r#"{"reason":"why","ring":"default"}"#);
    // Newest first, in pages.
    let last = store.last_admin_log(i64::MAX, 3).unwrap();
    assert_eq!(last.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [8, 7, 6]);
    assert_eq!(store.last_admin_log(6, 1).unwrap()[0].seq, 5);
    assert_eq!(store.admin_log(7, 10).unwrap().len(), 1);
}

fn a_change_that_fails_leaves_no_entry_and_an_entry_that_fails_no_change<F: Fixture>(f: &F) {
    let store = f.open("a");
    add_keys(&*store, RING, 1);
    let kid = Kid("kid-1".to_owned());
    let enabled = store.change_key(&kid, KeyEvent::Enabled, "somebody", None);
    assert!(!enabled.unwrap(), "it is active already");
    assert!(store.revoke_token(TokenId(7), "somebody").is_err());
    assert!(store.retry_batch(crate::types::BatchId(7), "somebody").is_err());
    assert_eq!(actions(&*store), ["keys.added"]);

    // A head that has gone astray takes no entry, and so no change.
    f.run(
        "INSERT INTO admin_log (seq, at, actor, action, target, detail, previous_hash, hash)
           VALUES (2, 'at', 'a', 'b', 'c', 'd', 'e', 'f')",
    );
    let tick = store.progress(RING).unwrap().tick;
    assert!(store.change_key(&kid, KeyEvent::Disabled, "somebody", None).is_err());
    assert!(store.set_paused(RING, true, "somebody").is_err());
    assert!(store.add_token(&token(1), "somebody").is_err());
    assert_eq!(store.progress(RING).unwrap().tick, tick);
    assert_eq!(store.key(&kid).unwrap().status, crate::types::KeyStatus::Active);
    assert!(!store.ring("default").unwrap().paused);
    assert_eq!(store.tokens().unwrap(), []);
}

fn entries_of_many_at_once_make_one_chain<F: Fixture>(f: &F) {
    const EACH: usize = 25;
    let start = Barrier::new(F::THREADS);
    std::thread::scope(|scope| {
        for n in 0..F::THREADS {
            let store = f.open(&format!("node-{n}"));
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for m in 0..EACH {
                    store.log_action(&action(&format!("{n}-{m}"))).unwrap();
                }
            });
        }
    });
    assert_eq!(chain(&*f.open("a")).len(), F::THREADS * EACH);
}

fn what_stands_in_the_log_stays<F: Fixture>(f: &F) {
    let store = f.open("a");
    store.add_token(&token(1), "somebody").unwrap();
    for statement in [
        "UPDATE admin_log SET actor = 'nobody'",
        "DELETE FROM admin_log",
        "UPDATE admin_log_head SET seq = 0",
        "UPDATE admin_log_head SET seq = seq + 2",
        "DELETE FROM admin_log_head",
        "DELETE FROM tokens",
        "UPDATE tokens SET roles = 'operator'",
        "UPDATE tokens SET name = 'another'",
        "UPDATE tokens SET expires_at = '2099-01-01T00:00:00.000Z'",
        "INSERT INTO tokens (name, roles, token_hash) SELECT name, roles, token_hash FROM tokens",
    ] {
        f.refused(statement);
    }
    store.revoke_token(TokenId(1), "somebody").unwrap();
    f.refused("UPDATE tokens SET revoked_at = NULL");
    assert_eq!(actions(&*store), ["token.created", "token.revoked"]);
}

fn a_token_is_known_by_its_hash_until_it_is_revoked_or_expires<F: Fixture>(f: &F) {
    let store = f.open("a");
    let for_ever = store.add_token(&token(1), "somebody").unwrap();
    let hour = NewToken { valid_for: Some(Duration::from_secs(3_600)), ..token(2) };
    let for_an_hour = store.add_token(&hour, "somebody").unwrap();
    let moment = NewToken { valid_for: Some(Duration::ZERO), ..token(3) };
    let for_no_time = store.add_token(&moment, "somebody").unwrap();
    let tokens = store.tokens().unwrap();
    let ids: Vec<TokenId> = tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, [for_ever, for_an_hour, for_no_time]);
    assert_eq!(tokens[0].roles, [Role::Reader, Role::KeyAdmin]);
    assert_eq!((tokens[0].hash, tokens[1].hash), ([1; 32], [2; 32]));
    let left = tokens[1].valid_for.unwrap();
    assert!(left > Duration::from_secs(3_500) && left <= Duration::from_secs(3_600), "{left:?}");
    let valid: Vec<bool> = tokens.iter().map(crate::db::Token::is_valid).collect();
    assert_eq!(valid, [true, true, false]);
    assert_eq!(tokens[0].last_used_at, None);
    store.touch_tokens(&[for_ever]).unwrap();
    store.revoke_token(for_ever, "somebody").unwrap();
    let tokens = store.tokens().unwrap();
    assert!(tokens[0].last_used_at.is_some() && tokens[1].last_used_at.is_none());
    assert!(!tokens[0].is_valid() && tokens[0].revoked_at.is_some());
}

fn a_paused_ring_checks_nothing_out_and_finishes_what_is_in_flight<F: Fixture>(f: &F) {
    let (store, other) = (f.open("a"), f.open("b"));
    add_keys(&*store, RING, 3);
    insert(f, &*store, RING, 10);
    let batch = check_out_one(&*store, RING, 4);
    let tick = store.progress(RING).unwrap().tick;
    store.set_paused(RING, true, "somebody").unwrap();
    for store in [&store, &other] {
        let paused = check_out(&**store, RING, 2, 4);
        assert_eq!((paused.batches.len(), paused.shortage), (0, Some(Shortage::Paused)));
        assert!(store.orders(RING).unwrap().ring_paused);
    }
    assert_eq!(store.progress(RING).unwrap().tick, tick, "a pause is no event of the ring");
    super::actions::sign_and_store(&*store, &batch);
    store.set_paused(RING, false, "somebody").unwrap();
    assert_eq!(store.orders(RING).unwrap(), NodeOrders::default());
    sign_all(f, &*store, RING, 4);
    assert_signed(f, &*store, RING, 10);
}

fn report(name: &str, state: NodeState) -> NodeReport {
    NodeReport {
        name: name.to_owned(),
        host: "here".to_owned(),
        process_id: 1,
        version: "0".to_owned(),
        lease: Duration::from_secs(60),
        state,
        in_flight: 0,
        trouble: None,
    }
}

fn a_drain_is_for_the_nodes_that_run_then<F: Fixture>(f: &F) {
    let (running, stopped, later) = (f.open("running"), f.open("stopped"), f.open("later"));
    running.report(&report("running", NodeState::Running)).unwrap();
    stopped.report(&report("stopped", NodeState::Stopped)).unwrap();
    assert_eq!(running.request_drain("somebody").unwrap(), 1);
    later.report(&report("later", NodeState::Running)).unwrap();
    let drains = |store: &dyn Store| store.orders(RING).unwrap().drain;
    assert!(drains(&*running) && !drains(&*stopped) && !drains(&*later));
    running.report(&report("running", NodeState::Draining)).unwrap();
    assert!(drains(&*running), "the order stands until the node has gone");
}

fn only_a_quarantined_batch_is_sent_back_and_with_all_its_attempts<F: Fixture>(f: &F) {
    let store = f.open_with(&StoreOptions { max_attempts: 2, ..options("a") });
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 5);
    let fail = || {
        let batch = check_out_one(&*store, RING, 5);
        let failure = Some("the reason".to_owned());
        store.give_up(RING, &[GiveUp { key_use: batch.key_use, failure }]).unwrap();
        batch.key_use.batch
    };
    let batch = fail();
    let refused = store.retry_batch(batch, "somebody");
    assert!(matches!(refused, Err(StoreError::NotQuarantined { .. })), "{refused:?}");
    assert_eq!(fail(), batch);
    let view = store.batch(batch).unwrap();
    assert_eq!((view.state.as_str(), view.attempts), ("quarantined", 2));
    assert_eq!(view.failure.as_deref(), Some("the reason"));
    store.retry_batch(batch, "somebody").unwrap();
    let view = store.batch(batch).unwrap();
    assert_eq!((view.state.as_str(), view.attempts), ("retry", 0));
    assert_eq!(fail(), batch, "with all its attempts before it");
    assert_eq!(store.batch(batch).unwrap().state.as_str(), "retry");
    assert_eq!(actions(&*store).last().unwrap(), "batch.retried");
    sign_all(f, &*store, RING, 5);
    assert_signed(f, &*store, RING, 5);
}

fn a_ring_is_made_once_with_its_provider_and_its_entry_in_the_log<F: Fixture>(f: &F) {
    let store = f.open("a");
    assert_eq!(store.ring("default").unwrap().provider, Provider::Software);
    let invoices = store.create_ring("invoices", Provider::Software, "somebody").unwrap();
    let vault = store.create_ring("vault", Provider::Pkcs11, "somebody").unwrap();
    assert_eq!((invoices.tick, invoices.paused), (Tick::ZERO, false));
    assert_eq!(vault.provider, Provider::Pkcs11);
    let again = store.create_ring("invoices", Provider::Pkcs11, "somebody").unwrap_err();
    assert_eq!(again.to_string(), "there is a ring \"invoices\" already");
    assert_eq!(store.ring("invoices").unwrap(), invoices);
    let names: Vec<String> = store.rings().unwrap().into_iter().map(|ring| ring.name).collect();
    assert_eq!(names, ["default", "invoices", "vault"]);
    let entries = chain(&*store);
    assert_eq!(entries.len(), 2, "the refused one leaves no entry");
    assert_eq!(
        (entries[1].action.as_str(), entries[1].target.as_str(), entries[1].detail.as_str()),
        ("ring.created", "ring vault", r#"{"provider":"pkcs11"}"#)
    );
    let said = f.refused("UPDATE rings SET provider = 'pkcs11' WHERE name = 'invoices'");
    assert!(said.contains("provider never changes"), "{said}");
    f.refused("INSERT INTO rings (name, provider) VALUES ('x', 'paper')");
    // An entry that fails leaves no ring.
    f.run(
        "INSERT INTO admin_log (seq, at, actor, action, target, detail, previous_hash, hash)
           VALUES (3, 'at', 'a', 'b', 'c', 'd', 'e', 'f')",
    );
    assert!(store.create_ring("late", Provider::Software, "somebody").is_err());
    assert!(store.ring("late").is_err());
}

fn rings_side_by_side_share_neither_keys_nor_records_nor_a_pause<F: Fixture>(f: &F) {
    let store = f.open("a");
    let other = store.create_ring("other", Provider::Software, "somebody").unwrap().id;
    add_keys(&*store, RING, 2);
    insert(f, &*store, RING, 4);
    insert(f, &*store, other, 6);
    let checked_out = check_out(&*store, other, 1, 2);
    assert_eq!(checked_out.shortage, Some(Shortage::NoActiveKey), "the keys are the first ring's");
    let keys = add_keys(&*store, other, 3);
    store.set_paused(RING, true, "somebody").unwrap();
    assert_eq!(check_out(&*store, RING, 1, 2).shortage, Some(Shortage::Paused));
    let batches = check_out(&*store, other, 3, 2).batches;
    assert_eq!(batches.len(), 3);
    for batch in &batches {
        assert!(keys.contains(&batch.key_use.key), "{batch:?}");
        assert_eq!(batch.range.record_count, 2);
    }
    assert_eq!(store.progress(RING).unwrap().tick, 2, "its two keys and nothing else");
}
