//! Drives a browser on the pages of a server.

use std::fs;
use std::future::Future;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use thirtyfour::prelude::*;
use thirtyfour::support::block_on;
use thirtyfour::{ChromiumLikeCapabilities, LoggingPrefsLogLevel};

use crate::place::Place;
use crate::running::{Running, start, start_command};

/// Timeout of a condition on a page. Long, since other tests run at the same time.
const PATIENCE: Duration = Duration::from_secs(90);

/// The size of the screen unless a test says otherwise.
const SCREEN: (u32, u32) = (1200, 800);

/// The elements that extend beyond the right edge of the screen.
const WIDEST: &str = "[...document.querySelectorAll('body *')]
    .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth)
    .map((element) => element.cloneNode(false).outerHTML).slice(0, 8)";

/// A program that is ended when this is dropped.
pub(crate) struct Service {
    running: Option<Running>,
    pub(crate) url: String,
}

impl Service {
    /// Waits until the program prints its port, which follows `mark`.
    fn new(running: Running, mark: &str) -> Self {
        let mut output = Vec::new();
        while let Some(line) = running.next_line() {
            if let Some((_, rest)) = line.split_once(mark) {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                return Self { running: Some(running), url: format!("http://127.0.0.1:{port}") };
            }
            output.push(line);
        }
        panic!("it did not print a port: {output:#?}");
    }
}

impl Service {
    /// Kills the program.
    pub(crate) fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::KILL);
            running.end();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::TERM);
            running.end();
        }
    }
}

/// Starts `folio serve` on a free port.
pub(crate) fn serve(place: &Place, what: &str) -> Service {
    Service::new(start(place, &format!("serve {what} --port 0")), "http://127.0.0.1:")
}

/// Headless Chromium.
pub(crate) struct Browser {
    driver: WebDriver,
    _chromedriver: Service,
    origin: String,
    axe: String,
}

/// Opens a browser for the pages of a server. Without a browser on this machine, prints a notice and returns `None`, or
/// panics if FOLIO_BROWSER is set.
pub(crate) fn open(server: &Service) -> Option<Browser> {
    match ready() {
        Ok(axe) => Some(Browser::new(server, axe)),
        Err(missing) => {
            assert!(std::env::var_os("FOLIO_BROWSER").is_none(), "{missing}: see .ci/browser");
            // Not eprintln!, whose output is hidden for tests that pass.
            let _ = writeln!(
                stderr(),
                "\nTHE PAGES ARE NOT TESTED: {missing}. `.ci/browser` gets what they need.\n"
            );
            None
        }
    }
}

