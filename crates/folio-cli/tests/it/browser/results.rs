//! What the playground shows of a text: whose it is, and what becomes of it when a request fails.

use serde_json::json;

use super::driver::{Browser, open, serve};
use super::{FINISHED, generate, open_playground, place_with_run, written};
use crate::place::{Place, TINY};

/// A place with the runs `first`, of two blocks of two heads, and `second`, of one block of one head.
fn place_with_runs() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("runs")).expect("room");
    for (name, blocks, heads) in [("first", 2, 2), ("second", 1, 1)] {
        let sizes = format!("--n_blocks {blocks} --n_heads {heads}");
        let run = TINY.replace("--n_heads 2 --n_blocks 1", &sizes);
        place.ok(&format!("train {run} --save_losses --save_checkpoint --run_dir runs/{name}"));
    }
    place
}

/// Notes what the page asks the server for from now on, in `asked`: the path and the model.
fn note_requests(browser: &Browser) {
    browser.value(
        "(window.asked = [], window.ask = window.fetch, window.fetch = (path, options) => {
           asked.push(path + ' ' + (options?.body ? JSON.parse(options.body).model : ''));
           return ask(path, options);
         }, 0)",
    );
}

fn choose(browser: &Browser, select: &str, value: &str) {
    browser.value(&format!(
        "(document.getElementById('{select}').value = '{value}',
          document.getElementById('{select}').dispatchEvent(new Event('change')))"
    ));
}

#[test]
fn attention_and_samples_belong_to_the_model_that_wrote_them() {
    let place = place_with_runs();
    let server = serve(&place, "runs");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#prompt", "First");
    browser.fill("#max_tokens", "5");
    choose(&browser, "checkpoint", "first:checkpoint_1");
    let text = generate(&browser);
    browser.until("document.querySelectorAll('#attention-maps canvas').length === 2");
    let told = |selector: &str| browser.text(&format!("document.querySelector('{selector}').textContent"));
    assert_eq!(told(".sample .model"), "first, checkpoint_1");
    assert_eq!(told("#attention-of"), "of first, checkpoint_1");

    // With another run in the selector, the text and its heads are still the first's.
    note_requests(&browser);
    choose(&browser, "run", "second");
    assert_eq!(told(".sample .model"), "first, checkpoint_1");
    choose(&browser, "attention-block", "1");
    browser.until("asked.length === 1 && document.getElementById('attention').ariaBusy === 'false'");
    assert_eq!(browser.number("document.querySelectorAll('#attention-maps canvas').length"), 2.0);
    assert_eq!(browser.number("document.getElementById('attention-block').options.length"), 2.0);
    browser.click(".sample header button");
    browser.until(&format!("{FINISHED} && document.querySelectorAll('[data-start]').length === 10"));
    assert!(browser.text(&written(1)).starts_with(&text));
    browser.until("asked.length === 3 && document.getElementById('attention').ariaBusy === 'false'");
    let asked = browser.value("asked");
    let first = "first:checkpoint_1";
    let expected =
        ["/api/attention", "/v1/completions", "/api/attention"].map(|path| format!("{path} {first}"));
    assert_eq!(asked, json!(expected));

    // The next text is the second's.
    generate(&browser);
    browser.until("document.querySelectorAll('#attention-maps canvas').length === 1");
    assert!(told(".sample .model").starts_with("second, checkpoint_"));
    assert!(told("#attention-of").starts_with("of second, checkpoint_"));
    assert_eq!(browser.number("document.getElementById('attention-block').options.length"), 1.0);
    browser.finish(&[]);
}

