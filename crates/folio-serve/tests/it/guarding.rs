//! Access control.

use folio_serve::Options;
use serde_json::{Value, json};

use crate::site::{Site, limits};

#[tokio::test(flavor = "multi_thread")]
async fn other_host_names_are_rejected() {
    let site = Site::start().await;
    let port = site.address.port();
    for (host, status) in [
        ("localhost".to_owned(), 200),
        (format!("localhost:{port}"), 200),
        ("LOCALHOST".to_owned(), 200),
        (format!("127.0.0.1:{port}"), 200),
        ("127.0.0.1".to_owned(), 200),
        (format!("[::1]:{port}"), 200),
        ("evil.example".to_owned(), 403),
        (format!("evil.example:{port}"), 403),
        ("localhost.evil.example".to_owned(), 403),
        ("127.0.0.1.evil.example".to_owned(), 403),
        ("10.0.0.1".to_owned(), 403),
        ("user@localhost".to_owned(), 400),
        (String::new(), 400),
    ] {
        for path in ["/", "/healthz", "/v1/models", "/metrics", "/nothing"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = site.raw(request.as_bytes()).await;
            let wanted = if path == "/nothing" && status == 200 { 404 } else { status };
            assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{host} {path}: {answer}");
        }
    }
    let request = "GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(site.raw(request.as_bytes()).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_server_accepts_any_host_name() {
    let options = Options { host: "0.0.0.0".to_owned(), limits: limits(), ..Options::default() };
    let mut site = Site::serving(options).await;
    site.address.set_ip([127, 0, 0, 1].into());
    let request = b"GET /healthz HTTP/1.1\r\nHost: folio.example\r\nConnection: close\r\n\r\n";
    assert!(site.raw(request).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_origins_are_rejected() {
    let site = Site::start().await;
    let port = site.address.port();
    for (origin, status) in [
        (format!("http://127.0.0.1:{port}"), 200),
        (format!("https://127.0.0.1:{port}"), 200),
        ("http://evil.example".to_owned(), 403),
        ("null".to_owned(), 403),
        (format!("http://localhost:{port}"), 403),
        (format!("http://127.0.0.1:{}", port - 1), 403),
        (format!("http://127.0.0.1:{port}.evil.example"), 403),
        (String::new(), 403),
    ] {
        let request = site.client.post(site.url("/v1/completions")).header("origin", &origin);
        let response =
            request.json(&json!({ "model": "plain", "max_tokens": 1 })).send().await.expect("an answer");
        assert_eq!(response.status(), status, "{origin}");
        assert!(response.headers().get("access-control-allow-origin").is_none());
    }
    // A GET may come from any origin: a page of another site cannot read the response.
    let request = site.client.get(site.url("/v1/models")).header("origin", "http://evil.example");
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("access-control-allow-origin").is_none());
    // The preflight request that browsers send.
    let request = site.client.request(reqwest::Method::OPTIONS, site.url("/v1/completions"));
    let response = request.header("origin", "http://evil.example").send().await.expect("an answer");
    assert_eq!(response.status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_origins_are_allowed() {
    let cors_origins = ["https://app.example", "http://localhost:3000/"].map(str::to_owned).to_vec();
    let api_key = Some("s3cret".to_owned());
    let site = Site::serving(Options { cors_origins, api_key, limits: limits(), ..Options::default() }).await;
    for (origin, allowed) in [
        ("https://app.example", true),
        ("http://localhost:3000", true),
        ("http://app.example", false),
        ("https://app.example:8443", false),
        ("https://evil.example", false),
        ("https://app.example.evil.example", false),
        ("null", false),
    ] {
        // What browsers ask first: without the key.
        let request = site.client.request(reqwest::Method::OPTIONS, site.url("/v1/completions"));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        let request =
            request.header("access-control-request-headers", "authorization,content-type,x-stainless-os");
        let response = request.send().await.expect("an answer");
        let header =
            |name: &str| response.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(header("access-control-allow-origin").as_deref(), allowed.then_some(origin), "{origin}");
        if allowed {
            assert!(response.status().is_success(), "{origin}");
            assert!(header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
            assert!(
                header("access-control-allow-headers").is_some_and(|fields| fields.contains("authorization"))
            );
        }
        // Then the request itself. A page can also read why it was rejected.
        for (key, status) in
            [("s3cret", if allowed { 200 } else { 403 }), ("other", if allowed { 401 } else { 403 })]
        {
            let request =
                site.client.post(site.url("/v1/completions")).header("origin", origin).bearer_auth(key);
            let response =
                request.json(&json!({ "model": "plain", "max_tokens": 1 })).send().await.expect("an answer");
            assert_eq!(response.status(), status, "{origin}");
            let allow_origin = response
                .headers()
                .get("access-control-allow-origin")
                .map(|value| value.to_str().expect("text"));
            assert_eq!(allow_origin, allowed.then_some(origin));
        }
    }
    for (origin, part) in [
        ("*", "list the origins"),
        ("null", "sandboxed frame"),
        ("app.example", "scheme and a host"),
        ("https://", "scheme and a host"),
        ("://app.example", "scheme and a host"),
        ("https://app.example:", "scheme and a host"),
    ] {
        let options = Options { cors_origins: vec![origin.to_owned()], port: 0, ..Options::default() };
        let error = folio_serve::Server::bind(options).await.err().expect(origin).to_string();
        assert!(error.contains("--cors_origin") && error.contains(origin) && error.contains(part), "{error}");
    }
    let options =
        Options { cors_origins: vec!["https://app.example/path".to_owned()], port: 0, ..Options::default() };
    assert!(folio_serve::Server::bind(options).await.is_err(), "a path is no part of an origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_may_be_given_with_the_default_port() {
    let cors_origins =
        ["https://app.example:443", "http://x:80/", "http://y:443"].map(str::to_owned).to_vec();
    let site = Site::serving(Options { cors_origins, limits: limits(), ..Options::default() }).await;
    for (origin, status) in
        [("https://app.example", 200), ("http://x", 200), ("http://y:443", 200), ("http://y", 403)]
    {
        let request = site.client.post(site.url("/tokenize")).header("origin", origin);
        let response =
            request.json(&json!({ "model": "plain", "content": "e" })).send().await.expect("an answer");
        assert_eq!(response.status(), status, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_needs_the_key() {
    let options = Options { api_key: Some("s3cret".to_owned()), limits: limits(), ..Options::default() };
    let site = Site::serving(options).await;
    let paths = ["/v1/models", "/v1/models/plain", "/api/models", "/api/runs", "/metrics", "/v1/nothing"];
    for path in paths {
        for (given, status) in [
            (None, 401),
            (Some("Bearer s3cret"), 200),
            (Some("bearer s3cret"), 200),
            (Some("Bearer s3cre"), 401),
            (Some("Bearer s3crets"), 401),
            (Some("Bearer "), 401),
            (Some("Bearer"), 401),
            (Some("Basic s3cret"), 401),
            (Some("s3cret"), 401),
        ] {
            let mut request = site.client.get(site.url(path));
            if let Some(given) = given {
                request = request.header("authorization", given);
            }
            let response = request.send().await.expect("an answer");
            let wanted = if path == "/v1/nothing" && status == 200 { 404 } else { status };
            assert_eq!(response.status(), wanted, "{path} {given:?}");
            if status == 401 {
                assert_eq!(response.headers()["www-authenticate"], "Bearer");
                let answer: Value = response.json().await.expect("JSON");
                assert_eq!(answer["error"]["code"], "invalid_api_key");
            }
        }
    }
    let request = site.client.post(site.url("/v1/completions")).bearer_auth("s3cret");
    let response =
        request.json(&json!({ "model": "plain", "max_tokens": 1 })).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(site.post("/v1/completions", &json!({ "model": "plain" })).await.0, 401);
    for open in ["/", "/training", "/healthz", "/assets/app.css"] {
        assert_eq!(site.client.get(site.url(open)).send().await.expect("an answer").status(), 200, "{open}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_security_headers() {
    let site = Site::start().await;
    for path in
        ["/", "/training", "/assets/app.css", "/assets/plotly.js", "/v1/models", "/nothing", "/metrics"]
    {
        let response = site.client.get(site.url(path)).send().await.expect("an answer");
        let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
        assert!(
            header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"),
            "{path}"
        );
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        let is_asset = matches!(path, "/" | "/training") || path.starts_with("/assets/");
        assert_eq!(header("cache-control"), if is_asset { "no-cache" } else { "no-store" }, "{path}");
        if is_asset {
            let again = site.client.get(site.url(path)).header("if-none-match", header("etag"));
            let again = again.send().await.expect("an answer");
            assert_eq!(
                (again.status().as_u16(), again.text().await.expect("text").len()),
                (304, 0),
                "{path}"
            );
        }
    }
    let script = site.text("/assets/plotly.js").await;
    assert!(!script.contains("</script>") && script.contains("Plotly"), "a script, not an element");
}
