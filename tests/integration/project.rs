//! The project's own files: what they promise each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use crate::support::Site;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The floors, from the lowest up; a module imports from lower floors and from itself.
const FLOORS: [&[&str]; 12] = [
    &["types", "clock", "failpoint"],
    &["ledger", "signing", "config", "intake", "seed"],
    &["keyring", "metrics", "hardening"],
    &["fuzzing"],
    &["db"],
    &["inspect"],
    &["actors"],
    &["http"],
    &["app"],
    &["cli"],
    &["lib"],
    &["main"],
];

/// Every file of the project, as Git would keep it: neither build products nor secrets.
fn project_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(ROOT)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = entry.file_name();
            if ["target", ".git", "secrets"].iter().any(|skipped| name == *skipped) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "{} files", files.len());
    files
}

/// The files under a folder of the project, or in it, whose names end so.
fn files_of(folder: &str, ending: &str) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        path.starts_with(Path::new(ROOT).join(folder)) && path.to_string_lossy().ends_with(ending)
    };
    project_files().into_iter().filter(is_one).collect()
}

pub(super) fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A path as it is written in the project.
fn short(path: &Path) -> String {
    path.strip_prefix(ROOT).unwrap_or(path).display().to_string()
}

/// Source files with the top module that each belongs to, and their text without comments.
fn sources() -> Vec<(PathBuf, String, String)> {
    let source = |path: PathBuf| {
        let relative = path.strip_prefix(Path::new(ROOT).join("src")).unwrap();
        let Some(Component::Normal(first)) = relative.components().next() else { unreachable!() };
        let module = first.to_string_lossy().trim_end_matches(".rs").to_owned();
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let text = read(&path);
        let code: Vec<&str> = text.lines().filter(is_code).collect();
        (path, module, code.join("\n"))
    };
    files_of("src", ".rs").into_iter().map(source).collect()
}

/// The modules that stand behind `crate::` in a source text, those in braces too.
fn imported(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    let name_of = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            modules.insert(name_of(rest));
            continue;
        };
        let mut depth = 0;
        let mut is_start = true;
        for (at, c) in list.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => is_start = true,
                c if is_start && !c.is_whitespace() => {
                    modules.insert(name_of(&list[at..]));
                    is_start = false;
                }
                _ => {}
            }
        }
    }
    modules
}