#[test]
fn a_refused_request_leaves_the_results_as_they_are() {
    let place = place_with_run();
    let server = serve(&place, "run --max_tokens 10");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#prompt", "First");
    browser.fill("#max_tokens", "6");
    generate(&browser);
    browser.until("!document.getElementById('attention-content').hidden");
    browser.click("[data-index='3']");
    let shown =
        "document.getElementById('samples').innerHTML.replaceAll(/ (aria-busy|disabled)=\"[a-z]*\"/g, '')
                 + document.getElementById('attention-maps').children.length
                 + document.getElementById('attention-content').hidden";
    let before = browser.text(shown);
    browser.fill("#max_tokens", "11");
    for button in ["#generate", ".sample header button", "#alternatives li:nth-child(2) button"] {
        browser.value("document.getElementById('announcer').textContent = ''");
        browser.click(button);
        browser.until("document.getElementById('announcer').textContent.startsWith('Failed')");
        let error = browser.text("document.getElementById('error').textContent");
        assert_eq!(error, "max_tokens: must be at most 10", "{button}");
        assert_eq!(browser.text(shown), before, "{button}");
        assert_eq!(browser.value("document.getElementById('generate').disabled"), false, "{button}");
    }
    // A new text takes their place.
    browser.fill("#max_tokens", "2");
    generate(&browser);
    assert_eq!(browser.number("document.querySelectorAll('[data-start]').length"), 2.0);
    browser.finish(&["400 (Bad Request)", "400 (Bad Request)", "400 (Bad Request)"]);
}

#[test]
fn a_stream_that_dies_says_why_and_leaves_its_text() {
    let place = place_with_run();
    let check = |browser: &Browser, why: &str| {
        browser.until("document.getElementById('announcer').textContent.startsWith('Failed')");
        let error = browser.text("document.getElementById('error').textContent");
        assert!(error.contains(why), "{error}");
        assert!(browser.number("document.querySelectorAll('[data-start]').length") > 1.0);
        let header = browser.text("document.querySelector('.sample header').textContent");
        assert!(header.contains("interrupted"), "{header}");
        assert_eq!(browser.value("document.getElementById('generate').disabled"), false);
    };
    let endless = "--max_tokens 100000000";
    let server = serve(&place, &format!("run {endless} --time_limit 1"));
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#max_tokens", "100000000");
    browser.click("#generate");
    check(&browser, "the request exceeded the time limit of 1 s");
    browser.finish(&[]);

    let mut server = serve(&place, &format!("run {endless}"));
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#max_tokens", "100000000");
    browser.click("#generate");
    browser.until("document.querySelectorAll('[data-start]').length > 10");
    server.kill();
    check(&browser, "The connection was lost before the text was finished");
}

#[test]
fn selects_do_not_cut_off_what_matters() {
    let place = place_with_runs();
    let long = "runs/a_name_that_is_longer_than_any_select_2";
    std::fs::rename(place.path("runs/second"), place.path(long)).expect("our own directory");
    let server = serve(&place, "runs");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    // Of each option the text, and how many pixels it has too many; the arrow takes 20.
    let cut = "[...document.querySelectorAll('select')].flatMap((select) => {
        const style = getComputedStyle(select);
        const context = new OffscreenCanvas(1, 1).getContext('2d');
        context.font = style.font;
        const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - 20;
        return [...select.options].filter(({ text }) => context.measureText(text).width > room).map(({ text }) => text);
      })";
    assert_eq!(browser.value(cut), json!([]));
    let options = |id: &str| {
        browser.value(&format!("[...document.getElementById('{id}').options].map(({{ text }}) => text)"))
    };
    let runs = options("run");
    let shortened = runs[0].as_str().expect("a name");
    assert!(shortened.starts_with("a_name_") && shortened.ends_with("_select_2"), "{runs}");
    let name = "a_name_that_is_longer_than_any_select_2";
    choose(&browser, "run", name);
    let losses = place.numbers(&format!("{long}/losses.json"), "/eval_losses");
    let best = if losses[0] <= losses[1] { 0 } else { 1 };
    let checkpoints = options("checkpoint");
    let option = checkpoints[0].as_str().expect("a text");
    let loss = format!("{:.3}", losses[best]);
    let loss = loss.trim_end_matches('0');
    assert_eq!(option, format!("checkpoint_{} · {loss}", best + 1), "{checkpoints}");
    // In full below.
    let facts = browser.text("document.getElementById('facts').textContent");
    let start = format!("{name}, checkpoint_{}, eval loss ", best + 1);
    assert!(facts.starts_with(&start) && facts.contains(" (best)."), "{facts}");
    browser.finish(&[]);
}
