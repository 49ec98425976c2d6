//! The web pages of `folio serve` in a real browser.
#![cfg(unix)]

mod driver;
mod results;

use rustix::process::Signal;
use serde_json::{Value, json};
use thirtyfour::Key;

use crate::place::{MODEL, Place, TINY};
use crate::running::start;
use driver::{Browser, open, serve};

/// JavaScript condition: the last request has finished.
const FINISHED: &str = "document.getElementById('announcer').textContent.startsWith('Finished')";

/// The generated text of a sample, without the prompt.
fn written(sample: usize) -> String {
    format!("document.querySelectorAll('.sample [role=listbox]')[{}].textContent", sample - 1)
}

/// A place with a run whose model has two blocks of two heads.
fn place_with_run() -> Place {
    let place = Place::new();
    let run = TINY.replace("--n_blocks 1", "--n_blocks 2");
    place.ok(&format!("train {run} --save_checkpoint --run_dir run"));
    place
}

/// Opens the playground and waits until it has loaded.
fn open_playground(browser: &Browser) {
    browser.goto("/");
    browser.until("document.getElementById('checkpoint').options.length > 0");
}

/// Clicks Generate, waits for the end and returns the text of the first sample.
#[track_caller]
fn generate(browser: &Browser) -> String {
    browser.click("#generate");
    browser.until(FINISHED);
    browser.text(&written(1))
}

/// The API's answer to a completion request.
#[track_caller]
fn asked_of_api(browser: &Browser, settings: &Value) -> Value {
    let expression = format!(
        "fetch('/v1/completions', {{ method: 'POST', headers: {{ 'content-type': 'application/json' }},
           body: JSON.stringify({settings}) }}).then((answer) => answer.json()).then(({{ choices }}) => choices[0])"
    );
    browser.until(&expression)
}

#[test]
fn generated_text_is_streamed_to_the_page() {
    let place = place_with_run();
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#prompt", "First Citizen:");
    browser.fill("#max_tokens", "1500");
    // Records the number of tokens at each change.
    browser.value(
        "window.seen = [], new MutationObserver(() => seen.push(document.querySelectorAll('[data-start]').length))
           .observe(document.getElementById('samples'), { childList: true, subtree: true })",
    );
    browser.press_with_control(Key::Enter);
    browser.until(FINISHED);
    assert_eq!(browser.number("document.querySelectorAll('.sample [data-start]').length"), 1500.0);
    let seen = browser.number("new Set(seen.filter((count) => count > 0)).size");
    assert!(seen >= 5.0, "the text came in {seen} parts");
    assert_eq!(browser.text("document.querySelector('.sample .prompt').textContent"), "First Citizen:");
    assert!(
        browser
            .text("document.querySelector('.sample header').textContent")
            .contains("stopped at the token limit")
    );

    // The page and the API give the same text for the same settings and seed, and another text for another seed.
    browser.fill("#max_tokens", "60");
    browser.fill("#temperature", "1");
    browser.fill("#seed", "7");
    let text = generate(&browser);
    let settings = json!({ "model": "run", "prompt": "First Citizen:", "max_tokens": 60, "temperature": 1, "seed": 7,
                           "repetition_penalty": 1 });
    assert_eq!(text, asked_of_api(&browser, &settings)["text"]);
    assert_eq!(text, generate(&browser));
    browser.fill("#seed", "8");
    assert_ne!(text, generate(&browser));
    // The seed does not matter at temperature 0.
    browser.fill("#temperature", "0");
    let greedy = generate(&browser);
    browser.fill("#seed", "");
    assert_eq!(greedy, generate(&browser));

    // The text ends before the stop string.
    let stop: String = text.chars().skip(30).take(3).collect();
    browser.fill("#temperature", "1");
    browser.fill("#seed", "7");
    browser.fill("#stop", &stop.replace('\n', "\\n"));
    let (before, _) = text.split_once(&stop).expect("a part of it");
    assert_eq!(generate(&browser), before);
    assert!(browser.text("document.querySelector('.sample header').textContent").contains(", finished"));
    browser.finish(&[]);
}

