//! The measurements, each on a new database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::site::Site;

/// Payloads of 256 bytes as JSON lines, with external ids if asked for.
fn lines(records: usize, with_ids: bool) -> Vec<u8> {
    let mut text = String::with_capacity(records * 320);
    for n in 0..records {
        let id = if with_ids { format!("\"external_id\":\"inv-{n}\",") } else { String::new() };
        text.push_str(&format!("{{{id}\"payload\":\"{n:0>256}\"}}\n"));
    }
    text.into_bytes()
}

fn stream(site: &Site, records: usize, with_ids: bool) -> f64 {
    let service = site.serve().paused();
    let body = lines(records, with_ids);
    let mut client = service.client();
    let begin = Instant::now();
    assert_eq!(client.stream_lines("/v1/records/bulk", &body), records);
    records as f64 / begin.elapsed().as_secs_f64()
}

/// Records a second by bulk NDJSON.
pub(crate) fn bulk(site: &Site) -> f64 {
    stream(site, 300_000, false)
}

/// Records a second by bulk NDJSON, each with an external id.
pub(crate) fn named(site: &Site) -> f64 {
    stream(site, 150_000, true)
}

/// Single POSTs a second from 32 connections.
pub(crate) fn single(site: &Site) -> f64 {
    const CONNECTIONS: usize = 32;
    const EACH: usize = 600;
    let service = site.serve().paused();
    let body = format!("{{\"payload\":\"{:0>256}\"}}", 7).into_bytes();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = service.client();
                for _ in 0..EACH {
                    client.post("/v1/records", "application/json", &body).expect(201);
                }
            });
        }
    });
    (CONNECTIONS * EACH) as f64 / begin.elapsed().as_secs_f64()
}

/// Milliseconds from the sending of a POST to the answer with the signature, sorted.
fn latencies(site: &Site) -> Vec<f64> {
    let service = site.serve();
    let mut client = service.client();
    let mut taken: Vec<f64> = (0..300)
        .map(|n| {
            let body = format!("{{\"payload\":\"{n:0>256}\"}}").into_bytes();
            let begin = Instant::now();
            let answer = client.post("/v1/records", "application/json", &body).expect(201);
            let answer = String::from_utf8(answer.body).unwrap();
            let id = answer.split([':', ',']).nth(1).unwrap();
            client.get(&format!("/v1/records/{id}/signature?wait=10")).expect(200);
            let took = begin.elapsed();
            // The service comes to rest, so that each record finds it idle.
            std::thread::park_timeout(Duration::from_millis(10 + n % 50));
            took.as_secs_f64() * 1000.0
        })
        .collect();
    taken.sort_by(f64::total_cmp);
    taken
}

/// The median of the latencies.
pub(crate) fn median_latency(site: &Site) -> f64 {
    let taken = latencies(site);
    taken[taken.len() / 2]
}

/// The latency that one of a hundred exceeds.
pub(crate) fn late_latency(site: &Site) -> f64 {
    let taken = latencies(site);
    taken[taken.len() * 99 / 100]
}

/// The signing rate of a service that is scraped each second and has one dashboard open, as a share of
/// that of one that nobody watches; the two in turn.
pub(crate) fn watching(site: &Site) -> f64 {
    let alone = signing_rate(site, false);
    let watched = signing_rate(site, true);
    watched / alone
}

fn signing_rate(site: &Site, watched: bool) -> f64 {
    const RECORDS: usize = 200_000;
    let service = site.serve();
    let mut client = service.client();
    let order = b"{\"scope\":\"all\"}".as_slice();
    client.post("/v1/pause", "application/json", order).expect(200);
    site.run(&["seed", "--records", &RECORDS.to_string()]);
    let signed_before = signed(&mut client);
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        if watched {
            let (watcher, mut scraper) = (service.client(), service.client());
            scope.spawn(move || watcher.watch());
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    scraper.get("/metrics").expect(200);
                    std::thread::park_timeout(Duration::from_secs(1));
                }
            });
        }
        client.post("/v1/resume", "application/json", order).expect(200);
        let begin = Instant::now();
        while signed(&mut client) < signed_before + RECORDS as u64 {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let took = begin.elapsed();
        over.store(true, Ordering::Relaxed);
        drop(service);
        RECORDS as f64 / took.as_secs_f64()
    })
}

/// How many records this process has signed, as it counts them itself.
fn signed(client: &mut crate::client::Client) -> u64 {
    let answer = client.get("/metrics").expect(200);
    let text = String::from_utf8(answer.body).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("chancery_records_signed_total{ring=\"default\"} "));
    line.unwrap().parse().unwrap()
}
