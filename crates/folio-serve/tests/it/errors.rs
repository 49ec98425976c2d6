//! What cannot be met is answered with OpenAI's error object, whatever it is.

use serde_json::{Value, json};

use crate::site::{Site, limits};
use folio_serve::Limits;

/// Sends a body to completions; the answer must be an error of this status that names the field and says `part`.
async fn check(site: &Site, body: impl Into<String>, status: u16, param: Option<&str>, part: &str) {
    check_at(site, "/v1/completions", body.into(), status, param, part).await;
}

async fn check_at(site: &Site, path: &str, body: String, status: u16, param: Option<&str>, part: &str) {
    let shown: String = body.chars().take(200).collect();
    let request = site.client.post(site.url(path)).header("content-type", "application/json").body(body);
    let response = request.send().await.expect("an answer");
    let got = response.status().as_u16();
    let text = response.text().await.expect("text");
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let error = &answer["error"];
    let message = error["message"].as_str().unwrap_or_else(|| panic!("{shown}: {text}"));
    assert_eq!((got, error["param"].as_str()), (status, param), "{shown}: {text}");
    assert!(message.contains(part), "{shown}: {text} lacks {part:?}");
    check_words(message);
    assert!(error["type"].is_string() && error.get("code").is_some(), "{text}");
    assert_eq!(answer.as_object().expect("an object").len(), 1, "{text}");
}

