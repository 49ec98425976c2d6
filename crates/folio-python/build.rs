//! Lets a plain `cargo build` link the extension on macOS, where Python's symbols are found when it is loaded.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