#[test]
fn every_module_imports_from_lower_floors_only() {
    let floor_of = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let mut imports = 0;
    let mut wrong = Vec::new();
    for (path, module, code) in sources() {
        let Some(floor) = floor_of(&module) else {
            wrong.push(format!("{}: {module} is on no floor", short(&path)));
            continue;
        };
        for name in imported(&code) {
            imports += 1;
            if name != module && floor_of(&name).is_none_or(|other| other >= floor) {
                wrong.push(format!("{}: {module} imports {name}", short(&path)));
            }
        }
    }
    assert!(imports > 50, "{imports} imports found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn imports_are_found_alone_and_in_braces() {
    let code = "use crate::db::Store; use crate::{\n    app::{self, x},\n    types::{A, B},\n};\n\
                let a = crate::config::load();";
    let found: Vec<String> = imported(code).into_iter().collect();
    assert_eq!(found, ["app", "config", "db", "types"]);
}

#[test]
fn diesel_stays_in_db_and_actix_above_it() {
    let uses = |code: &str, name: &str| {
        code.match_indices(name).any(|(at, _)| {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            let after = code[at + name.len()..].chars().next().unwrap_or(' ');
            !(before.is_alphanumeric() || before == '_' || before == ':' || before == '"')
                && (after == ':' || after == '_')
        })
    };
    let sources = sources();
    let for_tests: BTreeSet<String> =
        sources.iter().flat_map(|(.., code)| test_modules(code)).collect();
    assert!(for_tests.contains("tests"), "{for_tests:?}");
    let mut found = BTreeSet::new();
    for (path, module, code) in sources {
        let relative = short(&path);
        if relative.split(['/', '.']).any(|name| for_tests.contains(name)) {
            continue;
        }
        // Tests stand last in their file.
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (name, modules) in
            [("diesel", ["db"].as_slice()), ("actix", &["actors", "http", "app", "cli"])]
        {
            if uses(code, name) {
                assert!(modules.contains(&module.as_str()), "{} uses {name}", short(&path));
                found.insert((name, module.clone()));
            }
        }
    }
    for needed in [("diesel", "db"), ("actix", "actors")] {
        assert!(found.contains(&(needed.0, needed.1.to_owned())), "{needed:?} in {found:?}");
    }
}

/// The modules, in files of their own, that are compiled for tests only.
fn test_modules(code: &str) -> Vec<String> {
    let marks = code.split("#[cfg(test)]\n").skip(1);
    let declared = marks.filter_map(|rest| rest.split_once("mod ")?.1.split_once(';'));
    let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    declared.map(|(name, _)| name).filter(is_name).map(str::to_owned).collect()
}

#[test]
fn no_source_file_is_longer_than_550_lines() {
    let long: Vec<String> = files_of("src", ".rs")
        .into_iter()
        .map(|path| (read(&path).lines().count(), short(&path)))
        .filter(|(lines, _)| *lines > 550)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn both_databases_have_the_same_migrations() {
    let of = |database: &str| -> Vec<String> {
        let folder = format!("migrations/{database}");
        let files = files_of(&folder, ".sql");
        files.iter().map(|path| short(path).replacen(&folder, "", 1)).collect()
    };
    let postgres = of("postgres");
    assert!(!postgres.is_empty());
    assert_eq!(postgres, of("sqlite"));
    for up in postgres.iter().filter(|path| path.ends_with("/up.sql")) {
        let down = up.replace("/up.sql", "/down.sql");
        assert!(postgres.contains(&down), "{down} is missing");
    }
}

#[test]
fn both_databases_have_the_same_columns_and_indexes() {
    let (postgres, sqlite) = (Site::postgres(), Site::sqlite());
    for site in [&postgres, &sqlite] {
        site.run(&["migrate"]).expect_code(0);
    }
    let columns = postgres.database.rows(
        "SELECT table_name || '.' || column_name AS value FROM information_schema.columns
         WHERE table_schema = 'public' ORDER BY 1",
    );
    let expected = sqlite.database.rows(
        "SELECT t.name || '.' || c.name AS value FROM sqlite_schema t, pragma_table_info(t.name) c
         WHERE t.type IN ('table', 'view') AND t.name NOT LIKE 'sqlite_%' ORDER BY 1",
    );
    assert!(columns.len() > 60, "{columns:?}");
    assert_eq!(columns, expected);

    let indexes = postgres.database.rows(
        "SELECT indexname AS value FROM pg_indexes
         WHERE schemaname = 'public' AND indexname NOT IN (SELECT conname FROM pg_constraint)
         ORDER BY 1",
    );
    let expected = sqlite.database.rows(
        "SELECT name AS value FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1",
    );
    assert!(indexes.len() > 5, "{indexes:?}");
    assert_eq!(indexes, expected);
}

#[test]
fn a_schema_can_be_taken_down_and_built_again() {
    for (folder, site) in [("postgres", Site::postgres()), ("sqlite", Site::sqlite())] {
        let site = site.with(2, 10);
        let downs = files_of(&format!("migrations/{folder}"), "/down.sql");
        // What would lose keys is refused.
        let sealed = downs
            .iter()
            .find(|down| down.display().to_string().contains("create_data_keys"))
            .unwrap();
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            site.database.execute(&read(sealed));
        }));
        assert!(refused.is_err(), "keys were lost on {folder}");
        assert_eq!(site.database.number("SELECT count(*) AS value FROM data_keys"), 1);
        site.run(&["keys", "destroy", "--all", "--yes"]).expect_code(0);
        for down in downs.iter().rev() {
            site.database.execute(&read(down));
        }
        site.database.execute("DELETE FROM __diesel_schema_migrations");
        let tables = match folder {
            "postgres" => "pg_tables WHERE schemaname = 'public'",
            _ => "sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        };
        let left = site.database.number(&format!("SELECT count(*) AS value FROM {tables}"));
        assert_eq!(left, 1, "tables left on {folder} beside that of the versions");
        site.run(&["migrate"]).expect_code(0).expect_stdout("applied ");
        assert_eq!(site.database.number("SELECT count(*) AS value FROM records"), 0);
    }
}

