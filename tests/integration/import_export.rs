//! Records on their way in and out: the exact bytes, what is refused and how, files of any size.

use std::fs;
use std::io::{BufWriter, Write};
use std::sync::mpsc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::support::database::unhex;
use crate::support::judge::judge;
use crate::support::program::Ended;
use crate::support::{LIMIT, Site};

on_both_databases! {
    lines_keep_every_byte_but_their_newline,
    json_lines_give_ids_and_payloads,
    a_csv_file_gives_ids_and_payloads,
    bad_lines_of_a_file_are_all_named_and_nothing_is_imported,
    bad_lines_of_standard_input_are_named_and_left_out,
    importing_again_adds_nothing_and_refuses_another_payload,
    ids_are_taken_up_to_their_limit,
    what_is_exported_is_what_was_imported_with_its_signature,
    a_stream_of_any_size_is_imported_in_constant_memory,
}

impl Site {
    fn import(&self, file: &str, contents: &[u8], flags: &[&str]) -> Ended {
        fs::write(self.path(file), contents).unwrap();
        self.run(&[&["import", file], flags].concat())
    }

    /// The records in their order: external id and payload, read past the program.
    fn records(&self) -> Vec<(String, Vec<u8>)> {
        let payload = self.database.hex("payload");
        let column = |what: &str| {
            self.database.rows(&format!("SELECT {what} AS value FROM records ORDER BY id"))
        };
        column("external_id")
            .into_iter()
            .zip(column(&payload).iter().map(|hex| unhex(hex)))
            .collect()
    }

    fn payloads(&self) -> Vec<Vec<u8>> {
        self.records().into_iter().map(|(_, payload)| payload).collect()
    }
}

fn owned(records: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    records.iter().map(|(id, payload)| ((*id).to_owned(), payload.as_bytes().to_vec())).collect()
}

fn lines_keep_every_byte_but_their_newline(site: Site) {
    let site = site.with(3, 0);
    let lines: [&[u8]; 8] = [
        b"\xef\xbb\xbfa byte order mark is a part of the line",
        b"carriage return\r",
        b"",
        b"\xff\xfe neither UTF-8 \xc3\x28 nor text \x00\x01",
        "\u{1f58b} \u{e9}\u{df}".as_bytes(),
        b"  blanks  \t",
        b"\"quotes\", {\"json\": 1}",
        b"the last line has no newline",
    ];
    let imported = site.import("lines.txt", &lines.join(&b'\n'), &["--format", "lines"]);
    imported.expect_code(0).expect_stdout("imported 8 records into ring default of ");
    assert_eq!(site.payloads(), lines);

    site.run(&["run", "--batch-size", "3"]).expect_code(0);
    judge(&site, 8);
}

fn json_lines_give_ids_and_payloads(site: Site) {
    let site = site.with(1, 0);
    let file = "\u{feff}{\"id\": \"a\", \"body\": \"\\u00e9\\n\\u0000\", \"more\": [1]}\r\n\
                \n\
                {\"body\": \"\", \"id\": 7}\n";
    let fields = ["--format", "jsonl", "--id-field", "id"];
    site.import("a.jsonl", file.as_bytes(), &[&fields[..], &["--payload-field", "body"]].concat())
        .expect_code(0);
    assert_eq!(site.records(), owned(&[("a", "\u{e9}\n\0"), ("7", "")]));

    // Without a payload field it is the line, byte for byte, that is signed.
    let line = "{ \"id\" : \"b\",  \"n\": 1.50 } \r";
    site.import("b.jsonl", format!("{line}\n").as_bytes(), &fields).expect_code(0);
    assert_eq!(site.records()[2..], owned(&[("b", line)]));
    site.run(&["run"]).expect_code(0);
    judge(&site, 3);
}

fn a_csv_file_gives_ids_and_payloads(site: Site) {
    let site = site.with(1, 0);
    let file = b"\xef\xbb\xbfid,note,body\r\n\
                 1,x,\"two\r\nlines, one \"\"field\"\"\"\r\n\
                 \"2\",,\xff\n";
    let fields = ["--format", "csv", "--id-field", "id"];
    site.import("a.csv", file, &[&fields[..], &["--payload-field", "body"]].concat())
        .expect_code(0);
    let expected = [
        ("1".to_owned(), b"two\r\nlines, one \"field\"".to_vec()),
        ("2".to_owned(), b"\xff".to_vec()),
    ];
    assert_eq!(site.records(), expected);

    site.import("b.csv", b"id,body\n3,\"as it stands\"\n", &fields).expect_code(0);
    assert_eq!(site.records()[2..], owned(&[("3", "3,\"as it stands\"")]));
    site.run(&["run"]).expect_code(0);
    judge(&site, 3);
}

