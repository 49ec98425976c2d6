//! `/tokenize`, `/detokenize` and `/health`.

use folio_serve::{Limits, Options};
use serde_json::json;

use crate::site::{Site, limits};

#[tokio::test(flavor = "multi_thread")]
async fn texts_survive_a_round_trip_through_tokens() {
    let site = Site::start().await;
    for (model, text) in
        [("plain", "First Citizen"), ("bytes", "日本 👧"), ("search/run_1", "Speak"), ("plain", "")]
    {
        let (status, answer) = site.post("/tokenize", &json!({ "model": model, "content": text })).await;
        assert_eq!(status, 200, "{answer}");
        let tokens = answer["tokens"].as_array().expect("tokens");
        let (_, answer) =
            site.post("/tokenize", &json!({ "model": model, "content": text, "with_pieces": true })).await;
        let mut bytes = Vec::new();
        for (entry, token) in answer["tokens"].as_array().expect("tokens").iter().zip(tokens) {
            assert_eq!(entry["id"], *token);
            match &entry["piece"] {
                // Bytes that are not a whole character.
                serde_json::Value::Array(piece) => {
                    bytes.extend(
                        piece
                            .iter()
                            .map(|byte| u8::try_from(byte.as_u64().expect("a number")).expect("a byte")),
                    );
                }
                piece => bytes.extend(piece.as_str().expect("text").as_bytes()),
            }
        }
        assert_eq!(String::from_utf8(bytes).expect("text"), text);
        let (status, answer) = site.post("/detokenize", &json!({ "model": model, "tokens": tokens })).await;
        assert_eq!((status, &answer["content"]), (200, &json!(text)));
    }
    // The completions of a text and of its tokens are the same.
    let (_, answer) = site.post("/tokenize", &json!({ "model": "plain", "content": "First" })).await;
    assert_eq!(
        site.completed(json!({ "prompt": answer["tokens"] })).await,
        site.completed(json!({ "prompt": "First" })).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_is_the_newest() {
    let site = Site::start().await;
    // The last of the shared runs to be trained. All but one of them have this vocabulary.
    let (_, answer) = site.post("/tokenize", &json!({ "content": "Speak" })).await;
    let (_, named) = site.post("/tokenize", &json!({ "model": "search/run_1", "content": "Speak" })).await;
    assert_eq!(answer, named);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_public_and_tokenizing_needs_the_key() {
    let options = Options { api_key: Some("k3y".to_owned()), limits: limits(), ..Options::default() };
    let site = Site::serving(options).await;
    for path in ["/health", "/v1/health", "/healthz"] {
        assert_eq!(site.get(path).await, (200, json!({ "status": "ok" })), "{path}");
    }
    for path in ["/tokenize", "/detokenize", "/v1/chat/completions"] {
        assert_eq!(site.post(path, &json!({})).await.0, 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_bounded_number_of_tokens() {
    let site = Site::with(Limits { tokenized_tokens: 20, ..limits() }).await;
    for (count, status) in [(20, 200), (21, 400)] {
        let content = json!({ "model": "plain", "content": "e".repeat(count) });
        let pieces = json!({ "model": "plain", "content": "e".repeat(count), "with_pieces": true });
        let tokens = json!({ "model": "plain", "tokens": vec![1; count] });
        for (path, body, field) in [
            ("/tokenize", content, "content"),
            ("/tokenize", pieces, "content"),
            ("/detokenize", tokens, "tokens"),
        ] {
            let (got, answer) = site.post(path, &body).await;
            assert_eq!(got, status, "{path}: {answer}");
            if status == 400 {
                let expected =
                    format!("{field}: 21 tokens exceed the limit of 20 tokens per request; split it");
                assert_eq!(answer["error"]["message"], expected);
                assert_eq!(answer["error"]["param"], field);
            }
        }
    }
    // Requests that wait for a permit are answered eventually, also after a rejection.
    let body = json!({ "model": "plain", "content": "eeee" });
    let answers = futures_util::future::join_all((0..10).map(|_| site.post("/tokenize", &body))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
}
