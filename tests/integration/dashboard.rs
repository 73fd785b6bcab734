//! The dashboard in a real browser.

use serde_json::json;

use crate::api::{Served, create_token};
use crate::support::browser::Browser;
use crate::support::{Site, wait_until};

on_both_databases! {
    numbers_move_while_records_are_signed_and_orders_work,
    a_reader_sees_no_order_and_a_wrong_token_sees_nothing,
    each_ring_has_a_page_of_its_own_with_ways_between_them,
}

fn sign_in(browser: &Browser, served: &Served, token: &str) {
    browser.go(&served.url("/"));
    browser.wait_for("the way in is shown", |b| b.url().ends_with("/login"));
    browser.type_into("#token", token);
    browser.click("button[type=submit]");
}

fn number(browser: &Browser, at: usize) -> u64 {
    let text = browser.text(&format!(".number:nth-child({at}) dd"));
    let digits: String = text.chars().take_while(|c| *c != '+' && *c != ' ').collect();
    digits.replace(',', "").parse().unwrap_or(0)
}

fn numbers_move_while_records_are_signed_and_orders_work(site: Site) {
    let name = if site.database.is_postgres() { "postgres" } else { "sqlite" };
    let served = Served::start(site.set("CHANCERY_NODE__NAME", "signer-1").with(40, 2_000));
    let browser = Browser::start();
    sign_in(&browser, &served, &served.token);
    browser.wait_for("it is live", |b| b.text("#live") == "live");
    browser.wait_for("what was there is signed", |b| number(b, 1) == 2_000);
    assert_eq!(browser.run("return document.querySelectorAll('.key').length"), 40);
    assert!(browser.text("#nodes").contains("signer-1"));
    assert!(browser.text("#actions").contains("keys.added"));

    // One order asks first, and No means no.
    browser.click("button[data-post='/v1/pause'][data-body*=all]");
    browser
        .wait_for("it asks", |b| b.run("return document.getElementById('confirm').open") == true);
    browser.click("#confirm button[value=no]");
    browser.click("button[data-post='/v1/pause'][data-body*=all]");
    browser.click("#confirm button[value=yes]");
    browser.wait_for("the ring is paused", |b| b.text("#state") == "ring paused");
    assert_eq!(browser.text("#toast"), "ring default is paused");
    served.site.seed(1_500);
    browser.wait_for("they wait", |b| number(b, 2) == 1_500);
    browser
        .wait_for("the oldest has an age", |b| b.text(".number:nth-child(4) dd").ends_with(" s"));
    browser.click("button[data-post='/v1/resume']");
    browser.wait_for("they are signed", |b| number(b, 1) == 3_500 && number(b, 2) == 0);
    assert!(browser.text("#rate").contains("now"));

    // By keyboard: one key of the ring to the next, each told in words.
    browser.run("document.querySelector('.key[tabindex=\"0\"]').focus()");
    let first = browser.text("#key-detail");
    assert!(first.contains(": free"), "{first}");
    let arrow = "document.activeElement.dispatchEvent(
                     new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }))";
    browser.run(arrow);
    browser.wait_for("the next key is told", |b| b.text("#key-detail") != first);
    // The page goes on changing, and the focus stays.
    let focused = "return document.activeElement.dataset.kid";
    let kid = browser.run(focused);
    served.site.seed(500);
    browser.wait_for("more are signed", |b| number(b, 1) == 4_000);
    assert_eq!(browser.run(focused), kid);

    browser.keep_screenshot(&format!("dashboard-{name}-light"));
    let scheme =
        |scheme: &str| json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
    let page = "return getComputedStyle(document.body).backgroundColor";
    browser.devtools("Emulation.setEmulatedMedia", &scheme("light"));
    let light = browser.run(page);
    browser.devtools("Emulation.setEmulatedMedia", &scheme("dark"));
    assert_ne!(browser.run(page), light);
    browser.keep_screenshot(&format!("dashboard-{name}-dark"));
    let phone = json!({"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": true});
    browser.devtools("Emulation.setDeviceMetricsOverride", &phone);
    let fits = "return document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(browser.run(fits), true, "the page is wider than a phone");
    browser.keep_screenshot(&format!("dashboard-{name}-phone"));

    let unlabelled =
        "return [...document.querySelectorAll('button, input:not([hidden]), svg, table')]
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.ariaHidden || e.labels?.length
                         || e.querySelector('caption'))).length";
    assert_eq!(browser.run(unlabelled), 0);
    assert_eq!(browser.console(), [] as [String; 0]);
    let here = served.url("/");
    let requested = browser.requested();
    let outside: Vec<_> = requested.iter().filter(|url| !url.starts_with(&here)).collect();
    let outside: Vec<_> = outside.iter().filter(|url| url.starts_with("http")).collect();
    assert!(requested.len() > 5 && outside.is_empty(), "{outside:?}");
    drop(browser);
    served.stop();
}

