//! Completions equal the library's output, streamed or not, alone or with concurrent requests.

use std::sync::Arc;

use folio::generate::{Generator, PastContext, Request, Sampling};
use folio::model::{InferenceModel, WeightFormat};
use folio::run_dir::RunDir;
use folio::tokenizer::Tokenizer;
use folio_serve::Options;
use serde_json::{Value, json};

use crate::runs::{RUNS, plays, train};
use crate::site::{Site, limits, text_of};

/// The text that the library generates with the best checkpoint of a run (here the last), and the log probability of each token.
fn written(name: &str, prompt: &str, request: Request) -> (String, Vec<f32>) {
    let run = RunDir::new(RUNS.path().join(name));
    let tokenizer = Arc::new(run.tokenizer().expect("a tokenizer"));
    let (_, name) = run.best().expect("losses and checkpoints");
    let checkpoint = run.open_checkpoint(name).expect("a checkpoint");
    let format = WeightFormat::of(run.settings().expect("settings").precision);
    let config = checkpoint.state().identity.model;
    let model = InferenceModel::new(config, format, &checkpoint.parameters().expect("weights"));
    let prompt = tokenizer.encode(prompt).expect("known characters");
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    let mut generator = Generator::new(Arc::new(model), tokenizer);
    let request = Request { prompt, logprobs: Some(0), past_context: PastContext::Rolling, ..request };
    let result = generator.generate(request, |sampled| {
        text += sampled.text;
        logprobs.extend(sampled.logprob);
    });
    result.expect("a request that can be met");
    (text, logprobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_equal_the_library_s() {
    let site = Site::start().await;
    for (model, prompt) in [("plain", "First"), ("plain", ""), ("bytes", "👧"), ("search/run_1", "Speak")] {
        for (fields, sampling) in [
            (json!({}), Sampling::default()),
            (json!({ "temperature": 0 }), Sampling { temperature: 0.0, ..Sampling::default() }),
            (json!({ "temperature": 1e-60 }), Sampling { temperature: 0.0, ..Sampling::default() }),
            (json!({ "top_k": 100_000, "top_p": 1, "min_p": 0 }), Sampling::default()),
            (
                json!({ "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "temperature": 0.8 }),
                Sampling {
                    top_k: Some(5),
                    top_p: Some(0.9),
                    min_p: Some(0.01),
                    repetition_penalty: 1.3,
                    temperature: 0.8,
                },
            ),
        ] {
            let mut body = fields.clone();
            body["model"] = json!(model);
            body["prompt"] = json!(prompt);
            body["max_tokens"] = json!(90);
            body["n"] = json!(2);
            body["logprobs"] = json!(0);
            let answer = site.complete(body).await;
            for sample in 0..2 {
                // These tests use seed 7 by default; each sample has the next one.
                let request =
                    Request { max_new_tokens: 90, sampling, seed: 7 + sample, ..Request::default() };
                let (text, logprobs) = written(model, prompt, request);
                let choice = &answer["choices"][sample as usize];
                assert_eq!(text_of(choice), text, "{model} {prompt:?} {fields}");
                assert_eq!(choice["finish_reason"], "length");
                assert_eq!(choice["logprobs"]["token_logprobs"], json!(logprobs));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_has_the_logprobs_of_sampled_tokens() {
    let site = Site::start().await;
    for model in ["plain", "bytes"] {
        // Text generated after a prompt of one token, and the same text as a prompt, have the same logprobs within the context.
        let first = if model == "plain" { "F" } else { " " };
        let fields = json!({ "model": model, "prompt": first, "logprobs": 3, "echo": true });
        let mut sampled = fields.clone();
        sampled["max_tokens"] = json!(12);
        let sampled = site.complete(sampled).await["choices"][0].clone();
        let mut scored = fields.clone();
        scored["prompt"] = sampled["logprobs"]["token_ids"].clone();
        scored["max_tokens"] = json!(0);
        let answer = site.complete(scored.clone()).await;
        let scored = &answer["choices"][0];
        assert_eq!(scored["logprobs"], sampled["logprobs"]);
        assert_eq!(scored["text"], sampled["text"]);
        assert!(scored["logprobs"]["token_logprobs"][0].is_null() && scored["finish_reason"] == "length");
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    }
}

/// Joins the events of a stream into whole choices.
fn joined(events: &[Value], choices: usize) -> Vec<Value> {
    let mut whole: Vec<Value> =
        (0..choices).map(|index| json!({ "text": "", "index": index, "logprobs": null })).collect();
    for event in events {
        for piece in event["choices"].as_array().expect("choices") {
            let choice = &mut whole[piece["index"].as_u64().expect("a number") as usize];
            assert!(choice["finish_reason"].is_null(), "it ended before: {piece}");
            choice["text"] = json!(text_of(choice) + &text_of(piece));
            choice["finish_reason"] = piece["finish_reason"].clone();
            if let Some(logprobs) = piece["logprobs"].as_object() {
                if choice["logprobs"].is_null() {
                    choice["logprobs"] = json!(logprobs);
                    continue;
                }
                for (key, values) in logprobs {
                    let all = choice["logprobs"][key].as_array_mut().expect("a list");
                    all.extend(values.as_array().expect("a list").clone());
                }
            }
        }
    }
    whole
}

/// A variety of requests.
fn requests() -> Vec<Value> {
    vec![
        json!({}),
        json!({ "prompt": "" }),
        json!({ "prompt": null, "max_tokens": 3 }),
        json!({ "temperature": 0 }),
        json!({ "n": 3, "logprobs": 2 }),
        json!({ "n": 2, "echo": true, "logprobs": 0 }),
        json!({ "echo": true, "max_tokens": 0 }),
        json!({ "prompt": ["First", "Speak"], "n": 2 }),
        json!({ "prompt": [[5, 6, 7], [8]], "logprobs": 5 }),
        json!({ "prompt": [5, 6, 7], "echo": true }),
        json!({ "stop": ["e", "zz"], "max_tokens": 200, "logprobs": 1 }),
        json!({ "stop": "o", "n": 4, "max_tokens": 100 }),
        json!({ "model": "bytes", "prompt": "👧", "max_tokens": 60, "logprobs": 3 }),
        json!({ "model": "bytes", "prompt": "日", "max_tokens": 60, "stop": "👧", "logprobs": 0 }),
        json!({ "top_k": 3, "top_p": 0.9, "temperature": 0.7, "past_context": "exact", "max_tokens": 40 }),
        json!({ "model": "search/run_1", "seed": -5 }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_equal_whole_responses() {
    let site = Site::start().await;
    for request in requests() {
        let whole = site.complete(request.clone()).await;
        let choices = whole["choices"].as_array().expect("choices");
        let mut streamed = request.clone();
        streamed["stream_options"] = json!({ "include_usage": true });
        let mut events = site.stream(streamed).await.all().await;
        let last = events.pop().expect("an event");
        assert_eq!(last["usage"], whole["usage"], "{request}");
        assert_eq!(last["choices"], json!([]), "{request}");
        for event in &events {
            assert!(event["usage"].is_null() && event.get("usage").is_some(), "{event}");
            assert_eq!(event["object"], "text_completion");
            assert_eq!(event["id"], events[0]["id"]);
        }
        assert_eq!(json!(joined(&events, choices.len())), whole["choices"], "{request}");
        assert_eq!(whole["object"], "text_completion");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_do_not_depend_on_other_requests() {
    let site = Site::start().await;
    let mut alone = Vec::new();
    for request in requests() {
        alone.push(site.complete(request).await["choices"].clone());
    }
    // All at the same time, twice, which is more than there are slots.
    let twice = requests().into_iter().chain(requests());
    let together = futures_util::future::join_all(twice.map(|request| site.complete(request))).await;
    for (place, answer) in together.iter().enumerate() {
        let request = &requests()[place % alone.len()];
        assert_eq!(answer["choices"], alone[place % alone.len()], "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_differ_and_prompts_are_independent() {
    let site = Site::start().await;
    let answer = site.complete(json!({ "prompt": ["First", "Speak"], "n": 3 })).await;
    let texts: Vec<String> = answer["choices"].as_array().expect("choices").iter().map(text_of).collect();
    assert_eq!(texts.len(), 6);
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    for (place, prompt) in ["First", "Speak"].iter().enumerate() {
        let alone = site.complete(json!({ "prompt": prompt, "n": 3 })).await;
        for sample in 0..3 {
            assert_eq!(text_of(&alone["choices"][sample]), texts[3 * place + sample]);
        }
    }
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(10), &json!(120)), "{usage}");
    assert_eq!(usage["total_tokens"], 130);
    // Without a seed each call differs.
    let mut unseeded = Vec::new();
    for _ in 0..2 {
        unseeded.push(site.completed(json!({ "seed": null, "max_tokens": 60 })).await);
    }
    assert_ne!(unseeded[0], unseeded[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_end_texts() {
    let site = Site::start().await;
    for model in ["plain", "bytes"] {
        let free = json!({ "model": model, "prompt": "", "max_tokens": 120, "logprobs": 0 });
        let text = site.completed(free.clone()).await;
        // Any three consecutive characters, at their first occurrence.
        let characters: Vec<(usize, char)> = text.char_indices().collect();
        for window in characters.windows(3).skip(4).step_by(7) {
            let (start, end) = (window[0].0, window[2].0 + window[2].1.len_utf8());
            let stop = &text[start..end];
            let mut request = free.clone();
            request["stop"] = json!(["never in it", stop]);
            let answer = site.complete(request).await;
            let choice = &answer["choices"][0];
            let expected = &text[..text.find(stop).expect("it is in there")];
            assert_eq!(text_of(choice), expected, "{stop:?}");
            assert_eq!(choice["finish_reason"], "stop");
            let places = choice["logprobs"]["text_offset"].as_array().expect("places");
            let length = expected.chars().count() as u64;
            let inside = places.iter().all(|place| place.as_u64().expect("a number") < length);
            assert!(inside, "tokens of the stop string are included: {choice}");
        }
        assert_eq!(site.complete(free).await["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_have_tokens_offsets_and_alternatives() {
    let site = Site::start().await;
    for model in ["plain", "bytes"] {
        for temperature in [0.0, 1.0] {
            let request = json!({
                "model": model, "prompt": "", "max_tokens": 80, "temperature": temperature, "logprobs": 20,
            });
            let choice = site.complete(request).await["choices"][0].clone();
            let text: Vec<char> = text_of(&choice).chars().collect();
            let list = |key: &str| choice["logprobs"][key].as_array().expect(key).clone();
            let tokens = list("tokens");
            assert_eq!(tokens.len(), 80);
            for (place, token) in tokens.iter().enumerate() {
                let token = token.as_str().expect("a string");
                let logprob = list("token_logprobs")[place].as_f64().expect("a number");
                let offset = list("text_offset")[place].as_u64().expect("a number") as usize;
                if !token.starts_with("bytes:") {
                    let length = token.chars().count();
                    assert_eq!(token, text[offset..offset + length].iter().collect::<String>());
                }
                let top = list("top_logprobs")[place].as_object().expect("an object").clone();
                let own = top[token].as_f64().expect("its own");
                assert!(logprob <= 0.0 && own == logprob, "{token} {logprob} {top:?}");
                let greatest =
                    top.values().map(|value| value.as_f64().expect("a number")).fold(-1e9, f64::max);
                assert!(temperature > 0.0 || logprob == greatest, "greedy takes the likeliest");
                let sum: f64 = top.values().map(|value| value.as_f64().expect("a number").exp()).sum();
                // Each of 21 log probabilities was rounded to f32 and its probability to f64.
                assert!(sum <= 1.0 + 21.0 * f64::from(f32::EPSILON) * 10.0, "{sum}");
                assert!((20..=21).contains(&top.len()), "{top:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn special_tokens_are_read_on_request_and_end_texts() {
    let place = tempfile::tempdir().expect("room");
    let tokenizer = Tokenizer::train_bpe(&plays(), 300, &["<|endoftext|>"]).expect("enough pairs");
    train(&place.path().join("ends"), Arc::new(tokenizer), &plays());
    let options = Options { runs: vec![place.path().join("ends")], limits: limits(), ..Options::default() };
    let site = Site::serving(options).await;
    let ask = |fields: Value| {
        let mut body = json!({ "model": "ends", "prompt": "First<|endoftext|>Second", "max_tokens": 1 });
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        site.complete(body)
    };
    let tokens = |answer: Value| answer["usage"]["prompt_tokens"].as_u64().expect("a number");
    let special = tokens(ask(json!({ "special_tokens": true })).await);
    let ordinary = tokens(ask(json!({})).await);
    assert_eq!(tokens(ask(json!({ "special_tokens": false })).await), ordinary);
    assert!(special < ordinary, "{special} tokens, {ordinary} without special ones");

    // At this temperature all 300 tokens are about equally likely.
    let hot = json!({ "temperature": 1000, "max_tokens": 4000, "seed": 5, "logprobs": 0 });
    let answer = ask(hot).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert!(!text_of(choice).contains("<|endoftext|>"));
    let sampled = answer["usage"]["completion_tokens"].as_u64().expect("a number");
    // The end token is counted, but not part of the text.
    assert_eq!(choice["logprobs"]["token_ids"].as_array().expect("a list").len() as u64, sampled - 1);
}
