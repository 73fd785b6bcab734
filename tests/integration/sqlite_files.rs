//! SQLite files that are read-only, damaged, of another kind, or gone.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::SmallDisk;

use crate::support::Site;
use crate::support::judge::judge;
use crate::support::program::{Ended, Signal};

#[test]
fn a_read_only_file_system_is_named_at_once_and_writable_again_it_is_signed() {
    let disk = SmallDisk::new(32 * 1024 * 1024).unwrap();
    let site = Site::sqlite_at(disk.path().join("chancery.db")).with(2, 500);
    disk.set_read_only(true).unwrap();
    for command in [&["run"][..], &["status"], &["keys", "generate", "--count", "1"]] {
        let ended = refused(&site, command);
        ended.expect_stderr("the database's file takes no writes: ").expect_stderr("read-only");
    }
    disk.set_read_only(false).unwrap();
    site.run(&["run"]).expect_code(0);
    judge(&site, 500);
}

#[test]
fn a_run_that_meets_an_overwritten_page_ends_with_that_and_blames_no_batch() {
    let (site, file) = with_one_file(4_000);
    // Of payloads: a checkout does not read it, so that only the load notices.
    let mut pages = fs::read(&file).unwrap();
    let middle = pages.len() / 4096 / 2;
    let table_leaf = |page: &[u8]| page[0] == 0x0d;
    let page = pages.chunks_mut(4096).skip(middle).find(|page| table_leaf(page)).unwrap();
    page.fill(0xA5);
    fs::write(&file, &pages).unwrap();
    let ended = refused(&site, &["run", "--batch-size", "50"]);
    ended.expect_stderr("is damaged: ").expect_stderr("restore it from a backup");
    let blamed = "SELECT count(*) AS value FROM batches WHERE attempts > 0";
    assert_eq!(site.database.number(blamed), 0);
}

#[test]
fn a_file_that_is_cut_short_is_called_so() {
    let (site, file) = with_one_file(4_000);
    let length = fs::metadata(&file).unwrap().len();
    File::options().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    let ended = refused(&site, &["run"]).expect_stderr("is damaged: ");
    ended.expect_stderr(&file.display().to_string());
}

#[test]
fn a_file_of_another_kind_or_with_another_beginning_is_no_database() {
    let site = Site::sqlite();
    let file = site.path("chancery.db");
    fs::write(&file, "Dear diary, ".repeat(1_000)).unwrap();
    let text = fs::read(&file).unwrap();
    for command in [&["run"][..], &["status"], &["migrate"], &["seed", "--records", "1"]] {
        let ended = refused(&site, command).expect_stderr("is not an SQLite database");
        ended.expect_stderr(&file.display().to_string());
    }
    assert_eq!(fs::read(&file).unwrap(), text, "it was changed");

    let (site, file) = with_one_file(100);
    let mut writing = File::options().write(true).open(&file).unwrap();
    writing.write_all(&[0xA5; 100]).unwrap();
    refused(&site, &["run"]).expect_stderr("or its beginning is overwritten");
}

#[test]
fn a_folder_or_a_file_in_no_folder_is_no_database() {
    let site = Site::sqlite();
    let folder = site.path("folder.db");
    fs::create_dir(&folder).unwrap();
    let site = site.set("CHANCERY_DATABASE__URL", &format!("sqlite://{}", folder.display()));
    refused(&site, &["status"]).expect_stderr("is a folder: name a file in it");
    let nowhere = site.path("nowhere").join("chancery.db");
    let site = site.set("CHANCERY_DATABASE__URL", &format!("sqlite://{}", nowhere.display()));
    refused(&site, &["migrate"]).expect_stderr("there is no folder ");
}

#[test]
fn a_run_whose_file_is_deleted_ends_rather_than_signs_what_nobody_will_see() {
    const RECORDS: u32 = 20_000;
    let site = Site::sqlite().with(20, RECORDS);
    let run = site.start_halted(&["run", "--batch-size", "20"], "writer.answered@10");
    let (file, aside) = (site.path("chancery.db"), site.path("aside.db"));
    fs::rename(&file, &aside).unwrap();
    run.signal(Signal::CONT);
    let ended = run.wait().expect_code(1);
    ended.expect_stderr("it was deleted, moved or replaced");
    // Back in its place with its log, nothing is lost.
    fs::rename(&aside, &file).unwrap();
    site.run(&["run"]).expect_code(0);
    judge(&site, RECORDS.into());
}

#[test]
fn a_run_whose_file_is_damaged_under_it_ends_with_that() {
    const RECORDS: u32 = 20_000;
    let (site, file) = with_one_file(RECORDS);
    let run = site.start_halted(&["run", "--batch-size", "20"], "writer.answered@10");
    overwrite(&file, 0.3, 1.0);
    run.signal(Signal::CONT);
    let ended = run.wait().expect_code(1);
    let ended = ended.expect_stderr("is damaged: ").expect_stderr("cannot go on");
    assert!(!ended.stderr.contains("the database refused a batch"), "{ended}");
}

/// Runs a command that must fail soon, not after `database.wait_s`.
#[track_caller]
fn refused(site: &Site, command: &[&str]) -> Ended {
    let begin = Instant::now();
    let ended = site.run(command).expect_code(1);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "it took {took:?}: {ended}");
    ended
}

/// A prepared database whose file has everything, and no log beside it.
fn with_one_file(records: u32) -> (Site, std::path::PathBuf) {
    let site = Site::sqlite().with(20, records);
    site.database.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    let file = site.path("chancery.db");
    (site, file)
}

/// Overwrites a part of a file, given in shares of its length.
fn overwrite(file: &Path, from: f64, to: f64) {
    let mut writing = File::options().write(true).open(file).unwrap();
    let pages = writing.metadata().unwrap().len() / 4096;
    let at = |share: f64| (pages as f64 * share) as u64;
    writing.seek(SeekFrom::Start(at(from) * 4096)).unwrap();
    for _ in at(from)..at(to) {
        writing.write_all(&[0xA5; 4096]).unwrap();
    }
}
