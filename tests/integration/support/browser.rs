//! A real Chromium, driven through chromedriver by WebDriver (W3C): JSON over HTTP.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::blocking::Client;
use serde_json::{Value, json};

use super::{LIMIT, wait_until};

/// What names an element in an answer (WebDriver, section 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window; it ends with this.
pub(crate) struct Browser {
    driver: Child,
    client: Client,
    session: String,
}

impl Browser {
    /// Starts a driver on a free port, and a browser without a window to see.
    pub(crate) fn start() -> Browser {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is missing: scripts/test installs it (Debian: chromium-driver)");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .find_map(|line| {
                let line = line.unwrap();
                let (_, port) = line.split_once("started successfully on port ")?;
                Some(port.trim_end_matches('.').to_owned())
            })
            .expect("chromedriver did not start");
        std::thread::spawn(move || lines.for_each(drop));
        let client = Client::builder().timeout(LIMIT).no_proxy().build().unwrap();
        let base = format!("http://127.0.0.1:{port}/session");
        let mut browser = Browser { driver, client, session: base };
        let options = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--window-size=1440,1200", "--no-proxy-server"
            ]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.call(Method::POST, "", &options);
        let id = session["sessionId"].as_str().unwrap();
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    #[track_caller]
    fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.client.request(method, format!("{}{path}", self.session)).json(body);
        let answer = request.send().unwrap();
        let is_good = answer.status().is_success();
        let value = answer.json::<Value>().unwrap()["value"].take();
        assert!(is_good, "{path}: {value}");
        value
    }

    pub(crate) fn go(&self, url: &str) {
        self.call(Method::POST, "/url", &json!({"url": url}));
    }

    pub(crate) fn url(&self) -> String {
        let url = self.client.get(format!("{}/url", self.session)).send().unwrap();
        url.json::<Value>().unwrap()["value"].as_str().unwrap().to_owned()
    }

    /// What a script returns in the page.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.call(Method::POST, "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text of the first element that fits; empty if there is none.
    pub(crate) fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector('{selector}')?.textContent ?? ''");
        self.run(&script).as_str().unwrap().to_owned()
    }

    fn element(&self, selector: &str) -> String {
        let by = json!({"using": "css selector", "value": selector});
        let element = self.call(Method::POST, "/element", &by);
        element[ELEMENT].as_str().unwrap().to_owned()
    }

    pub(crate) fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.call(Method::POST, &format!("/element/{element}/click"), &json!({}));
    }

    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.call(Method::POST, &format!("/element/{element}/value"), &json!({"text": text}));
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&Browser) -> bool) {
        wait_until(what, || condition(self));
    }

    /// A command of the Chrome DevTools Protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) {
        let body = json!({"cmd": command, "params": parameters});
        self.call(Method::POST, "/goog/cdp/execute", &body);
    }

    /// What the page looks like, kept beside the other output of the tests.
    pub(crate) fn keep_screenshot(&self, name: &str) -> PathBuf {
        let answer = self.client.get(format!("{}/screenshot", self.session)).send().unwrap();
        let answer: Value = answer.json().unwrap();
        let picture = STANDARD.decode(answer["value"].as_str().unwrap()).unwrap();
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        std::fs::write(&path, picture).unwrap();
        path
    }

    /// What the console has said since the last time, but for plain remarks.
    pub(crate) fn console(&self) -> Vec<String> {
        let entries = self.call(Method::POST, "/se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().unwrap().iter();
        entries
            .filter(|entry| ["SEVERE", "WARNING"].contains(&entry["level"].as_str().unwrap()))
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Every address that was asked for since the last time.
    pub(crate) fn requested(&self) -> Vec<String> {
        let entries = self.call(Method::POST, "/se/log", &json!({"type": "performance"}));
        let mut requested = Vec::new();
        for entry in entries.as_array().unwrap() {
            let entry: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            if entry["message"]["method"] == "Network.requestWillBeSent" {
                let url = &entry["message"]["params"]["request"]["url"];
                requested.push(url.as_str().unwrap().to_owned());
            }
        }
        requested
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Each fails if it has ended, which is as good.
        let _ = self.client.delete(&self.session).send();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
