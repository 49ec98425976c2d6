//! Trains GPT-2 from scratch on your own text, on your own hardware.
//!
//! Modules are listed in the order of their dependencies. `examples/` has complete programs: a training loop, generation, fine-tuning and a
//! custom tokenizer.
//!
//! Cargo features, all off by default:
//! - `gpt2-vocabulary`: GPT-2's tokenizer (`Tokenizer::gpt2`)
//! - `onnx`: models as ONNX files (`export::onnx`)
//! - `plots`: loss curves as SVG, PNG and terminal text (`plot`)
//! - `report`: HTML reports (`report`)
//! - `tensorboard`: event files for TensorBoard (the setting `tensorboard`)
//! - `full`: all of the above
//!
//! ```
//! use std::sync::Arc;
//! use folio::data::TokenStream;
//! use folio::settings::Settings;
//! use folio::tokenizer::Tokenizer;
//! use folio::train::{Requests, Start, Trainer};
//!
//! let text = "to be, or not to be, that is the question. ".repeat(8);
//! let settings = Settings {
//!     n_emb: 16, n_heads: 2, n_blocks: 1, block_size: 8, batch_size: 4, num_epochs: 2, ..Settings::default()
//! };
//! let tokenizer = Arc::new(Tokenizer::chars(&text));
//! let stream = Arc::new(TokenStream::encode(&text, &tokenizer, settings.split)?);
//! let mut trainer = Trainer::new(settings, stream, tokenizer, &Start::Fresh)?;
//! trainer.run(None, &Requests::default(), &mut |_event| {})?;
//! assert_eq!(trainer.history().epochs.len(), 2);
//! # Ok::<(), folio::error::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod error;
pub mod machine;
pub mod names;
pub mod rng;

pub mod distributed;
pub mod model;

#[cfg(any(feature = "gpt2-vocabulary", feature = "report"))]
mod embedded;
pub mod files;
pub mod text;
pub mod tokenizer;

pub mod data;
pub mod optim;
pub mod schedule;

pub mod history;
pub mod settings;

pub mod memory;

pub mod checkpoint;
#[cfg(feature = "plots")]
pub mod plot;
pub mod run_dir;

pub mod import;

pub mod average;
pub mod ensemble;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod teachers;
pub mod train;

pub mod records;
pub mod sweep;

#[cfg(feature = "report")]
pub mod report;
