//! Chat completions, with and without a template.

use folio_serve::{ChatTemplate, Options};
use serde_json::{Value, json};

use crate::site::{Site, limits};

async fn with_template(template: &str) -> Site {
    let template = template.parse::<ChatTemplate>().expect("a template");
    Site::serving(Options { chat_template: Some(template), limits: limits(), ..Options::default() }).await
}

fn messages() -> Value {
    json!([
        { "role": "system", "content": "Speak" },
        { "role": "user", "content": [{ "type": "text", "text": "First" }, { "type": "text", "text": " Ci" }] },
    ])
}

async fn chat(site: &Site, fields: &Value) -> Value {
    let mut body = json!({ "model": "plain", "messages": messages(), "max_tokens": 20, "seed": 7 });
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let (status, answer) = site.post("/v1/chat/completions", &body).await;
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// The events of a streamed chat, which must end with `[DONE]`.
async fn stream(site: &Site, fields: &Value) -> Vec<Value> {
    let mut body =
        json!({ "model": "plain", "messages": messages(), "max_tokens": 20, "seed": 7, "stream": true });
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let response =
        site.client.post(site.url("/v1/chat/completions")).json(&body).send().await.expect("an answer");
    let text = response.text().await.expect("text");
    let events = text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("{text}"));
    let event =
        |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
    events.split_terminator("\n\n").map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_template_the_last_message_is_the_prompt() {
    let site = Site::start().await;
    let answer = chat(&site, &json!({ "n": 2 })).await;
    let same = site.complete(json!({ "prompt": "First Ci", "n": 2 })).await;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("plain")));
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{answer}");
    assert_eq!(answer["usage"], same["usage"]);
    for index in 0..2 {
        let choice = json!({
            "index": index,
            "message": { "role": "assistant", "content": same["choices"][index]["text"], "refusal": null },
            "logprobs": null,
            "finish_reason": "length",
        });
        assert_eq!(answer["choices"][index], choice);
    }
    // The default limit is higher than the 16 tokens of a completion.
    let long = chat(&site, &json!({ "max_tokens": null })).await;
    assert_eq!(long["usage"]["completion_tokens"], 256);
    let short = chat(&site, &json!({ "max_completion_tokens": 3 })).await;
    assert_eq!(short["usage"]["completion_tokens"], 3, "it counts, not max_tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_renders_the_prompt_and_ends_the_reply() {
    let site = with_template(r"{role}: {content}\n").await;
    let answer = chat(&site, &json!({ "max_tokens": 200 })).await;
    let prompt = "system: Speak\nuser: First Ci\nassistant: ";
    let same = site.complete(json!({ "prompt": prompt, "max_tokens": 200, "stop": "\n" })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], same["choices"][0]["text"]);
    assert_eq!(answer["choices"][0]["finish_reason"], same["choices"][0]["finish_reason"]);
    assert_eq!(answer["usage"], same["usage"]);
    // Stop strings of the request work beside it, and as many are allowed.
    let stop = json!({ "max_tokens": 200, "stop": ["e", "zz", "zy", "zx"] });
    let text = chat(&site, &stop).await["choices"][0]["message"]["content"].clone();
    assert!(!text.as_str().expect("text").contains(['e', '\n']), "{text}");
    // Placeholders inside a message are not filled in.
    let inside = json!({ "messages": [{ "role": "user", "content": "{role}{content}" }] });
    let mut body = json!({ "model": "plain", "max_tokens": 1 });
    body.as_object_mut().expect("an object").extend(inside.as_object().expect("an object").clone());
    let (status, answer) = site.post("/v1/chat/completions", &body).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("messages")), "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|message| message.contains('{')), "{answer}");
}

#[test]
fn invalid_templates_are_rejected() {
    for (template, part) in [
        ("", "{content} exactly once"),
        ("{role}", "{content} exactly once"),
        ("{content}{content}", "{content} exactly once"),
        ("{rol}: {content}", "{rol} is not a placeholder"),
        ("{role}: {contents}", "{contents} is not a placeholder"),
    ] {
        let error = template.parse::<ChatTemplate>().expect_err(template).to_string();
        assert!(error.contains(part), "{template}: {error}");
    }
    for template in [
        "{content}",
        "{{role}} {content} {}",
        "<|im_start|>{role}\\n{content}<|im_end|>\\n",
        "{ x } {content}",
    ] {
        assert!(template.parse::<ChatTemplate>().is_ok(), "{template}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_chats_equal_whole_ones() {
    let site = Site::start().await;
    for fields in [
        json!({}),
        json!({ "n": 2 }),
        json!({ "logprobs": true, "top_logprobs": 2 }),
        json!({ "logprobs": true }),
        json!({ "stop": "e", "max_tokens": 100 }),
        json!({ "model": "bytes", "messages": [{ "role": "user", "content": "日" }], "logprobs": true }),
    ] {
        let whole = chat(&site, &fields).await;
        let mut with_usage = fields.clone();
        with_usage["stream_options"] = json!({ "include_usage": true });
        let mut events = stream(&site, &with_usage).await;
        let last = events.pop().expect("an event");
        assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])), "{fields}");
        for choice in whole["choices"].as_array().expect("choices") {
            let pieces = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
            let pieces: Vec<&Value> = pieces.filter(|piece| piece["index"] == choice["index"]).collect();
            let roles: Vec<bool> = pieces.iter().map(|piece| piece["delta"]["role"] == "assistant").collect();
            assert!(roles[0] && !roles[1..].contains(&true), "{fields}: {roles:?}");
            let text: String = pieces.iter().filter_map(|piece| piece["delta"]["content"].as_str()).collect();
            assert_eq!(json!(text), choice["message"]["content"], "{fields}");
            assert_eq!(pieces.last().expect("a piece")["finish_reason"], choice["finish_reason"]);
            let tokens = pieces.iter().filter_map(|piece| piece["logprobs"]["content"].as_array()).flatten();
            let tokens: Vec<Value> = tokens.cloned().collect();
            let whole = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            assert_eq!(tokens, whole, "{fields}");
        }
        for event in &events {
            assert_eq!(event["object"], "chat.completion.chunk");
            assert_eq!(event["id"], events[0]["id"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_and_completions_have_the_same_logprobs() {
    let site = Site::start().await;
    let answer = chat(&site, &json!({ "logprobs": true, "top_logprobs": 3, "temperature": 0 })).await;
    let same = site.complete(json!({ "prompt": "First Ci", "logprobs": 3, "temperature": 0 })).await;
    let same = &same["choices"][0]["logprobs"];
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().expect("tokens");
    assert_eq!(tokens.len(), 20);
    for (place, token) in tokens.iter().enumerate() {
        let name = token["token"].as_str().expect("text");
        assert_eq!(
            (&token["token"], &token["logprob"]),
            (&same["tokens"][place], &same["token_logprobs"][place])
        );
        assert_eq!(token["bytes"], json!(name.as_bytes()));
        let top = token["top_logprobs"].as_array().expect("alternatives");
        assert_eq!(top.len(), 3);
        // The most likely token was sampled and comes first.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        assert!(top.is_sorted_by(|a, b| a["logprob"].as_f64() >= b["logprob"].as_f64()), "{token}");
        for other in top {
            let name = other["token"].as_str().expect("text");
            assert_eq!(other["logprob"], same["top_logprobs"][place][name], "{token}");
        }
    }
}