#[test]
fn the_example_of_a_configuration_loads() {
    let site = Site::sqlite();
    let example = format!("{ROOT}/chancery.example.toml");
    let shown = site.run(&["--config", &example, "config"]).expect_code(0);
    shown.expect_stdout(&format!("batch_size = 500  # {example}:"));
}

#[test]
fn every_relative_link_of_the_documentation_leads_somewhere() {
    let mut links = 0;
    for path in files_of("", ".md") {
        for target in link_targets(&read(&path)) {
            if target.contains("://") || target.starts_with("mailto:") || target.starts_with('#') {
                continue;
            }
            links += 1;
            let file = target.split('#').next().unwrap_or_default();
            let exists = path.parent().unwrap().join(file).exists();
            assert!(exists, "{} links to {target}, which is not there", short(&path));
        }
    }
    assert!(links > 5, "{links} links found");
}

/// What the inline links and the reference definitions of a Markdown text lead to.
fn link_targets(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        for (at, mark) in line.match_indices("](") {
            let target = line[at + mark.len()..].split([')', ' ']).next().unwrap_or_default();
            targets.push(target.to_owned());
        }
        if let Some((_, target)) = line.split_once("]: ").filter(|_| line.starts_with('[')) {
            targets.push(target.split(' ').next().unwrap_or_default().to_owned());
        }
    }
    targets
}

#[test]
fn the_changelog_names_this_version() {
    let heading = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    let changelog = read("CHANGELOG.md");
    assert!(changelog.lines().any(|line| line.starts_with(&heading)), "no line {heading}");
}

/// The services of docker-compose.yml that run the program, and those that do not.
const OURS: [&str; 6] = ["migrate", "keys", "seed", "sign", "serve-1", "serve-2"];
const OTHERS: [&str; 3] = ["postgres", "prometheus", "grafana"];

pub(super) fn compose() -> Yaml {
    yaml("docker-compose.yml")
}

/// A file of one YAML document.
pub(super) fn yaml(path: &str) -> Yaml {
    let mut documents = YamlLoader::load_from_str(&read(path)).unwrap();
    assert_eq!(documents.len(), 1, "{path}");
    documents.remove(0)
}

/// A service's value, its own or one that it merges in (`<<`), at whatever depth.
pub(super) fn value_of<'a>(service: &'a Yaml, key: &str) -> &'a Yaml {
    match (&service[key], &service["<<"]) {
        (own, Yaml::BadValue) => own,
        (Yaml::BadValue, merged) => value_of(merged, key),
        (own, _) => own,
    }
}

/// The variables of an environment, with those that it merges in.
fn variables(environment: &Yaml) -> BTreeMap<&str, &str> {
    let mut all = match &environment["<<"] {
        Yaml::BadValue => BTreeMap::new(),
        merged => variables(merged),
    };
    for (name, value) in environment.as_hash().into_iter().flatten() {
        if text(name) != "<<" {
            all.insert(text(name), text(value));
        }
    }
    all
}

pub(super) fn text(yaml: &Yaml) -> &str {
    yaml.as_str().unwrap_or_else(|| panic!("not a text: {yaml:?}"))
}

#[test]
fn compose_has_the_services_that_are_promised_with_health_and_secrets() {
    let compose = compose();
    let services = compose["services"].as_hash().unwrap();
    let names: BTreeSet<&str> = services.keys().map(text).collect();
    assert_eq!(names, OURS.into_iter().chain(OTHERS).collect());

    let postgres = &compose["services"]["postgres"];
    assert_eq!(text(&postgres["healthcheck"]["test"][1]), "pg_isready");
    assert_eq!(
        text(&compose["services"]["migrate"]["depends_on"]["postgres"]["condition"]),
        "service_healthy"
    );

    let mut given = 0;
    for (name, service) in services {
        let name = text(name);
        let image = text(value_of(service, "image"));
        let tag = image.split_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{image}");
        assert_eq!(image.starts_with("chancery:"), OURS.contains(&name), "{name}: {image}");
        for secret in value_of(service, "secrets").as_vec().into_iter().flatten() {
            let source = secret.as_str().unwrap_or_else(|| text(&secret["source"]));
            let file = text(&compose["secrets"][source]["file"]);
            assert!(file.starts_with("./secrets/"), "{file}");
            given += 1;
        }
        if OURS.contains(&name) {
            let user = text(value_of(service, "user"));
            assert!(user.starts_with("${CHANCERY_UID:-1000}:"), "{user}");
        }
        if name != "postgres" {
            assert_eq!(value_of(service, "read_only").as_bool(), Some(true), "{name}");
            assert_eq!(text(&value_of(service, "cap_drop")[0]), "ALL", "{name}");
        }
    }
    assert!(given >= 12, "{given} secrets given");
    assert!(!read("docker-compose.yml").contains("PASSWORD:"), "a password in the open");
}