fn a_reader_sees_no_order_and_a_wrong_token_sees_nothing(site: Site) {
    let served = Served::start(site.with(5, 100));
    let browser = Browser::start();
    sign_in(&browser, &served, "chy_wrong");
    browser.wait_for("it is refused", |b| b.text(".banner").contains("opens nothing"));
    assert!(browser.url().ends_with("/login"));
    let reader = create_token(&served.site, &["reader"], &[]);
    browser.type_into("#token", &reader);
    browser.click("button[type=submit]");
    browser.wait_for("it is live", |b| b.text("#live") == "live");
    assert_eq!(browser.run("return document.querySelectorAll('[data-post]').length"), 0);
    assert!(browser.text("#orders").contains("need a token of the role operator"));
    // The session ends with its token.
    served.site.run(&["token", "revoke", "2"]).expect_code(0);
    browser.wait_for("the way in is shown again", |b| b.url().ends_with("/login"));
    drop(browser);
    wait_until("the page's stream has ended", || served.get("/metrics").status == 200);
    served.stop();
}

fn each_ring_has_a_page_of_its_own_with_ways_between_them(site: Site) {
    let name = if site.database.is_postgres() { "postgres" } else { "sqlite" };
    let site = site.set("CHANCERY_SIGNING__RING", "*").set("CHANCERY_NODE__NAME", "signer-1");
    site.prepare();
    for (ring, keys, records) in
        [("default", "12", "300"), ("invoices", "25", "900"), ("receipts", "3", "60")]
    {
        if ring != "default" {
            site.run(&["rings", "create", ring]).expect_code(0);
        }
        site.run(&["keys", "generate", "--count", keys, "--ring", ring]).expect_code(0);
        site.run(&["seed", "--records", records, "--ring", ring]).expect_code(0);
    }
    let served = Served::start(site);
    let browser = Browser::start();
    sign_in(&browser, &served, &served.token);
    browser.wait_for("the first ring is signed", |b| number(b, 1) == 300);
    assert_eq!(browser.run("return document.querySelectorAll('.rings a').length"), 3);
    assert_eq!(browser.text(".rings a[aria-current]"), "default");
    browser.click(".rings a[href='/rings/invoices']");
    browser.wait_for("the other is shown", |b| b.url().ends_with("/rings/invoices"));
    browser.wait_for("it is live", |b| b.text("#live") == "live");
    browser.wait_for("it is signed", |b| number(b, 1) == 900);
    assert_eq!(browser.text(".rings a[aria-current]"), "invoices");
    assert_eq!(browser.run("return document.querySelectorAll('.key').length"), 25);

    // What is ordered here is for this ring.
    browser.click("button[data-post='/v1/rings/invoices/pause'][data-body*=all]");
    browser.click("#confirm button[value=yes]");
    browser.wait_for("the ring is paused", |b| b.text("#state") == "ring paused");
    assert_eq!(browser.text("#toast"), "ring invoices is paused");
    browser.keep_screenshot(&format!("dashboard-{name}-rings"));
    browser.click(".rings a[href='/']");
    browser.wait_for("the first is shown again", |b| b.text(".rings a[aria-current]") == "default");
    browser.wait_for("and goes on", |b| b.text("#state") == "running");
    let fits = "return document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(browser.run(fits), true);
    assert_eq!(browser.console(), [] as [String; 0]);
    drop(browser);
    served.stop();
}