/// Messages are for people: nothing in them is a parser's or Rust's word.
#[track_caller]
fn check_words(message: &str) {
    let words = [
        "expected",
        "invalid type",
        "invalid value",
        "missing field",
        "unknown variant",
        "EOF",
        "u64",
        "u32",
        "i64",
        "f64",
        "`",
        "at line 1 column",
        "Some(",
        "None",
        "serde",
        "struct",
        "trailing",
        "recursion",
    ];
    for word in words {
        assert!(!message.contains(word), "{word:?} is not for people: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_met() {
    let small = Limits { tokens: 500, request_tokens: 1000, prompt_tokens: 300, choices: 8, ..limits() };
    let site = Site::with(small).await;
    // Without a model, nothing.
    let bad = [
        ("", None, "object"),
        ("{", None, "ends before its JSON does, at line 1, column 1"),
        ("null", None, "object"),
        ("[]", None, "object"),
        ("[\"plain\", \"First\"]", None, "object"),
        ("3", None, "object"),
        ("{\"model\": NaN}", None, "not valid JSON, at line 1"),
        ("{\"model\": \"plain\"} {}", None, "more text after its JSON"),
        (
            "{\"model\": \"plain\", \"temperature\": 1e999}",
            Some("temperature"),
            "temperature: the number is too large",
        ),
        (
            "{\"model\": \"plain\", \"prompt\": [-1e400]}",
            Some("prompt"),
            "prompt[0]: the number is too large",
        ),
        ("{\"model\": \"plain\", \"temperature\": Infinity}", None, "not valid JSON"),
        ("{\"model\": \"plain\", \"prompt\": \"\\ud800\"}", None, "not valid JSON"),
        ("{}", Some("model"), "model: is missing: GET /v1/models"),
        ("{\"model\": \"plain\", \"model\": \"plain\"}", Some("model"), "more than once"),
    ];
    for (body, param, part) in bad {
        check(&site, body, 400, param, part).await;
    }
    check(&site, format!("{{\"a\": {}", "[".repeat(100_000)), 400, None, "body").await;
    check(&site, format!("{{\"prompt\": {}", "[".repeat(100_000)), 400, Some("prompt"), "must be a token")
        .await;
    let bytes: Vec<u8> = b"{\"model\": \"\xff\"}".to_vec();
    let request = site.client.post(site.url("/v1/completions")).header("content-type", "application/json");
    assert_eq!(request.body(bytes).send().await.expect("an answer").status(), 400);

    let fields: &[(&str, Value, &str)] = &[
        ("model", json!(3), "model: must be a string, not 3"),
        ("prompt", json!(3), "a string, a list of tokens"),
        ("prompt", json!({}), "a string, a list of tokens"),
        ("prompt", json!([]), "empty list"),
        ("prompt", json!(["a", 3]), "must not mix"),
        ("prompt", json!([3, [3]]), "must not mix"),
        ("prompt", json!([-1]), "prompt[0]: must be a string, a token (a whole number below 2^32)"),
        ("prompt", json!([1, 1.5]), "prompt[1]: must be a string, a token"),
        ("prompt", json!([u64::MAX]), "below 2^32"),
        ("prompt", json!([1_000_000]), "outside the vocabulary"),
        ("prompt", json!([[[3]]]), "prompt[0][0]: must be a token"),
        ("prompt", json!("日"), "日"),
        ("prompt", json!("a".repeat(301)), "301 tokens"),
        ("prompt", json!(vec![1; 301]), "301 tokens"),
        ("max_tokens", json!(501), "at most 500"),
        ("prompt", json!(["a".repeat(151), "a".repeat(150)]), "301 tokens"),
        ("max_tokens", json!(-1), "must be a whole number, 0 or more, not -1"),
        ("max_tokens", json!(1.5), "a whole number, 0 or more, not 1.5"),
        ("max_tokens", json!("20"), "a whole number, 0 or more, not \"20\""),
        ("temperature", json!(-0.1), "must be at least 0, not -0.1"),
        ("temperature", json!("hot"), "must be a number, not \"hot\""),
        ("top_p", json!(1.1), "at most 1, not 1.1"),
        ("n", json!(0), "at least 1"),
        ("n", json!(9), "at most 8"),
        ("n", json!(u64::MAX), "at most 8"),
        ("best_of", json!(2), "equal to n"),
        ("stream", json!("yes"), "must be true or false, not \"yes\""),
        (
            "stream_options",
            json!({ "include_usage": 1 }),
            "stream_options.include_usage: must be true or false",
        ),
        ("logprobs", json!(21), "0 to 20"),
        ("logprobs", json!(true), "0 to 20, not true"),
        ("echo", json!(1), "true or false"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "at most 4"),
        ("stop", json!(["x".repeat(257)]), "256 bytes"),
        ("stop", json!({ "a": 1 }), "a string or a list"),
        ("seed", json!(1.5), "a whole number"),
        ("seed", json!("7"), "a whole number"),
        ("presence_penalty", json!(0.5), "must be 0"),
        ("frequency_penalty", json!(-0.5), "must be 0"),
        ("suffix", json!("end"), "not supported"),
        ("logit_bias", json!({ "3": 100 }), "not supported"),
        ("past_context", json!("sideways"), "rolling, exact or stop"),
        ("top_k", json!(-1), "a whole number, 0 or more"),
        ("min_p", json!(2), "must be between 0 and 1"),
        ("repetition_penalty", json!(0), "repetition_penalty"),
    ];
    for (field, value, part) in fields {
        let mut body = json!({ "model": "plain", "prompt": "First", "max_tokens": 2 });
        body[*field] = value.clone();
        check(&site, body.to_string(), 400, Some(field), part).await;
    }
    let many = json!({ "model": "plain", "prompt": ["a", "b", "c"], "max_tokens": 400 });
    check(&site, many.to_string(), 400, Some("max_tokens"), "3 texts of 400 tokens").await;
    // More than the context, where the text is to end there.
    let long = json!({ "model": "plain", "prompt": "a".repeat(40), "past_context": "stop" });
    check(&site, long.to_string(), 400, Some("prompt"), "context").await;
    // Fields that other servers know are passed over.
    site.complete(
        json!({ "user": "me", "logit_bias": {}, "presence_penalty": 0, "best_of": 1, "extra": [1] }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_that_cannot_be_met() {
    let site = Site::start().await;
    let user = json!({ "role": "user", "content": "First" });
    for (field, value, part) in [
        ("messages", json!(null), "a list of one message or more"),
        ("messages", json!([]), "a list of one message or more"),
        ("messages", json!("First"), "a list of messages, not \"First\""),
        ("messages", json!(["First"]), "messages[0]: must be a message, an object with role and content"),
        ("messages", json!([user, null]), "not null"),
        ("messages", json!([{ "content": "First" }]), "messages[0]: has no role"),
        ("messages", json!([{ "role": 3, "content": "First" }]), "messages[0].role: must be a string, not 3"),
        ("messages", json!([{ "role": "user", "content": 3 }]), "messages[0].content: must be a string"),
        (
            "messages",
            json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
            "only parts of the type text",
        ),
        ("messages", json!([{ "role": "user", "content": "€" }]), "'€'"),
        ("tools", json!([{ "type": "function" }]), "not supported"),
        ("response_format", json!({ "type": "json_object" }), "only the type text"),
        ("logprobs", json!(3), "top_logprobs"),
        ("top_logprobs", json!(3), "\"logprobs\": true"),
        ("top_logprobs", json!(21), "0 to 20"),
        ("max_completion_tokens", json!("x"), "a whole number"),
        ("model", json!(null), "is missing"),
    ] {
        let mut body = json!({ "model": "plain", "messages": [user], "max_tokens": 2 });
        body[field] = value;
        check_at(&site, "/v1/chat/completions", body.to_string(), 400, Some(field), part).await;
    }
}

/// Values of every kind.
fn values() -> Vec<Value> {
    let mut values =
        vec![json!(true), json!(3), json!(-1), json!(1.5), json!(1e30), json!(u64::MAX), json!("x")];
    values.extend([json!([]), json!(["x"]), json!([null]), json!([[]]), json!({}), json!({ "type": [] })]);
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_any_kind_are_met_or_refused_in_plain_words() {
    let small = Limits { tokens: 500, request_tokens: 1000, ..limits() };
    let site = Site::with(small).await;
    let sampling = "model max_tokens temperature top_p n stream stream_options logprobs stop seed presence_penalty \
                    frequency_penalty logit_bias top_k min_p repetition_penalty past_context user";
    for (path, own, body) in [
        ("/v1/completions", "prompt echo best_of suffix", json!({ "model": "plain", "prompt": "First" })),
        (
            "/v1/chat/completions",
            "messages max_completion_tokens top_logprobs tools functions response_format",
            json!({ "model": "plain", "messages": [{ "role": "user", "content": "First" }] }),
        ),
        ("/api/attention", "text tokens block", json!({ "model": "plain", "text": "First" })),
        ("/tokenize", "content with_pieces", json!({ "model": "plain", "content": "First" })),
        ("/detokenize", "tokens", json!({ "model": "plain", "tokens": [1] })),
    ] {
        let sampling = if path.starts_with("/v1") { sampling } else { "model" };
        for field in sampling.split_whitespace().chain(own.split_whitespace()) {
            for value in values() {
                let mut body = body.clone();
                body["max_tokens"] = json!(2);
                body[field] = value;
                let response = site.client.post(site.url(path)).json(&body).send().await.expect("an answer");
                let status = response.status().as_u16();
                let text = response.text().await.expect("text");
                assert!([200, 400, 404].contains(&status), "{path} {body}: {status} {text}");
                if status != 200 {
                    let answer: Value = serde_json::from_str(&text).expect("JSON");
                    let message = answer["error"]["message"].as_str().expect("a message");
                    check_words(message);
                    let param = answer["error"]["param"].as_str();
                    assert!(param.is_some_and(|param| message.contains(param)), "{path} {body}: {answer}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_echo_is_bounded_like_the_texts() {
    let site = Site::with(Limits { request_tokens: 80, ..limits() }).await;
    for (n, echo, status) in [(8, true, 200), (9, true, 400), (9, false, 200)] {
        let prompt = "First Citi";
        let body = json!({
            "model": "plain", "prompt": prompt, "n": n, "echo": echo, "logprobs": 20, "max_tokens": 0,
        });
        let (told, answer) = site.post("/v1/completions", &body).await;
        assert_eq!(told, status, "{answer}");
        if status == 400 {
            assert_eq!(answer["error"]["param"], "echo");
            let message = answer["error"]["message"].as_str().expect("a message");
            assert!(
                message.starts_with("echo: 90 tokens of prompts") && message.contains("the 80 that"),
                "{message}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn null_is_the_same_as_nothing() {
    let site = Site::start().await;
    let mut body = json!({ "model": "plain", "prompt": "First", "max_tokens": 5, "seed": 7 });
    let plain = site.complete(body.clone()).await["choices"].clone();
    let fields = "temperature top_p n stream stream_options logprobs echo stop presence_penalty frequency_penalty best_of \
                  suffix logit_bias top_k min_p repetition_penalty past_context user messages tools";
    for field in fields.split_whitespace() {
        body[field] = Value::Null;
    }
    assert_eq!(site.complete(body).await["choices"], plain);
    let user = json!([{ "role": "user", "content": "First" }]);
    let mut body = json!({ "model": "plain", "messages": user, "max_tokens": 5, "seed": 7 });
    let fields = fields.replace(" messages", " top_logprobs response_format functions max_completion_tokens");
    for field in fields.split_whitespace() {
        body[field] = Value::Null;
    }
    let (status, answer) = site.post("/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], plain[0]["text"]);
    for (path, body) in [
        ("/api/attention", json!({ "model": "plain", "text": "First", "tokens": null, "block": null })),
        ("/tokenize", json!({ "model": null, "content": "", "with_pieces": null })),
    ] {
        assert_eq!(site.post(path, &body).await.0, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_openai_takes_are_taken() {
    let site = Site::start().await;
    let text = |fields: Value| site.completed(fields);
    let greedy = text(json!({ "temperature": 0 })).await;
    assert_eq!(text(json!({ "top_p": 0 })).await, greedy, "only the likeliest token is left");
    assert_eq!(text(json!({ "top_p": 0.0, "temperature": 1.5, "top_k": 7 })).await, greedy);
    let plain = text(json!({})).await;
    for stop in [json!(""), json!([]), json!([""]), json!(["", "", "", "", "", "zzzz"])] {
        assert_eq!(text(json!({ "stop": stop })).await, plain, "{stop}");
    }
    // Numbers as JavaScript and Python's floats write them.
    assert_eq!(text(json!({ "max_tokens": 20.0, "n": 1.0 })).await, plain);
    assert_eq!(text(json!({ "logprobs": false, "logit_bias": {} })).await, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_addresses_are_told_what_there_is() {
    let site = Site::start().await;
    for path in [
        "/v1/embeddings",
        "/v1/responses",
        "/v1/images/generations",
        "/completions",
        "/chat/completions",
        "/models",
    ] {
        let (status, answer) = site.post(path, &json!({ "model": "plain" })).await;
        let message = answer["error"]["message"].as_str().expect("a message");
        assert_eq!(status, 404, "{path}");
        for part in [path, "/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/health"] {
            assert!(message.contains(part), "{path}: {message} lacks {part}");
        }
    }
    let (_, answer) = site.get("/v1/completions").await;
    assert_eq!(answer["error"]["message"], "GET is not supported here: use POST");
    let (_, answer) = site.post("/v1/models", &json!({})).await;
    assert_eq!(answer["error"]["message"], "POST is not supported here: use GET");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_anywhere_but_to_a_model() {
    let site = Site::start().await;
    let names = [
        "nobody",
        "",
        "plain:",
        "plain:checkpoint_9",
        "plain:checkpoint_01",
        "plain/checkpoint_1",
        "plain/",
        "./plain",
        "PLAIN",
        "search",
        "search/run_2",
        "search/run_1/../run_1",
        "../../etc/passwd",
        "..",
        "/etc/passwd",
        "plain\0",
        "file:///etc/passwd",
        "%2e%2e/plain",
    ];
    for name in names.iter().map(|name| (*name).to_owned()).chain(["x".repeat(900_000)]) {
        let body = json!({ "model": name, "prompt": "First" });
        check(&site, body.to_string(), 404, Some("model"), "does not exist").await;
        let body = json!({ "model": name, "text": "First" });
        check_at(&site, "/api/attention", body.to_string(), 404, Some("model"), "does not exist").await;
    }
    for path in ["/v1/models/nobody", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/plain:checkpoint_9"] {
        let (status, answer) = site.get(path).await;
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")), "{path}: {answer}");
    }
    for path in
        ["/api/runs/nobody/records", "/api/runs/..%2f..%2fetc/records", "/api/runs/plain/hyperparameters"]
    {
        let (status, answer) = site.get(path).await;
        assert_eq!(status, 404, "{path}: {answer}");
    }
    for name in ["plain", "plain:checkpoint_1", "search/run_1", "search/run_1:checkpoint_3"] {
        assert_eq!(site.get(&format!("/v1/models/{name}")).await.0, 200, "{name}");
        site.complete(json!({ "model": name })).await;
    }
    assert_eq!(site.get("/v1/models/search%2Frun_1").await.1["id"], "search/run_1");
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_that_cannot_be_told() {
    let site = Site::start().await;
    for (body, param, part) in [
        (json!({ "model": "plain" }), "text", "either"),
        (json!({ "model": "plain", "text": "a", "tokens": [1] }), "text", "either"),
        (json!({ "model": "plain", "text": "" }), "tokens", "one token at least"),
        (json!({ "model": "plain", "text": "日" }), "text", "日"),
        (json!({ "model": "plain", "tokens": [999] }), "tokens", "vocabulary"),
        (json!({ "model": "plain", "text": "a", "block": 2 }), "block", "0 to 1"),
        (json!({ "model": "plain", "text": "a", "block": -1 }), "block", "a whole number, 0 or more, not -1"),
        (json!({ "text": "a" }), "model", "is missing"),
        (json!({ "model": "plain", "tokens": "a" }), "tokens", "a list of tokens, not \"a\""),
    ] {
        check_at(&site, "/api/attention", body.to_string(), 400, Some(param), part).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_methods_and_kinds_that_are_not_known() {
    let site = Site::start().await;
    for path in ["/v1", "/v1/", "/nothing", "/assets/none.js", "/assets/..%2fapp.css", "/v2/models", "//"] {
        let (status, answer) = site.get(path).await;
        assert_eq!((status, &answer["error"]["type"]), (404, &json!("invalid_request_error")), "{path}");
    }
    let (status, answer) = site.get("/v1/completions").await;
    assert_eq!((status, &answer["error"]["code"]), (405, &json!("method_not_allowed")));
    let (status, _) = site.post("/v1/models", &json!({})).await;
    assert_eq!(status, 405);
    for (method, path, other, allowed) in [
        ("PUT", "/v1/models", "GET", "GET,HEAD"),
        ("DELETE", "/health", "GET", "GET,HEAD"),
        ("OPTIONS", "/v1/models", "GET", "GET,HEAD"),
        ("PUT", "/v1/completions", "POST", "POST"),
    ] {
        let method = method.parse().expect("a method");
        let response = site.client.request(method, site.url(path)).send().await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["allow"]),
            (405, &allowed.parse().expect("text"))
        );
        let message = response.json::<Value>().await.expect("JSON")["error"]["message"].clone();
        assert!(
            message.as_str().is_some_and(|message| message.ends_with(&format!("here: use {other}"))),
            "{path}: {message}"
        );
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let request = site.client.post(site.url("/v1/completions")).header("content-type", kind);
        let response = request.body("{\"model\": \"plain\"}").send().await.expect("an answer");
        assert_eq!(response.status(), 415, "{kind}");
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(answer["error"]["code"], "unsupported_media_type");
    }
    let request = site.client.post(site.url("/v1/completions"));
    let request = request.header("content-type", "Application/JSON; charset=utf-8");
    let response = request.body("{\"model\": \"plain\", \"max_tokens\": 1}").send().await.expect("an answer");
    assert_eq!(response.status(), 200);
}