#[test]
fn tokens_show_their_probability_and_alternatives() {
    let place = place_with_run();
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#max_tokens", "40");
    browser.fill("#temperature", "0");
    let text = generate(&browser);
    let settings = json!({ "model": "run", "prompt": "", "max_tokens": 40, "temperature": 0, "logprobs": 0 });
    let reported = asked_of_api(&browser, &settings)["logprobs"]["token_logprobs"].clone();
    let labels =
        browser.value("[...document.querySelectorAll('[data-start]')].map(({ ariaLabel }) => ariaLabel)");
    let (reported, labels) = (reported.as_array().expect("numbers"), labels.as_array().expect("labels"));
    assert_eq!((reported.len(), labels.len()), (40, 40));
    for (logprob, label) in reported.iter().zip(labels) {
        let percent = 100.0 * logprob.as_f64().expect("a number").exp();
        let shown = label.as_str().and_then(|label| label.rsplit_once(", ")).expect("a probability").1;
        // The page shows two digits.
        let rounding = if percent < 9.95 { 0.051 } else { 0.51 };
        let shown_percent: f64 = shown.trim_end_matches(" %").parse().expect("a number");
        assert!((shown_percent - percent).abs() <= rounding, "{label} is {percent} %");
    }
    assert_eq!(browser.value("document.getElementById('inspector').hidden"), true);
    browser.hover("[data-index='5']");
    browser.until("!document.getElementById('inspector').hidden");
    let line = browser.text("document.getElementById('token-line').textContent");
    let label = browser.text("document.querySelector('[data-index=\"5\"]').ariaLabel");
    let (name, probability) = label.rsplit_once(", ").expect("a name and a probability");
    assert!(line.starts_with(&format!("{name} {probability}, token ")), "{line} is not {label}");
    let alternatives =
        browser.value("[...document.querySelectorAll('#alternatives b')].map((b) => b.textContent)");
    let alternatives: Vec<f64> = alternatives
        .as_array()
        .expect("a list")
        .iter()
        .map(|text| {
            text.as_str().and_then(|text| text.trim_end_matches(" %").parse().ok()).expect("a number")
        })
        .collect();
    assert!(alternatives.len() >= 5 && alternatives.is_sorted_by(|a, b| a >= b), "{alternatives:?}");
    assert!(alternatives.iter().sum::<f64>() < 101.0, "{alternatives:?}");
    // The likeliest token was chosen, and is marked as current.
    assert_eq!(
        browser.value("!!document.querySelector('#alternatives li:first-child [aria-current]')"),
        true
    );

    // Choosing another token replaces it, and generation continues from there.
    let instead = browser.text("document.querySelectorAll('#alternatives button')[1].firstChild.textContent");
    browser.click("#alternatives li:nth-child(2) button");
    browser.until(&format!("{FINISHED} && document.querySelectorAll('[data-start]').length === 46"));
    let branched = browser.text(&written(1));
    let shared: String = text.chars().take(5).collect();
    assert!(branched.starts_with(&shared) && !branched.starts_with(&text[..6]), "{branched} after {text}");
    assert!(
        browser
            .text("document.querySelector('[data-index=\"5\"]').ariaLabel")
            .starts_with(instead.trim_end())
    );
    // Continue extends the text.
    browser.click(".sample header button");
    browser.until(&format!("{FINISHED} && document.querySelectorAll('[data-start]').length === 86"));
    assert!(browser.text(&written(1)).starts_with(&branched));
    browser.finish(&[]);
}

#[test]
fn the_playground_can_be_used_with_the_keyboard_alone() {
    let place = place_with_run();
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    let focus = |selector: &str| format!("document.activeElement.matches({})", json!(selector));
    let tab_to = |selector: &str| {
        for _ in 0..40 {
            if browser.value(&focus(selector)) == true {
                return;
            }
            browser.press(Key::Tab);
        }
        panic!("Tab does not lead to {selector}");
    };
    tab_to(".skip");
    tab_to("#prompt");
    browser.type_in("First");
    browser.press_with_control(Key::Enter);
    browser.until(FINISHED);
    tab_to("[data-index='0']");
    for _ in 0..3 {
        browser.press(Key::Right);
    }
    assert_eq!(browser.value(&focus("[data-index=\"3\"][aria-selected=true]")), true);
    let line = browser.text("document.getElementById('token-line').textContent");
    assert!(line.contains(" %, token "), "{line}");
    for (key, index) in [(Key::Left, 2), (Key::End, 199), (Key::Right, 199), (Key::Home, 0)] {
        browser.press(key.clone());
        assert_eq!(browser.number("document.activeElement.dataset.index * 1"), f64::from(index), "{key:?}");
    }
    browser.press(Key::Down);
    let lines = "document.activeElement.offsetTop > document.querySelector('[data-index=\"0\"]').offsetTop";
    assert_eq!(browser.value(lines), true, "Down leads to the next line");
    // The whole text is one tab stop; the next ones are the plain text and the alternatives.
    browser.press(Key::Tab);
    assert_eq!(browser.value(&focus("summary")), true);
    tab_to("#alternatives button");
    tab_to("#attention-text [role=option]");
    browser.finish(&[]);
}