const BAD: &str = "{\"id\": \"a\", \"body\": \"good\"}\n\
                   not json\n\
                   {\"id\": \"b\"}\n\
                   {\"id\": \"\", \"body\": \"x\"}\n\
                   {\"id\": \"c\", \"body\": \"good too\"}\n\
                   {\"id\": \"d\", \"body\": 5}\n";

const BAD_LINES: &str = "line 2: not valid JSON: expected ident at column 2\n\
                         line 3: the field \"body\" is missing\n\
                         line 4: the external id is empty\n\
                         line 6: the field \"body\" is an integer; it must be a string\n";

const ID_AND_BODY: [&str; 6] = ["--format", "jsonl", "--id-field", "id", "--payload-field", "body"];

fn bad_lines_of_a_file_are_all_named_and_nothing_is_imported(site: Site) {
    site.prepare();
    let ended = site.import("bad.jsonl", BAD.as_bytes(), &ID_AND_BODY).expect_code(1);
    let expected = format!("{BAD_LINES}error: bad.jsonl: 4 bad lines: nothing was imported\n");
    assert_eq!(ended.stderr, expected, "{ended}");
    assert_eq!(ended.stdout, "", "{ended}");
    assert!(site.records().is_empty());

    // Of very many the first are shown, and all are counted.
    let ended = site.import("worse.jsonl", "?\n".repeat(30_000).as_bytes(), &ID_AND_BODY);
    let ended = ended.expect_code(1).expect_stderr("\nline 20: ").expect_stderr("\n... and more\n");
    assert_eq!(ended.stderr.lines().count(), 22, "{ended}");
    ended.expect_stderr("30,000 bad lines: nothing was imported\n");
}

fn bad_lines_of_standard_input_are_named_and_left_out(site: Site) {
    site.prepare();
    let arguments = [&["import", "-"], &ID_AND_BODY[..]].concat();
    let ended = site.run_with_input(&arguments, BAD.into()).expect_code(1);
    assert_eq!(ended.stderr, format!("{BAD_LINES}error: 4 records not imported\n"), "{ended}");
    let ended = ended.expect_stdout("imported 2 records into ring default of ");
    assert_eq!(ended.stdout.lines().count(), 1, "{ended}");
    assert_eq!(site.records(), owned(&[("a", "good"), ("c", "good too")]));
}

fn importing_again_adds_nothing_and_refuses_another_payload(site: Site) {
    let site = site.with(2, 0);
    let lines = |from: u32| -> String {
        (from..from + 25_000).map(|n| format!("{{\"id\": {n}, \"body\": \"of {n}\"}}\n")).collect()
    };
    site.import("a.jsonl", lines(0).as_bytes(), &ID_AND_BODY)
        .expect_code(0)
        .expect_stdout("imported 25,000 records ");
    let events = site.database.rows("SELECT tick AS value FROM rings");
    site.import("a.jsonl", lines(0).as_bytes(), &ID_AND_BODY)
        .expect_code(0)
        .expect_stdout("imported 0 records ")
        .expect_stdout("; 25,000 there already, unchanged\n");
    site.import("b.jsonl", lines(10_000).as_bytes(), &ID_AND_BODY)
        .expect_code(0)
        .expect_stdout("imported 10,000 records ")
        .expect_stdout("; 15,000 there already, unchanged\n");
    assert_eq!(site.database.rows("SELECT tick AS value FROM rings"), events);

    let changed = "{\"id\": 34999, \"body\": \"of 34999\"}\n\
                   {\"id\": 3, \"body\": \"of somebody else\"}\n\
                   {\"id\": 35000, \"body\": \"new\"}\n\
                   {\"id\": 35000, \"body\": \"newer\"}\n\
                   {\"id\": 35000, \"body\": \"new\"}\n";
    let ended = site.import("c.jsonl", changed.as_bytes(), &ID_AND_BODY).expect_code(1);
    assert_eq!(
        ended.stderr,
        "line 2: record \"3\" is there with another payload\n\
         line 4: record \"35000\" is there with another payload\n\
         error: 2 records not imported\n",
        "{ended}"
    );
    ended.expect_stdout("imported 1 record ").expect_stdout("; 2 there already, unchanged\n");

    let records = site.records();
    assert_eq!(records.len(), 35_001);
    for (id, payload) in &records[..35_000] {
        assert_eq!(payload, format!("of {id}").as_bytes());
    }
    site.run(&["run"]).expect_code(0);
    judge(&site, 35_001);
}

