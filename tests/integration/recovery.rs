//! Backups and other clusters: a database that went back in time, or moved house.

use testkit::StopMode;

use crate::support::database::Database;
use crate::support::judge::judge;
use crate::support::program::Signal;
use crate::support::{Site, wait_until};

const RUN: [&str; 3] = ["run", "--batch-size", "20"];

#[test]
fn a_node_stops_when_an_older_backup_is_put_in_the_place_of_its_database() {
    let site = Site::postgres_alone().set("CHANCERY_HTTP__BIND", "127.0.0.1:0");
    let site = site.set("CHANCERY_LEASE__DURATION_S", "2").with(10, 400);
    site.run(&RUN).expect_code(0);
    let server = site.database.server();
    server.stop(StopMode::Fast).unwrap();
    let backup = server.copy_files().unwrap();
    server.start_again().unwrap();

    let serve = site.start(&["serve", "--batch-size", "20"]);
    site.seed(200);
    wait_until("all is signed", || site.signatures() == 600);
    server.stop(StopMode::Fast).unwrap();
    server.put_files_back(&backup).unwrap();
    server.start_again().unwrap();
    let ended = serve.wait().expect_code(1);
    ended.expect_stderr("the database has gone back to an older state");
    assert_eq!(site.signatures(), 400, "nothing was written into the older state");

    // Whoever starts a node again accepts the loss.
    site.seed(100);
    site.run(&RUN).expect_code(0).expect_stdout("signed 100 records");
    judge(&site, 500);
}

#[test]
fn nodes_follow_a_synchronous_fail_over_by_themselves_and_lose_nothing() {
    let primary = Site::postgres_alone().set("CHANCERY_LEASE__DURATION_S", "2");
    let primary = primary.set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000").with(12, 4_000);
    let (server, name) = (primary.database.server(), primary.database.name());
    let standby = server.start_standby().unwrap();
    server.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'").unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    wait_until("the standby is synchronous", || {
        let standbys = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        server.sql("postgres", standbys).unwrap() == "1"
    });
    let both = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{name}?target_session_attrs=read-write",
        server.port(),
        standby.port()
    );
    let nodes = ["anvil", "bellows"].map(|node| {
        let mut command = primary.command(&RUN);
        command.env("CHANCERY_DATABASE__URL", &both).env("CHANCERY_NODE__NAME", node);
        primary.start_command(command)
    });
    primary.wait_for_the_middle(4_000);
    server.stop(StopMode::Immediate).unwrap();
    standby.sql("postgres", "SELECT pg_promote()").unwrap();
    for node in nodes {
        let ended = node.wait().expect_code(0);
        assert!(!ended.stderr.contains("older state"), "{ended}");
    }
    let kek = primary.path("kek").display().to_string();
    let site = Site::on_database(Database::Postgres(standby.database(name)));
    judge(&site.set("CHANCERY_KEYS__KEK_FILE", &kek), 4_000);
}

#[test]
fn a_dump_restored_into_another_cluster_is_adopted_and_signed_to_the_end() {
    let old = Site::postgres_alone().set("CHANCERY_LEASE__DURATION_S", "1");
    let old = old.set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000").with(10, 400);
    // The old cluster's transaction ids run far ahead of the new one's.
    old.database.execute(
        "DO $$ BEGIN FOR i IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    );
    old.run(&RUN).expect_code(0);
    old.seed(300);
    // The dump has batches in hand of a node that died, batches to be retried and plain records.
    let mut command = old.command(&RUN);
    command.env("CHANCERY_FAILPOINTS", "signer.signing=panic,writer.storing=kill@3");
    let dead = old.start_command(command).wait();
    assert_eq!(dead.signal, Some(Signal::KILL.as_raw()), "{dead}");
    let open = old.open_uses();
    assert!(open > 0, "nothing was in hand");
    let signed = old.signatures();
    assert!((401..700).contains(&signed), "{signed}");
    let Database::Postgres(database) = &old.database else { panic!("not on PostgreSQL") };
    let dump = database.dump().unwrap();

    let site = Site::postgres_alone().set("CHANCERY_LEASE__DURATION_S", "1");
    let site = site.set("CHANCERY_LEASE__MAX_ATTEMPTS", "1000");
    let kek = old.path("kek").display().to_string();
    let site = site.set("CHANCERY_KEYS__KEK_FILE", &kek);
    let Database::Postgres(database) = &site.database else { panic!("not on PostgreSQL") };
    database.restore(&dump).unwrap();
    for command in [vec!["run"], vec!["serve"], vec!["status"]] {
        let refused = site.run(&command).expect_code(1);
        refused
            .expect_stderr("restored from another PostgreSQL cluster")
            .expect_stderr("chancery migrate");
    }
    assert_eq!(site.signatures(), signed);

    site.run(&["migrate"]).expect_code(0).expect_stderr("shifted the transaction ids");
    site.seed(100);
    let lost = "SELECT count(*) AS value FROM records r, rings g
                WHERE (r.inserted_xid, r.id) <= (g.cursor_xid, g.cursor_id)
                  AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.record_id = r.id)
                  AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.state <> 'stored'
                                  AND (r.inserted_xid, r.id) >= (b.low_xid, b.low_id)
                                  AND (r.inserted_xid, r.id) <= (b.high_xid, b.high_id))";
    assert_eq!(site.database.number(lost), 0, "new records lie behind the cursor");
    let ended = site.run(&RUN).expect_code(0);
    ended.expect_stdout(&format!("signed {} records", 800 - signed));
    judge(&site, 800);
}
