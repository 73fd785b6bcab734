//! The files with which Chancery is deployed and watched: what they promise each other, the program and
//! its documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use yaml_rust2::Yaml;

use crate::api::Served;
use crate::project::{compose, read, text, value_of, yaml};
use crate::support::Site;

const DASHBOARD: &str = "deploy/grafana/chancery.json";
const ALERTS: &str = "deploy/prometheus/alerts.yml";
const UNIT: &str = "deploy/systemd/chancery.service";

/// A metric: its type and the names of its labels.
type Metric = (String, BTreeSet<String>);

/// The metrics that docs/METRICS.md describes, by the names under which they are queried.
fn described_metrics() -> BTreeMap<String, Metric> {
    let page = read("docs/METRICS.md");
    let mut metrics = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `chancery_")) {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let name = cells[1].to_owned();
        // The values of a label stand behind a colon.
        let labels = cells[3].split(':').next().unwrap().split(',');
        let labels = labels.map(|label| label.trim_matches([' ', '`']).to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        let twice = metrics.insert(name.clone(), (cells[2].to_owned(), labels));
        assert!(twice.is_none(), "{name} is described twice");
    }
    assert!(metrics.len() > 30, "{} metrics", metrics.len());
    metrics
}

/// The metrics on a page of `/metrics`, by the same names.
fn shown_metrics(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').unwrap();
        let (series, name) = match kind {
            "counter" => (format!("{family}_total"), format!("{family}_total")),
            "histogram" => (format!("{family}_count"), family.to_owned()),
            _ => (family.to_owned(), family.to_owned()),
        };
        let mut labels = BTreeSet::new();
        for of_series in page.lines().filter_map(|line| line.strip_prefix(&series)) {
            let Some(pairs) = of_series.strip_prefix('{') else { continue };
            // No value has a quotation mark in it.
            let outside = pairs.split('"').step_by(2);
            let is_name = |c: char| c.is_ascii_alphabetic() || c == '_';
            let names = outside.filter_map(|part| part.strip_suffix('='));
            labels.extend(names.map(|name| name.trim_matches(|c| !is_name(c)).to_owned()));
        }
        metrics.insert(name, (kind.to_owned(), labels));
    }
    metrics
}

/// The metrics that a query names; a histogram's series count as the histogram.
fn queried_metrics(query: &str, described: &BTreeMap<String, Metric>) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = query.split(|c| !is_name(c)).filter(|word| word.starts_with("chancery_"));
    let histogram = |word: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end))?;
        described.get(base).filter(|(kind, _)| kind == "histogram").map(|_| base.to_owned())
    };
    words.map(|word| histogram(word).unwrap_or_else(|| word.to_owned())).collect()
}

#[test]
fn every_metric_is_described_with_its_type_and_labels_and_no_other() {
    let served = Served::start(Site::sqlite().with(2, 10));
    // Counters by request are there when there was one.
    assert_eq!(served.get("/v1/status").status, 200);
    let page = served.get("/metrics").text;
    let described = described_metrics();
    assert_eq!(shown_metrics(&page), described, "{page}");
    served.stop();
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

/// The panels that show something, rows left out.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().unwrap();
    all.iter().filter(|panel| panel["type"] != "row").collect()
}

/// Every query in a dashboard: of panels, variables and annotations.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(query) if ["expr", "query"].contains(&name.as_str()) => {
                        found.push(query.to_owned());
                    }
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_shows_every_metric_that_there_is_and_no_other() {
    let described = described_metrics();
    let mut found = Vec::new();
    queries(&dashboard(), &mut found);
    assert!(found.len() > 40, "{} queries", found.len());
    let queried: BTreeSet<String> =
        found.iter().flat_map(|query| queried_metrics(query, &described)).collect();
    assert_eq!(queried, described.keys().cloned().collect());
}

#[test]
fn each_panel_of_the_dashboard_says_what_it_shows_in_a_place_of_its_own() {
    let dashboard = dashboard();
    let all = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = all.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "ids that are there twice");
    let rows: Vec<&Value> = all.iter().filter(|panel| panel["type"] == "row").collect();
    let rows: Vec<&str> = rows.iter().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(rows, ["Progress", "Latency", "Keys", "Database and HTTP", "Nodes"]);

    let mut taken = BTreeSet::new();
    for panel in all {
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
    }
    let panels = panels(&dashboard);
    assert!(panels.len() > 20, "{} panels", panels.len());
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|said| said.len() > 20), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        // Whatever it is called where the dashboard is imported.
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = target["expr"].as_str().unwrap();
            assert!(query.contains("job=\"$job\""), "{title} mixes rings: {query}");
        }
    }
}

