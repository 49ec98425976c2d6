//! Takes data from other packages, compresses it and embeds it: Plotly.js and GPT-2's vocabulary.
//!
//! Both packages are build dependencies, so the binary has their data without their code. src/embedded.rs unpacks it.

#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "report")]
    embed("plotly.js.gz", plotly_js().as_bytes());
    #[cfg(feature = "gpt2-vocabulary")]
    embed("gpt2_tokens.gz", &gpt2_tokens());
}

/// The source of Plotly.js. The package has it in a script element; a second element, MathJax, is not needed.
#[cfg(feature = "report")]
fn plotly_js() -> String {
    let elements = plotly::Plot::offline_js_sources();
    let (element, _) = elements.split_once("</script>").expect("the package plotly prints a script element");
    let (_, source) = element.split_once('>').expect("a script element begins with a tag");
    source.to_owned()
}

/// GPT-2's tokens in the order of their ids, without the special token. A byte before each has its length.
#[cfg(feature = "gpt2-vocabulary")]
fn gpt2_tokens() -> Vec<u8> {
    let library = tiktoken_rs::r50k_base_singleton();
    let mut packed = Vec::new();
    for id in 0..50_256 {
        let token = library.decode_bytes(&[id]).expect("the package tiktoken-rs has 50,256 tokens");
        packed.push(u8::try_from(token.len()).expect("tokens have at most 255 bytes"));
        packed.extend(token);
    }
    packed
}

/// Writes a compressed file for `include_bytes!`.
#[cfg(any(feature = "report", feature = "gpt2-vocabulary"))]
fn embed(name: &str, contents: &[u8]) {
    use std::fs::File;
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::{Compression, write::GzEncoder};

    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let path = out_dir.join(name);
    let write = || {
        let mut encoder = GzEncoder::new(File::create(&path)?, Compression::best());
        encoder.write_all(contents)?;
        encoder.finish()
    };
    if let Err(error) = write() {
        println!("cargo::error=cannot write {}: {error}", path.display());
    }
}
