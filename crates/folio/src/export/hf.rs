//! A directory for Hugging Face's transformers: `from_pretrained` and `pipeline` load it as it is.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, View};

use crate::checkpoint::{MODEL_FILE, transformers, write_tensors};
use crate::error::Result;
use crate::export::{TrainedModel, WeightType, check_sizes, not_held, refused};
use crate::files::write_directory_atomic;
