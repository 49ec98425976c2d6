//! Access control: the Host and Origin headers, the API key, and the security headers of every response.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use folio::files::digest;
use http_body::Body as _;
use subtle::ConstantTimeEq;
use tower_http::cors::{AllowHeaders, CorsLayer};

use crate::errors::{ApiError, ApiResult, Error};
use crate::limits::Limits;

/// Pages may load nothing but what this server sends.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: \
                      blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The other origins whose pages may use the API.
pub(crate) struct Origins(Vec<HeaderValue>);

impl Origins {
    /// Parses the values of `--cors_origin`.
    ///
    /// # Errors
    /// If a value is not an origin.
    pub(crate) fn new(given: &[String]) -> Result<Self, Error> {
        let parse = |given: &String| {
            let refuse = |reason| Error::Origin { origin: given.clone(), reason };
            if given == "*" {
                return Err(refuse(
                    "would let every page on the web use this API: list the origins to allow",
                ));
            }
            if given.eq_ignore_ascii_case("null") {
                return Err(refuse(
                    "any page in a sandboxed frame has this origin: serve your page over HTTP",
                ));
            }
            let invalid = || {
                refuse("must be a scheme and a host, such as https://example.org or http://localhost:3000")
            };
            let origin = given.strip_suffix('/').unwrap_or(given).to_ascii_lowercase();
            let (scheme, host) = origin.split_once("://").ok_or_else(invalid)?;
            let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
            let authority = host.parse::<Authority>().map_err(|_| invalid())?;
            if !is_scheme || authority.host().is_empty() || host.contains('@') || host.ends_with(':') {
                return Err(invalid());
            }
            // Browsers omit the default port.
            let default = match scheme {
                "http" => ":80",
                "https" => ":443",
                _ => "",
            };
            let host = host.strip_suffix(default).unwrap_or(host);
            HeaderValue::from_str(&format!("{scheme}://{host}")).map_err(|_| invalid())
        };
        given.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Path prefixes that need the API key, if the server has one.
const KEY_REQUIRED: [&str; 5] = ["/v1", "/api", "/metrics", "/tokenize", "/detokenize"];

/// Decides which requests are allowed.
pub(crate) struct Guard {
    /// The SHA-256 of the key. Comparing digests does not reveal the key's length.
    key: Option<String>,
    /// The accepted values of the Host header; any value if the server listens on more than the loopback interface.
    hosts: Option<Vec<String>>,
    origins: Origins,
}

impl Guard {
    pub(crate) fn new(key: Option<&str>, host: &str, address: IpAddr, origins: Origins) -> Self {
        let names = ["localhost", "127.0.0.1", "[::1]", host].map(str::to_owned);
        let own = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let hosts = address.is_loopback().then(|| names.into_iter().chain([own]).collect());
        Self { key: key.map(|key| digest(key.as_bytes())), hosts, origins }
    }

    /// CORS headers for the given origins; none if there are none.
    pub(crate) fn cors(&self) -> Option<CorsLayer> {
        let Origins(origins) = &self.origins;
        let layer = || {
            CorsLayer::new()
                .allow_origin(origins.clone())
                .allow_methods([Method::GET, Method::POST])
                .allow_headers(AllowHeaders::mirror_request())
                .expose_headers([header::RETRY_AFTER])
                .allow_private_network(true)
                .max_age(Duration::from_secs(600))
        };
        (!origins.is_empty()).then(layer)
    }

    fn check(&self, request: &Request) -> ApiResult<()> {
        let headers = request.headers();
        let host = self.check_host(request)?;
        if request.method() != Method::GET && request.method() != Method::HEAD {
            self.check_origin(headers, &host)?;
        }
        let path = request.uri().path();
        let is_open = path == "/v1/health" || !KEY_REQUIRED.iter().any(|prefix| path.starts_with(prefix));
        if is_open { Ok(()) } else { self.check_key(headers) }
    }

    /// Prevents DNS rebinding: a page of another site whose name resolves to this machine still sends that name.
    fn check_host(&self, request: &Request) -> ApiResult<String> {
        let mut given = request.headers().get_all(header::HOST).iter();
        let (host, second) = (given.next(), given.next());
        let host = host.and_then(|host| host.to_str().ok()).filter(|_| second.is_none());
        // A name and a port; a user is not allowed.
        let host = host.filter(|host| !host.contains('@'));
        let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
            return Err(ApiError::malformed("the request must have one valid Host header"));
        };
        let named = [Some(&authority), request.uri().authority()];
        let known = |host: &str| {
            self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|own| own.eq_ignore_ascii_case(host)))
        };
        if named.into_iter().flatten().any(|authority| !known(authority.host())) {
            let message = "this server only accepts requests to localhost, 127.0.0.1 and [::1]; to use another name, \
                           start it with --host";
            return Err(ApiError::forbidden(message));
        }
        Ok(authority.as_str().to_owned())
    }

    fn check_key(&self, headers: &HeaderMap) -> ApiResult<()> {
        let Some(key) = &self.key else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| {
            let (scheme, key) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let same = given.is_some_and(|given| digest(given).as_bytes().ct_eq(key.as_bytes()).into());
        if same { Ok(()) } else { Err(ApiError::unauthorized(given.is_some())) }
    }

    /// Prevents cross-site requests: browsers send the Origin of the page that made a request.
    fn check_origin(&self, headers: &HeaderMap, host: &str) -> ApiResult<()> {
        let ours = |origin: &HeaderValue| {
            let origin = origin.as_bytes();
            let after = |scheme: &str| origin.strip_prefix(scheme.as_bytes());
            let from = after("http://").or(after("https://"));
            from.is_some_and(|from| from.eq_ignore_ascii_case(host.as_bytes()))
        };
        let Origins(others) = &self.origins;
        if headers.get_all(header::ORIGIN).iter().all(|origin| ours(origin) || others.contains(origin)) {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "requests from this origin are not allowed; allow it with --cors_origin ORIGIN",
        ))
    }
}

/// Middleware that rejects requests that are not allowed and adds security headers to every response.
pub(crate) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        // Headers set by the handler take precedence.
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Reads the body of a request, whose Content-Type must be JSON.
pub(crate) async fn json_body(request: Request, limits: &Limits) -> ApiResult<Bytes> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::not_json());
    }
    let limit = limits.body_bytes;
    if request.body().size_hint().lower() > limit as u64 {
        return Err(ApiError::too_large(limit));
    }
    read(request.into_body(), limit, limits.body_time).await
}

async fn read(body: Body, limit: usize, time: Duration) -> ApiResult<Bytes> {
    match tokio::time::timeout(time, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // A body that breaks off ends here too, but then the client is gone.
        Ok(Err(_)) => Err(ApiError::too_large(limit)),
        Err(_) => Err(ApiError::too_slow()),
    }
}
