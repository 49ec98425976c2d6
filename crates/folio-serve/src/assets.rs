//! The web pages and their assets. They are embedded in the binary, so that they work without a network.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use folio::files::digest;
use folio::report::plotly_source;

use crate::errors::ApiError;

struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
    /// The start of its SHA-256.
    etag: String,
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, content: &'static str) -> Self {
        Self { name, kind, content, etag: format!("\"{}\"", &digest(content.as_bytes())[..32]) }
    }

    fn response(&self, headers: &HeaderMap) -> Response {
        let etag = HeaderValue::from_str(&self.etag).expect("hexadecimal digits");
        let caching = [
            (header::ETAG, etag.clone()),
            // Always revalidate: the next response may come from another version of the program.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        if headers.get_all(header::IF_NONE_MATCH).iter().any(|known| known == etag) {
            return (StatusCode::NOT_MODIFIED, caching).into_response();
        }
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(self.kind))];
        (caching, kind, self.content).into_response()
    }
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The policy of the training page. Beyond that of other pages it allows the style element that Plotly.js creates: it is
/// empty at first (the hash is the SHA-256 of the empty string), and its rules are added by script.
const TRAINING_POLICY: &str = concat!(
    "default-src 'none'; script-src 'self'; ",
    "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; ",
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
);

static PLAYGROUND: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("playground.html", HTML, include_str!("pages/playground.html")));
static TRAINING: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("training.html", HTML, include_str!("pages/training.html")));
static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    static PLOTLY: LazyLock<String> = LazyLock::new(plotly_source);
    let scripts = [
        ("attention.js", include_str!("pages/attention.js")),
        ("curves.js", include_str!("pages/curves.js")),
        ("playground.js", include_str!("pages/playground.js")),
        ("samples.js", include_str!("pages/samples.js")),
        ("shell.js", include_str!("pages/shell.js")),
        ("stream.js", include_str!("pages/stream.js")),
        ("theme.js", include_str!("pages/theme.js")),
        ("tokens.js", include_str!("pages/tokens.js")),
        ("training.js", include_str!("pages/training.js")),
        ("plotly.js", &PLOTLY),
    ];
    let style = Asset::new("app.css", "text/css; charset=utf-8", include_str!("pages/app.css"));
    let icon = Asset::new("icon.svg", "image/svg+xml", include_str!("pages/icon.svg"));
    let scripts = scripts.into_iter().map(|(name, content)| Asset::new(name, SCRIPT, content));
    scripts.chain([style, icon]).collect()
});

/// `GET /`
pub(crate) async fn playground(headers: HeaderMap) -> Response {
    PLAYGROUND.response(&headers)
}

/// `GET /training`
pub(crate) async fn training(headers: HeaderMap) -> Response {
    let policy = HeaderValue::from_static(TRAINING_POLICY);
    ([(header::CONTENT_SECURITY_POLICY, policy)], TRAINING.response(&headers)).into_response()
}

/// `GET /assets/{name}`
pub(crate) async fn asset(uri: Uri, name: Result<Path<String>, impl Sized>, headers: HeaderMap) -> Response {
    let known = |name: &str| ASSETS.iter().find(|asset| asset.name == name);
    match name.ok().and_then(|Path(name)| known(&name)) {
        Some(asset) => asset.response(&headers),
        None => ApiError::unknown_path(uri.path()).into_response(),
    }
}