#[test]
fn attention_is_shown_for_each_head() {
    let place = place_with_run();
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#prompt", "First");
    browser.fill("#max_tokens", "8");
    generate(&browser);
    browser.until("document.querySelectorAll('#attention-maps canvas').length === 2");
    // Thirteen tokens give thirteen rows. Cells right of the diagonal are transparent; the others have different shades.
    // The pixels are read from a copy: Chromium warns about reading a canvas twice, and the console must stay empty.
    let drawn = "[...document.querySelectorAll('#attention-maps canvas')].map((canvas) => {
        const { width, height } = canvas;
        const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, width, height);
        const cells = Array.from({ length: data.length / 4 }, (_, at) => data.slice(4 * at, 4 * at + 4).join());
        const isAhead = (_, at) => at % width > Math.floor(at / width);
        return { width, clear: cells.filter(isAhead).every((cell) => cell.endsWith(',0')),
                 filled: cells.filter((cell, at) => !isAhead(cell, at)).every((cell) => cell.endsWith(',255')),
                 shades: new Set(cells).size, cells: cells.join(' ') };
      })";
    let first = browser.value(drawn);
    for map in first.as_array().expect("maps") {
        assert_eq!((&map["width"], &map["clear"], &map["filled"]), (&json!(13), &json!(true), &json!(true)));
        assert!(map["shades"].as_u64() >= Some(10), "{map}");
    }
    assert_ne!(first[0]["cells"], first[1]["cells"], "heads differ");
    // The center of a map is the attention of the seventh token to itself.
    browser.hover("#attention-maps canvas");
    let reported = browser.text("document.getElementById('attention-cell').textContent");
    let seventh = browser.text("document.querySelectorAll('#attention-text [role=option]')[6].ariaLabel");
    assert!(
        reported.starts_with(&format!("Head 1: {seventh} → {seventh}: ")) && reported.ends_with('%'),
        "{reported}"
    );
    // The first token attends only to itself; the table has the same in words.
    browser.click("#attention-text [role=option]");
    let table = browser
        .value("[...document.querySelectorAll('#attention-table tbody tr')].map((row) => row.innerText)");
    assert_eq!(table, json!(["1\t“F” 100 %", "2\t“F” 100 %"]));
    // Selecting a token of the text selects it in the maps.
    browser.click(".sample [data-index='2']");
    browser.until("document.querySelector('#attention-text [aria-selected=true]').dataset.index === '7'");
    let shaded = "document.querySelectorAll('#attention-text .a5').length";
    assert!(browser.number(shaded) >= 1.0);
    browser.value("document.getElementById('attention-block').value = '1'");
    browser.value("document.getElementById('attention-block').dispatchEvent(new Event('change'))");
    browser.until(&format!("JSON.stringify({drawn}) !== {}", json!(first.to_string())));
    browser.finish(&[]);
}

#[test]
fn generation_can_be_stopped_and_several_samples_generated() {
    let place = place_with_run();
    let server = serve(&place, "run --max_tokens 16000");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#n", "16");
    browser.fill("#max_tokens", "4001");
    browser.click("#generate");
    browser.until("document.getElementById('announcer').textContent.startsWith('Failed')");
    let refusal = "max_tokens: 16 choices of 4001 tokens exceed the limit of 64000 tokens per request";
    assert_eq!(browser.text("document.getElementById('error').textContent"), refusal);
    assert_eq!(browser.number("document.querySelectorAll('.sample').length"), 0.0);

    // The key is pressed as soon as the page has drawn some of the tokens.
    browser.fill("#max_tokens", "4000");
    browser.click("#generate");
    let disabled = browser.until(
        "document.querySelectorAll('[data-start]').length > 100 && (() => {
           const buttons = [...document.querySelectorAll('.sample button, #generate')];
           const disabled = buttons.filter(({ textContent }) => textContent !== 'Copy').map(({ disabled }) => disabled);
           document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }));
           return disabled;
         })()",
    );
    assert_eq!(disabled, json!(vec![true; 17]));
    browser.until("document.getElementById('announcer').textContent.startsWith('Stopped')");
    let count = browser.number("document.querySelectorAll('[data-start]').length");
    assert!(count < 64_000.0, "it was stopped after {count} tokens");
    assert_eq!(browser.value("document.getElementById('stop-button').disabled"), true);

    browser.fill("#n", "3");
    browser.fill("#max_tokens", "30");
    generate(&browser);
    let texts = browser
        .value("[...document.querySelectorAll('.sample [role=listbox]')].map((list) => list.textContent)");
    let texts = texts.as_array().expect("a list");
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");

    // Attention is not requested for a text that was replaced.
    browser.until("!document.getElementById('attention-content').hidden");
    browser.fill("#n", "16");
    browser.fill("#max_tokens", "4000");
    browser.click("#generate");
    let attention = browser.until(
        "document.querySelectorAll('[data-start]').length > 100 && (() => {
           document.getElementById('attention-block').dispatchEvent(new Event('change'));
           const busy = document.querySelector('#attention [aria-busy=true], #attention[aria-busy=true]');
           const seen = { hidden: document.getElementById('attention-content').hidden, busy: busy !== null };
           document.getElementById('stop-button').click();
           return seen;
         })()",
    );
    assert_eq!(attention, json!({ "hidden": true, "busy": false }));
    browser.until("document.getElementById('announcer').textContent.startsWith('Stopped')");
    browser.finish(&["400 (Bad Request)"]);
}