/// The source of axe, the accessibility checker. An error names what is missing.
fn ready() -> Result<String, String> {
    for program in ["chromium", "chromedriver"] {
        let quiet =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.map_err(|error| format!("{program}: {error}"))?;
    }
    let own =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/browser/node_modules/axe-core/axe.min.js");
    let path = std::env::var_os("FOLIO_AXE").map_or(own, PathBuf::from);
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Runs a command of the browser.
#[track_caller]
fn wait<T: Send>(command: impl Future<Output = WebDriverResult<T>> + Send) -> T {
    block_on(command).unwrap_or_else(|error| panic!("the browser: {error}"))
}

impl Browser {
    fn new(server: &Service, axe: String) -> Self {
        let mut chromedriver = Command::new("chromedriver");
        chromedriver.arg("--port=0");
        let chromedriver = Service::new(start_command(chromedriver), "successfully on port ");
        let mut capabilities = DesiredCapabilities::chrome();
        let added = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            .into_iter()
            .try_for_each(|flag| capabilities.add_arg(flag))
            .and_then(|()| capabilities.set_browser_log_level(LoggingPrefsLogLevel::All))
            .and_then(|()| capabilities.set_logging_prefs("performance", LoggingPrefsLogLevel::All));
        added.expect("known options");
        let driver = wait(WebDriver::new(chromedriver.url.as_str(), capabilities));
        wait(driver.set_script_timeout(2 * PATIENCE));
        let browser = Self { driver, _chromedriver: chromedriver, origin: server.url.clone(), axe };
        browser.resize(SCREEN.0, SCREEN.1);
        browser
    }

    /// Opens a page of the server.
    pub(crate) fn goto(&self, path: &str) {
        wait(self.driver.goto(format!("{}{path}", self.origin)));
    }

    /// Sends a command of the Chrome DevTools protocol.
    fn cdp(&self, command: &str, arguments: Value) {
        wait(self.driver.cdp().send_raw(command, arguments));
    }

    pub(crate) fn resize(&self, width: u32, height: u32) {
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.cdp("Emulation.setDeviceMetricsOverride", screen);
    }

    /// Sets the preferred color scheme of the system: light or dark.
    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.cdp("Emulation.setEmulatedMedia", features);
    }

    /// Evaluates a JavaScript expression.
    #[track_caller]
    pub(crate) fn value(&self, expression: &str) -> Value {
        let answer = wait(self.driver.execute(format!("return ({expression});"), Vec::new()));
        answer.json().clone()
    }

    #[track_caller]
    pub(crate) fn text(&self, expression: &str) -> String {
        let value = self.value(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}")).to_owned()
    }

    #[track_caller]
    pub(crate) fn number(&self, expression: &str) -> f64 {
        let value = self.value(expression);
        value.as_f64().unwrap_or_else(|| panic!("{expression} is {value}"))
    }

    /// Evaluates an expression in every frame until it is truthy, and returns its value.
    #[track_caller]
    pub(crate) fn until(&self, condition: &str) -> Value {
        self.wait_for(condition).unwrap_or_else(|| {
            panic!("timeout waiting for {condition}\n{}", self.text("document.body.innerText"))
        })
    }

    /// [`Browser::until`], or `None` after the timeout.
    fn wait_for(&self, condition: &str) -> Option<Value> {
        let script = format!(
            "const [limit, done] = arguments;
             const end = performance.now() + limit;
             const check = async () => {{
               const value = await ({condition});
               if (value || performance.now() > end) done(value || null);
               else requestAnimationFrame(check);
             }};
             check();"
        );
        let limit = json!(PATIENCE.as_millis());
        let value = wait(self.driver.execute_async(script, vec![limit])).json().clone();
        (!value.is_null()).then_some(value)
    }

    #[track_caller]
    fn find(&self, selector: &str) -> WebElement {
        wait(self.driver.find(By::Css(selector)))
    }

    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        wait(self.find(selector).click());
    }

    /// Moves the pointer to the middle of an element.
    #[track_caller]
    pub(crate) fn hover(&self, selector: &str) {
        let element = self.find(selector);
        wait(element.scroll_into_view());
        wait(self.driver.action_chain().move_to_element_center(&element).perform());
    }

    /// Clears a field and types into it.
    #[track_caller]
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        let field = self.find(selector);
        wait(field.clear());
        wait(field.send_keys(text));
    }

    /// Types text into the focused element.
    pub(crate) fn type_in(&self, text: &str) {
        wait(self.driver.action_chain().send_keys(text).perform());
    }

    /// Presses a key in the focused element.
    pub(crate) fn press(&self, key: Key) {
        wait(self.driver.action_chain().send_keys(key).perform());
    }

    /// Presses a key with Control.
    pub(crate) fn press_with_control(&self, key: Key) {
        let chain = self.driver.action_chain().key_down(Key::Control).send_keys(key);
        wait(chain.key_up(Key::Control).perform());
    }

    /// Checks the page with axe-core.
    #[track_caller]
    pub(crate) fn check_accessible(&self, context: &str) {
        wait(self.driver.execute(self.axe.clone(), Vec::new()));
        let script = "const done = arguments[0];
            axe.run().then(({ violations, passes }) => done({
              passes: passes.length,
              violations: violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) =>
                `${html} ${failureSummary}`).join('; ')}`),
            }));";
        let result = wait(self.driver.execute_async(script, Vec::new())).json().clone();
        assert_eq!(result["violations"], json!([]), "{context}");
        assert!(result["passes"].as_u64() >= Some(20), "axe-core checked something: {result}");
    }

    /// Checks that the page does not scroll horizontally at the width of a small phone.
    #[track_caller]
    pub(crate) fn check_narrow(&self, context: &str) {
        self.resize(360, 740);
        self.until("innerWidth === 360");
        // Figures are resized some time after the screen.
        let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        assert!(self.wait_for(fits).is_some(), "{context} scrolls horizontally: {}", self.value(WIDEST));
        self.resize(SCREEN.0, SCREEN.1);
    }

    /// Saves a screenshot in the directory FOLIO_SCREENSHOTS, if it is set.
    pub(crate) fn screenshot(&self, name: &str) {
        if let Some(directory) = std::env::var_os("FOLIO_SCREENSHOTS") {
            let path = Path::new(&directory).join(format!("{name}.png"));
            wait(self.driver.screenshot(&path));
        }
    }

    /// Checks that the console has the expected warnings and errors only, and that all requests went to the server.
    #[track_caller]
    pub(crate) fn finish(self, expected: &[&str]) {
        let console = wait(self.driver.browser_log());
        let complaints = console.iter().filter(|entry| matches!(entry.level.as_str(), "SEVERE" | "WARNING"));
        let (known, unknown): (Vec<&str>, Vec<&str>) = complaints
            .map(|entry| entry.message.as_str())
            .partition(|message| expected.iter().any(|part| message.contains(part)));
        assert!(unknown.is_empty(), "the console has: {unknown:#?}");
        assert!(known.is_empty() == expected.is_empty(), "the console lacks what was expected: {expected:?}");
        let requests = self.requests();
        assert!(
            requests.iter().any(|url| url.starts_with(&self.origin)),
            "there were requests: {requests:?}"
        );
        let is_own = |url: &String| {
            ["data:", "blob:"].iter().any(|scheme| url.starts_with(scheme))
                || url.strip_prefix(&self.origin).is_some_and(|path| path.starts_with('/'))
        };
        let foreign: Vec<String> = requests.into_iter().filter(|url| !is_own(url)).collect();
        assert_eq!(foreign, Vec::<String>::new(), "these requests left the origin {}", self.origin);
    }

    /// The URLs of all requests.
    fn requests(&self) -> Vec<String> {
        let entries = wait(self.driver.get_log("performance"));
        let events = entries.iter().filter_map(|entry| serde_json::from_str::<Value>(&entry.message).ok());
        let requests = events.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        requests
            .filter_map(|event| Some(event["message"]["params"]["request"]["url"].as_str()?.to_owned()))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This fails if the browser is already closed.
        let _ = block_on(self.driver.clone().quit());
    }
}