#[test]
fn compose_starts_the_program_with_what_it_understands() {
    let compose = compose();
    for name in OURS {
        let service = &compose["services"][name];
        // With --help behind them, the arguments are read and nothing is done.
        let command = value_of(service, "command").as_vec().unwrap();
        let mut arguments: Vec<&str> = command.iter().map(text).collect();
        for argument in &mut arguments {
            if let Some((_, default)) = argument.split_once(":-") {
                *argument = default.trim_end_matches('}');
            }
        }
        arguments.push("--help");
        let mut site = Site::sqlite();
        site.run(&arguments).expect_code(0);

        let set = variables(value_of(service, "environment"));
        assert!(set.contains_key("CHANCERY_DATABASE__URL"), "{name} sets {set:?}");
        if name.starts_with("serve-") {
            assert_eq!(set.get("CHANCERY_NODE__NAME"), Some(&name));
            // A node refuses another address than loopback without TLS, unless it is told.
            assert_eq!(set.get("CHANCERY_HTTP__ALLOW_PLAIN_HTTP"), Some(&"true"));
        }
        for (variable, value) in set {
            site = site.set(variable, value);
        }
        site.run(&["config"]).expect_code(0);
    }
}

#[test]
fn the_image_is_built_in_stages_and_does_not_run_as_root() {
    let dockerfile = read("Dockerfile");
    let of = |word: &str| -> Vec<String> {
        let lines = dockerfile.lines().filter_map(|line| line.strip_prefix(word));
        lines.map(|rest| rest.trim().to_owned()).collect()
    };
    let stages = of("FROM ");
    assert!(stages.len() >= 2, "{stages:?}");
    for stage in &stages {
        let image = stage.split(' ').next().unwrap();
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{image}");
    }
    let last_stage = &dockerfile[dockerfile.rfind("\nFROM ").unwrap()..];
    let user = of("USER ").pop().unwrap();
    assert!(last_stage.contains(&format!("\nUSER {user}\n")), "the last stage sets no user");
    let id: u32 = user.split(':').next().unwrap().parse().unwrap();
    assert_ne!(id, 0);
    assert!(of("ARG VERSION=").contains(&env!("CARGO_PKG_VERSION").to_owned()));
}

#[test]
fn every_script_is_executable_and_its_syntax_is_right() {
    let mut scripts = 0;
    for path in project_files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let Some(shell) = ["#!/usr/bin/env bash", "#!/bin/bash", "#!/bin/sh"]
            .iter()
            .find(|line| text.starts_with(**line))
        else {
            continue;
        };
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{} is not executable", short(&path));
        let shell = if shell.ends_with("bash") { "bash" } else { "sh" };
        let checked = Command::new(shell).arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{}: {checked:?}", short(&path));
        scripts += 1;
    }
    assert!(scripts >= 6, "{scripts} scripts");
}

#[test]
fn no_file_holds_a_path_of_the_machine_it_was_written_on() {
    // In halves, so that this file holds none itself.
    let traces =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/Us", "ers/"], ["/ho", "me/"]].map(|p| p.concat());
    let own_path = ROOT.matches('/').count() > 1;
    let mut wrong = Vec::new();
    for path in project_files() {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        for (number, line) in text.lines().enumerate() {
            let has_trace = traces.iter().any(|trace| {
                line.match_indices(trace.as_str()).any(|(at, _)| {
                    let starts = line[..at]
                        .chars()
                        .next_back()
                        .is_none_or(|c| !(c.is_alphanumeric() || "-_.".contains(c)));
                    // The home of the image's own user.
                    starts && !line[at + trace.len()..].starts_with("nonroot")
                })
            });
            if has_trace || (own_path && line.contains(ROOT)) {
                wrong.push(format!("{}:{}: {line}", short(&path), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