#[test]
fn a_stream_leaves_the_browser_time_for_other_work() {
    let place = place_with_run();
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    // All events arrive at once, and the page is busy for a millisecond with each. A timer counts those before it, and aborts.
    let counted = browser.until(
        r#"import('/assets/stream.js').then(async ({ complete }) => {
             const event = `data: ${JSON.stringify({ choices: [{ index: 0 }] })}\n\n`;
             window.fetch = async () => new Response(event.repeat(500) + 'data: [DONE]\n\n');
             let events = 0;
             let before = null;
             const controller = new AbortController();
             const read = async () => {
               for await (const choice of complete({}, controller.signal)) {
                 if (events === 0) setTimeout(() => (before = events, controller.abort()));
                 events += 1;
                 const end = performance.now() + 1;
                 while (performance.now() < end);
               }
             };
             const error = await read().catch(({ name }) => name);
             return { error, events, before };
           })"#,
    );
    assert_eq!(counted["error"], "AbortError", "{counted}");
    assert!(counted["events"].as_u64().is_some_and(|events| events < 500), "{counted}");
    assert_eq!(counted["before"], counted["events"]);
    browser.finish(&[]);
}

#[test]
fn tokens_that_are_parts_of_characters_are_marked() {
    let place = Place::new();
    // Characters of two to four bytes, which a byte-level vocabulary splits into several tokens.
    place.write("plays.txt", "äöü – “日本語” 🦀🐙\n".repeat(60));
    let tokenizer = "--tokenizer_type corpus_bpe --vocab_size 258";
    place.ok(&format!("train {TINY} {tokenizer} --save_checkpoint --run_dir run"));
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    open_playground(&browser);
    browser.fill("#prompt", "日");
    browser.fill("#seed", "1");
    browser.fill("#temperature", "0.5");
    let text = generate(&browser);
    let settings = json!({ "model": "run", "prompt": "日", "max_tokens": 200, "temperature": 0.5, "seed": 1,
                           "repetition_penalty": 1 });
    assert_eq!(text, asked_of_api(&browser, &settings)["text"]);
    assert!(browser.number("document.querySelectorAll('.sample .token.part').length") >= 1.0, "{text}");
    assert!(!browser.text(&written(1)).contains("bytes:"), "{text}");
    let label = browser.text("document.querySelector('.sample .token.part').ariaLabel");
    assert!(label.starts_with("bytes "), "{label}");
    browser.finish(&[]);
}