fn ids_are_taken_up_to_their_limit(site: Site) {
    site.prepare();
    // 1,024 bytes, as 512 letters of two bytes each.
    let longest = "\u{e9}".repeat(512);
    let line = |id: &str| format!("{}\n", json!({ "id": id, "body": "x" }));
    site.import("a.jsonl", line(&longest).as_bytes(), &ID_AND_BODY).expect_code(0);
    assert_eq!(site.records(), owned(&[(&longest, "x")]));
    site.import("b.jsonl", line(&format!("{longest}a")).as_bytes(), &ID_AND_BODY)
        .expect_code(1)
        .expect_stderr("line 1: the external id is longer than the 1024 bytes allowed\n");
    site.import("c.jsonl", line("a\0b").as_bytes(), &ID_AND_BODY)
        .expect_code(1)
        .expect_stderr("line 1: the external id holds a NUL character\n");
    // Ids are told apart to the byte: letter case, combined letters and blanks count.
    let alike = ["e\u{301}", "\u{e9}", "\u{c9}", "\u{e9} "];
    let lines: String = alike.iter().map(|id| line(id)).collect();
    site.import("d.jsonl", lines.as_bytes(), &ID_AND_BODY)
        .expect_code(0)
        .expect_stdout("imported 4 records ");
    let ids: Vec<String> = site.records().into_iter().skip(1).map(|(id, _)| id).collect();
    assert_eq!(ids, alike);
}

#[test]
fn what_is_no_file_of_records_is_refused_and_makes_no_database() {
    let site = Site::sqlite();
    fs::create_dir(site.path("folder")).unwrap();
    fs::write(site.path("empty"), "").unwrap();
    fs::write(site.path("a.csv"), "id,body\n1,x\n").unwrap();
    for (arguments, code, message) in [
        (
            ["absent", "--format", "lines"].as_slice(),
            1,
            "cannot read absent: No such file or directory (os error 2)",
        ),
        (&["folder", "--format", "lines"], 1, "folder is a folder"),
        (
            // Whoever opens this file may not read its first bytes, not even root.
            &["/proc/self/mem", "--format", "lines"],
            1,
            "line 1: reading failed: Input/output error (os error 5)",
        ),
        (
            &["empty", "--format", "csv"],
            2,
            "the file is empty: a CSV file begins with a header line",
        ),
        (
            &["a.csv", "--format", "csv", "--id-field", "key"],
            2,
            "there is no column \"key\"; the header has [\"id\", \"body\"]",
        ),
        (
            &["a.csv", "--format", "lines", "--id-field", "id"],
            2,
            "an id field or a payload field needs the format jsonl or csv: plain lines have none",
        ),
    ] {
        let ended = site.run(&[&["import"], arguments].concat()).expect_code(code);
        assert_eq!(ended.stderr, format!("error: {message}\n"), "{ended}");
    }
    assert!(!site.path("chancery.db").exists());

    site.run(&["import", "empty", "--format", "lines"])
        .expect_code(0)
        .expect_stdout("imported 0 records ");
    site.run_with_input(&["import", "-", "--format", "jsonl"], Vec::new())
        .expect_code(0)
        .expect_stdout("imported 0 records ");
}