/// The rules of deploy/prometheus/alerts.yml, by the names of their alerts.
fn alerts(groups: &Yaml) -> BTreeMap<&str, &Yaml> {
    let mut alerts = BTreeMap::new();
    for group in groups["groups"].as_vec().unwrap() {
        for rule in group["rules"].as_vec().unwrap() {
            assert!(alerts.insert(text(&rule["alert"]), rule).is_none(), "twice: {rule:?}");
        }
    }
    assert!(alerts.len() > 20, "{} alerts", alerts.len());
    alerts
}

/// The anchors of a Markdown page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_alert_says_how_bad_it_is_and_leads_to_a_heading_of_the_runbook() {
    let groups = yaml(ALERTS);
    let described = described_metrics();
    let page = read("docs/OPERATIONS.md");
    let headings = anchors(&page);
    let mut expected = BTreeSet::new();
    for (name, rule) in alerts(&groups) {
        let severity = text(&rule["labels"]["severity"]);
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            let said = text(&rule["annotations"][annotation]);
            assert!(said.len() > 15 && said.ends_with('.'), "{name}: {annotation}: {said}");
        }
        let link = text(&rule["annotations"]["runbook_url"]);
        let anchor = link.strip_prefix("docs/OPERATIONS.md#").unwrap_or_else(|| panic!("{link}"));
        assert!(headings.contains(anchor), "{name} leads to {link}, which is not there");
        let told = format!("*{}{}.*", severity[..1].to_uppercase(), &severity[1..]);
        let section = page.split(&format!("\n### {name}\n")).nth(1).unwrap();
        assert!(section.trim_start().starts_with(&told), "{name} is not {told}");
        expected.insert(name.to_owned());

        let queried = queried_metrics(text(&rule["expr"]), &described);
        let unknown: Vec<_> =
            queried.iter().filter(|name| !described.contains_key(*name)).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
    let written = page.lines().filter_map(|line| line.strip_prefix("### Chancery"));
    let written = written.map(|name| format!("Chancery{name}")).collect();
    assert_eq!(expected, written, "headings of the runbook");
}

#[test]
fn every_alert_is_tried_by_the_tests_of_the_rules() {
    let tests = read("deploy/prometheus/alerts_test.yml");
    for (name, _) in alerts(&yaml(ALERTS)) {
        let by_name = format!("alertname=\"{name}\"");
        let by_rule = format!("alertname: {name}\n");
        assert!(tests.contains(&by_name) || tests.contains(&by_rule), "{name} is not tried");
    }
}

#[test]
fn links_inside_of_a_page_lead_to_its_headings() {
    let mut links = 0;
    for path in ["docs/OPERATIONS.md", "docs/METRICS.md"] {
        let page = read(path);
        let headings = anchors(&page);
        for target in page.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let there = match target.split_once('#') {
                Some(("", anchor)) => headings.contains(anchor),
                Some((file, anchor)) if file.ends_with(".md") => {
                    anchors(&read(Path::new("docs").join(file))).contains(anchor)
                }
                _ => continue,
            };
            links += 1;
            assert!(there, "{path} links to {target}, which is not there");
        }
    }
    assert!(links > 50, "{links} links");
}

#[test]
fn prometheus_scrapes_the_nodes_of_compose_with_the_token_that_it_is_given() {
    let config = yaml("deploy/prometheus/prometheus.yml");
    assert_eq!(text(&config["rule_files"][0]), "alerts.yml");
    let job = &config["scrape_configs"][0];
    // The rules take the ring for the job, and the job by its name.
    assert!(text(&job["job_name"]).starts_with("chancery"));
    assert_eq!(text(&job["authorization"]["credentials_file"]), "/run/secrets/metrics_token");
    let compose = compose();
    assert_eq!(text(&compose["services"]["prometheus"]["secrets"][0]), "metrics_token");

    let targets = job["static_configs"][0]["targets"].as_vec().unwrap();
    let targets: BTreeSet<&str> = targets.iter().map(text).collect();
    let services = compose["services"].as_hash().unwrap();
    let nodes = services.keys().map(text).filter(|name| name.starts_with("serve-"));
    let nodes: BTreeSet<String> = nodes.map(|name| format!("{name}:8080")).collect();
    assert_eq!(targets, nodes.iter().map(String::as_str).collect());

    let source = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(text(&source["datasources"][0]["url"]), "http://prometheus:9090");
}