#[test]
fn both_pages_are_accessible_and_fit_a_phone_in_both_themes() {
    let place = place_with_run();
    let server = serve(&place, "run");
    let Some(browser) = open(&server) else { return };
    let paper = "getComputedStyle(document.body).backgroundColor";
    for (scheme, colour) in [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)")] {
        browser.prefer(scheme);
        open_playground(&browser);
        assert_eq!(browser.text(paper), colour);
        browser.check_accessible(&format!("the empty playground, {scheme}"));
        browser.fill("#n", "2");
        browser.fill("#prompt", "Averylongwordthatdoesnotfitaline".repeat(4).as_str());
        generate(&browser);
        browser.until("!document.getElementById('attention-content').hidden");
        browser.click(".sample [data-index='3']");
        browser.screenshot(&format!("playground-{scheme}"));
        browser.check_accessible(&format!("the playground, {scheme}"));
        browser.check_narrow(&format!("the playground, {scheme}"));
        browser.goto("/training");
        browser.until("document.querySelectorAll('#plot-loss .scatterlayer path.js-line').length >= 1");
        browser.screenshot(&format!("training-{scheme}"));
        browser.check_accessible(&format!("the training page, {scheme}"));
        browser.check_narrow(&format!("the training page, {scheme}"));
    }
    // A theme chosen on the page overrides the system setting, is remembered, and applies to both pages.
    browser.click("#theme");
    assert_eq!(browser.text(paper), "rgb(255, 255, 255)");
    open_playground(&browser);
    assert_eq!(browser.text(paper), "rgb(255, 255, 255)");
    assert_eq!(browser.text("document.getElementById('theme').textContent"), "Theme: light");
    browser.finish(&[]);
}

#[test]
fn curves_grow_while_a_run_is_in_progress() {
    let place = Place::new();
    let run = "--block_sizes 16 --batch_sizes 4 --threads 1 --sample_tokens 20";
    place.ok(&format!("train {MODEL} {run} --num_epochs 2 --run_dir runs/first"));
    let training = start(&place, &format!("train {MODEL} {run} --num_epochs 1000000 --run_dir runs/second"));
    assert!(training.until(" parameters, "), "it trains");
    let server = serve(&place, "runs");
    let Some(browser) = open(&server) else {
        training.signal(Signal::KILL);
        training.end();
        return;
    };
    browser.goto("/training");
    browser.until("document.querySelectorAll('#run-rows tr').length === 2");
    browser.until(
        "[...document.querySelectorAll('.state')].some(({ textContent }) => textContent === 'running')",
    );
    // The run in progress is selected by default.
    let chosen =
        "[...document.querySelectorAll('#run-rows label')].filter((label) => label.querySelector(':checked'))
                  .map(({ textContent }) => textContent).join()";
    browser.until(&format!("({chosen}).endsWith('second')"));
    let last = "Math.max(...document.getElementById('plot-loss').data.flatMap(({ x }) => x))";
    browser.until("document.getElementById('plot-loss').data?.[0].x.length > 2");
    let first = browser.number(last);
    browser.until(&format!("{last} > {first}"));
    // Each request fetches only new data.
    let asked =
        "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/records?after='))
                 .map(({ name }) => Number(name.split('after=')[1]))";
    browser.until(&format!("({asked}).length >= 3"));
    let asked = browser.value(asked);
    let asked: Vec<f64> = asked.as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    assert!(asked[0] == 0.0 && asked[1..].iter().all(|after| *after > 0.0) && asked.is_sorted(), "{asked:?}");
    browser.until("document.querySelector('#run-samples pre')?.textContent.length > 0");

    // Compare it with another run.
    let names = browser.number("document.getElementById('plot-loss').data.length");
    browser.click("#run-rows input:not(:checked)");
    browser.until(&format!("document.getElementById('plot-loss').data.length === 2 * {names}"));
    browser.until("document.querySelectorAll('#run-samples pre').length === 2");

    training.signal(Signal::INT);
    training.end();
    browser.until("/second is (stopped|finished)/.test(document.getElementById('announcer').textContent)");
    browser.finish(&[]);
}

#[test]
fn errors_of_the_server_are_shown() {
    let place = place_with_run();
    let server = serve(&place, "run --api-key secret");
    let Some(browser) = open(&server) else { return };
    browser.goto("/");
    browser.until("document.getElementById('key-dialog').open");
    browser.check_accessible("the dialog");
    // The page asks again after a wrong key, and remembers the right one.
    for key in ["wrong", "secret"] {
        browser.until("document.getElementById('key-dialog').open");
        browser.fill("#key", key);
        browser.press(Key::Enter);
    }
    browser.until("document.getElementById('checkpoint').options.length > 0");
    browser.goto("/training");
    browser.until("document.querySelectorAll('#run-rows tr').length === 1");
    open_playground(&browser);
    browser.fill("#max_tokens", "1000000000");
    browser.click("#generate");
    browser.until("document.getElementById('error').textContent.includes('max_tokens')");
    browser.check_accessible("an error");
    // The next request removes the message.
    browser.fill("#max_tokens", "3");
    generate(&browser);
    assert_eq!(browser.value("document.getElementById('error').hidden"), true);
    browser.finish(&["status of 401", "status of 400"]);
}