fn what_is_exported_is_what_was_imported_with_its_signature(site: Site) {
    let site = site.with(7, 0);
    let mut file = b"id,body\n".to_vec();
    let mut expected = Vec::new();
    for n in 0..2_000_u32 {
        let byte = n.to_le_bytes()[0];
        // A quote or a newline in the field would need escaping; the rest may stand as it is.
        let byte = if [b'"', b',', b'\n', b'\r'].contains(&byte) { b'.' } else { byte };
        let payload = vec![byte; 1 + n as usize % 300];
        file.extend(format!("id {n},").as_bytes());
        file.extend(&payload);
        file.push(b'\n');
        expected.push((format!("id {n}"), payload));
    }
    let fields = ["--format", "csv", "--id-field", "id", "--payload-field", "body"];
    site.import("records.csv", &file, &fields).expect_code(0);
    assert!(site.run(&["export"]).expect_code(0).stdout.is_empty(), "nothing is signed yet");
    site.run(&["run", "--batch-size", "90"]).expect_code(0);
    judge(&site, 2_000);

    let listed = site.run(&["keys", "list", "--json"]).expect_code(0).stdout;
    let keys: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let public_key_of = |kid: &Value| {
        let key = keys.iter().find(|key| &key["kid"] == kid).unwrap();
        BASE64.decode(key["public_key"].as_str().unwrap()).unwrap()
    };
    let check = |id: &str, payload: &str, signature: &str, kid: &str, (wanted, bytes): &_| {
        let payload = BASE64.decode(payload).unwrap();
        assert_eq!((id, &payload), (String::as_str(wanted), bytes));
        let key = public_key_of(&Value::from(kid)).try_into().unwrap();
        let key = ed25519_dalek::VerifyingKey::from_bytes(&key).unwrap();
        let signature = BASE64.decode(signature).unwrap();
        let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
        assert!(key.verify_strict(&payload, &signature).is_ok(), "record {id}");
    };

    let jsonl = site.run(&["export"]).expect_code(0).stdout;
    assert_eq!(jsonl.lines().count(), 2_000);
    for (line, expected) in jsonl.lines().zip(&expected) {
        let record: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| record[name].as_str().unwrap_or_else(|| panic!("{name}: {line}"));
        check(field("external_id"), field("payload"), field("signature"), field("kid"), expected);
    }

    site.run(&["export", "--format", "csv", "--out", "signed.csv"]).expect_code(0);
    let mut reader = csv::Reader::from_path(site.path("signed.csv")).unwrap();
    let header = reader.headers().unwrap().clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2_000);
    for (row, expected) in rows.iter().zip(&expected) {
        let field = |name: &str| &row[header.iter().position(|column| column == name).unwrap()];
        check(field("external_id"), field("payload"), field("signature"), field("kid"), expected);
    }
}

fn a_stream_of_any_size_is_imported_in_constant_memory(site: Site) {
    const LINES: u64 = 120_000;
    const MOST_BYTES: u64 = 100 * 1024 * 1024;
    site.prepare();
    let (all_written, is_written) = mpsc::channel();
    let (may_close, go_on) = mpsc::channel::<()>();
    let write = move |pipe| {
        let mut pipe = BufWriter::new(pipe);
        let filler = vec![b'.'; 6_000];
        let mut bytes = 0;
        for n in 0..LINES {
            let line =
                [format!("{n:09} ").as_bytes(), &filler[..(n * 7 % 6_000) as usize]].concat();
            bytes += line.len() as u64;
            pipe.write_all(&line).and_then(|()| pipe.write_all(b"\n")).unwrap();
        }
        pipe.flush().unwrap();
        all_written.send(bytes).unwrap();
        // The pipe stays open, and the program alive, until its memory has been looked at.
        let _ = go_on.recv();
    };
    let import = site.start_with_input(&["import", "-", "--format", "lines"], Box::new(write));
    let bytes = is_written.recv_timeout(LIMIT).unwrap();
    assert!(bytes > 300 * 1024 * 1024, "{bytes} bytes");
    let peak = import.peak_memory().unwrap();
    drop(may_close);
    import.wait().expect_code(0).expect_stdout("imported 120,000 records ");
    assert!(peak < MOST_BYTES, "{} MiB", peak / 1024 / 1024);

    let length = if site.database.is_postgres() { "octet_length" } else { "length" };
    let sum = format!("SELECT sum({length}(payload)) AS value FROM records");
    assert_eq!(site.database.number(&sum).unsigned_abs(), bytes);
}

#[test]
fn a_large_intake_on_postgres_ends_with_a_vacuum_and_a_small_one_does_not() {
    let site = Site::postgres().with(0, 9_999);
    site.database.execute("ALTER TABLE records SET (autovacuum_enabled = FALSE)");
    let pages = |column: &str| {
        let query = "AS value FROM pg_class WHERE relname = 'records'";
        site.database.number(&format!("SELECT {column}::BIGINT {query}"))
    };
    assert_eq!(pages("relallvisible"), 0);
    site.seed(10_000);
    assert!(pages("relpages") > 100);
    assert_eq!(pages("relallvisible"), pages("relpages"), "after seed");
    let lines: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
    let file = site.path("many.txt");
    fs::write(&file, lines).unwrap();
    site.run(&["import", &file.display().to_string(), "--format", "lines"]).expect_code(0);
    assert_eq!(pages("relallvisible"), pages("relpages"), "after import");
    assert_eq!(pages("reltuples"), 29_999);
}