#[test]
fn compose_mounts_files_that_are_there_read_only_and_shows_ports_to_this_machine_only() {
    let compose = compose();
    let (mut mounts, mut ports) = (Vec::new(), 0);
    for (name, service) in compose["services"].as_hash().unwrap() {
        for volume in value_of(service, "volumes").as_vec().into_iter().flatten() {
            let parts: Vec<&str> = text(volume).split(':').collect();
            if let Some(path) = parts[0].strip_prefix("./") {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{path}");
                assert_eq!(parts.get(2), Some(&"ro"), "{name:?} may write to {path}");
                mounts.push(parts[1].to_owned());
            } else {
                assert!(!compose["volumes"][parts[0]].is_badvalue(), "{parts:?}");
            }
        }
        for port in value_of(service, "ports").as_vec().into_iter().flatten() {
            assert!(text(port).starts_with("127.0.0.1:"), "{name:?} shows {port:?}");
            ports += 1;
        }
    }
    assert_eq!((mounts.len(), ports), (4, 4), "{mounts:?}");
    let providers = yaml("deploy/grafana/provisioning/dashboards/chancery.yml");
    let folder = text(&providers["providers"][0]["options"]["path"]);
    assert!(mounts.contains(&format!("{folder}/chancery.json")), "{folder} in {mounts:?}");
}

#[test]
fn the_unit_starts_the_program_with_what_it_understands_and_takes_rights_away() {
    let unit = read(UNIT);
    let values = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let [start] = values("ExecStart")[..] else { panic!("one ExecStart") };
    let mut arguments: Vec<&str> = start.split(' ').collect();
    assert_eq!(arguments.remove(0), "/usr/local/bin/chancery");
    arguments.push("--help");
    let mut site = Site::sqlite();
    site.run(&arguments).expect_code(0);
    for variable in values("Environment") {
        let (name, value) = variable.split_once('=').unwrap();
        site = site.set(name, value);
    }
    site.run(&["config"]).expect_code(0).expect_stdout("kek_file = \"%t/chancery/kek\"");

    // What a node says by its exit code is read first (docs/OPERATIONS.md).
    assert_eq!(values("Restart"), ["on-failure"]);
    assert_eq!(values("RestartPreventExitStatus"), ["1 2 3 4"]);
    for switch in [
        "NoNewPrivileges",
        "PrivateDevices",
        "PrivateTmp",
        "PrivateUsers",
        "ProtectHome",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "RestrictNamespaces",
        "RestrictSUIDSGID",
    ] {
        assert_eq!(values(switch), ["yes"], "{switch}");
    }
    assert_eq!(values("CapabilityBoundingSet"), [""]);
    assert_eq!(values("ProtectSystem"), ["strict"]);
    assert_eq!(values("LimitCORE"), ["0"]);
}

#[test]
fn wherever_it_is_deployed_memory_can_be_locked_and_leaves_no_core_file() {
    let unit = read(UNIT);
    for line in ["LimitMEMLOCK=infinity", "LimitCORE=0", "MemorySwapMax=0"] {
        assert!(unit.lines().any(|of_unit| of_unit == line), "{line}");
    }
    let compose = compose();
    let mut programs = 0;
    for (name, service) in compose["services"].as_hash().unwrap() {
        if !value_of(service, "image").as_str().unwrap().starts_with("chancery:") {
            continue;
        }
        let limits = value_of(service, "ulimits");
        assert_eq!(limits["core"].as_i64(), Some(0), "{name:?}");
        for kind in ["soft", "hard"] {
            assert_eq!(limits["memlock"][kind].as_i64(), Some(-1), "{name:?}");
        }
        programs += 1;
    }
    assert!(programs >= 6, "{programs} services");
}
