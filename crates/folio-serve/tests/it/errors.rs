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
    assert!(error["type"].is_string() && error.get("code").is_some(), "{text}");
    assert_eq!(answer.as_object().expect("an object").len(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_met() {
    let small = Limits { tokens: 500, request_tokens: 1000, prompt_tokens: 300, choices: 8, ..limits() };
    let site = Site::with(small).await;
    // Without a model, nothing.
    let bad = [
        ("", None, "object"),
        ("{", None, "EOF"),
        ("null", None, "object"),
        ("[]", None, "object"),
        ("[\"plain\", \"First\"]", None, "object"),
        ("3", None, "object"),
        ("{\"model\": NaN}", None, "expected"),
        ("{\"model\": \"plain\"} {}", None, "goes on"),
        ("{\"model\": \"plain\", \"temperature\": 1e999}", None, "number out of range"),
        ("{\"model\": \"plain\", \"temperature\": Infinity}", None, "expected"),
        ("{\"model\": \"plain\", \"prompt\": \"\\ud800\"}", None, "hex escape"),
        ("{}", Some("model"), "/v1/models"),
    ];
    for (body, param, part) in bad {
        check(&site, body, 400, param, part).await;
    }
    check(&site, format!("{{\"a\": {}", "[".repeat(100_000)), 400, None, "EOF").await;
    check(&site, format!("{{\"prompt\": {}", "[".repeat(100_000)), 400, Some("prompt"), "expected u32").await;
    let bytes: Vec<u8> = b"{\"model\": \"\xff\"}".to_vec();
    let request = site.client.post(site.url("/v1/completions")).header("content-type", "application/json");
    assert_eq!(request.body(bytes).send().await.expect("an answer").status(), 400);

    let fields: &[(&str, Value, &str)] = &[
        ("model", json!(3), "expected a string"),
        ("prompt", json!(3), "a string, a list of tokens"),
        ("prompt", json!({}), "a string, a list of tokens"),
        ("prompt", json!([]), "empty list"),
        ("prompt", json!(["a", 3]), "mixes"),
        ("prompt", json!([3, [3]]), "mixes"),
        ("prompt", json!([-1]), "expected"),
        ("prompt", json!([1.5]), "expected"),
        ("prompt", json!([u64::MAX]), "below 2^32"),
        ("prompt", json!([1_000_000]), "outside the vocabulary"),
        ("prompt", json!([[[3]]]), "expected"),
        ("prompt", json!("日"), "日"),
        ("prompt", json!("a".repeat(301)), "301 tokens"),
        ("prompt", json!(vec![1; 301]), "301 tokens"),
        ("max_tokens", json!(501), "at most 500"),
        ("prompt", json!(["a".repeat(151), "a".repeat(150)]), "301 tokens"),
        ("max_tokens", json!(-1), "expected u64"),
        ("max_tokens", json!(1.5), "expected u64"),
        ("max_tokens", json!("20"), "expected u64"),
        ("temperature", json!(-0.1), "0 (the likeliest token) or more"),
        ("temperature", json!("hot"), "expected f64"),
        ("top_p", json!(0), "outside (0, 1]"),
        ("top_p", json!(1.1), "outside (0, 1]"),
        ("n", json!(0), "from 1 on"),
        ("n", json!(9), "at most 8"),
        ("n", json!(u64::MAX), "at most 8"),
        ("best_of", json!(2), "only the value of n"),
        ("stream", json!("yes"), "expected a boolean"),
        ("stream_options", json!({ "include_usage": 1 }), "expected a boolean"),
        ("logprobs", json!(21), "0 to 20"),
        ("logprobs", json!(true), "expected u64"),
        ("echo", json!(1), "expected a boolean"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "at most 4"),
        ("stop", json!(""), "1 to 256 bytes"),
        ("stop", json!(["x".repeat(257)]), "1 to 256 bytes"),
        ("stop", json!({ "a": 1 }), "a string or a list"),
        ("seed", json!(1.5), "a whole number"),
        ("seed", json!("7"), "a whole number"),
        ("presence_penalty", json!(0.5), "only 0"),
        ("frequency_penalty", json!(-0.5), "only 0"),
        ("suffix", json!("end"), "forwards"),
        ("logit_bias", json!({ "3": 100 }), "not known"),
        ("past_context", json!("sideways"), "rolling, exact or stop"),
        ("top_k", json!(-1), "expected u64"),
        ("min_p", json!(2), "outside [0, 1]"),
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
        (json!({ "model": "plain", "text": "a", "block": -1 }), "block", "expected u64"),
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
