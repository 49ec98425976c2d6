//! Data from other packages, which build.rs compressed: 1.6 MB in the binary instead of 5.0.

use std::io::Read;

use flate2::read::GzDecoder;

/// The source of Plotly.js, which draws the figures of reports.
#[cfg(feature = "report")]
pub(crate) fn plotly_js() -> String {
    let source = unpack(include_bytes!(concat!(env!("OUT_DIR"), "/plotly.js.gz")));
    String::from_utf8(source).expect("Plotly.js is UTF-8")
}

/// GPT-2's tokens in the order of their ids, without the special token.
#[cfg(feature = "gpt2-vocabulary")]
pub(crate) fn gpt2_tokens() -> Vec<Vec<u8>> {
    let packed = unpack(include_bytes!(concat!(env!("OUT_DIR"), "/gpt2_tokens.gz")));
    let mut rest = packed.as_slice();
    let mut tokens = Vec::new();
    // A byte before each token has its length.
    while let Some((&len, after)) = rest.split_first() {
        let (token, after) = after.split_at(usize::from(len));
        tokens.push(token.to_vec());
        rest = after;
    }
    tokens
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut contents = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut contents).expect("build.rs compressed the data");
    contents
}
