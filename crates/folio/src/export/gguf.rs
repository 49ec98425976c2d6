//! GGUF, the format of llama.cpp and of programs built on it, such as ollama and LM Studio.
//!
//! [`write()`] writes the architecture `gpt2` (llama.cpp's src/llama-arch.cpp has the names of keys and tensors). Matrices are
//! (outputs, inputs) there, so that the four matrices of a block are transposed. Biases, LayerNorms and positions stay f32,
//! as llama.cpp's own converter leaves them.
//!
//! llama.cpp ends generation at an end token, and takes token 11 if the file names none. A model without one gets a control
//! token after its own tokens, whose logit is never the highest (see `control_row`).

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::export::weight_type::BLOCK;
use crate::export::{TrainedModel, WeightType, check_sizes, not_held, refused};
use crate::files::stream_atomic;
use crate::model::{Activation, ParameterSpec};
use crate::tokenizer::llama_cpp::{SpelledVocabulary, TokenKind};
use crate::tokenizer::{END_OF_TEXT, Tokenizer};

mod control_row;
mod format;
mod read;

use control_row::control_row;
pub use format::{MAGIC, TensorInfo, Value};
pub use read::Gguf;

/// In what a file differs from its model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The control token that was appended as the end token, with its id.
    pub end_token: Option<(String, u32)>,
    /// The type of the head, if the end token's logit needs a more precise one.
    pub head_type: Option<WeightType>,
    /// The matrices in f16, because their rows cannot be divided into the blocks of q8_0.
    pub in_f16: usize,
    /// Whether llama.cpp computes the activation in its tanh form, but the model with erf.
    pub is_gelu_approximate: bool,
}

/// Writes a model.
///
/// # Errors
/// [`Error::Export`] if llama.cpp would compute other ids or logits than folio, or the type cannot hold a weight;
/// [`Error::File`] if the file cannot be written.
pub fn write(model: &TrainedModel<'_>, weight_type: WeightType, path: &Path) -> Result<Differences> {
    check_sizes(model)?;
    let vocabulary = Vocabulary::of(model.tokenizer)?;
    let end_row = vocabulary.appended.as_ref().map(|_| {
        let (weight, bias) = (model.values("ln_f.weight"), model.values("ln_f.bias"));
        control_row(model.values(model.head()), weight, bias, weight_type)
    });
    let head_type = end_row.as_ref().map_or(weight_type, |(_, head_type)| *head_type);
    let types = Types { weight_type, head_type, head: model.head() };
    let tensors = tensors(model, &types, end_row.as_ref().map(|(row, _)| row.as_slice()));
    let infos: Vec<TensorInfo> = tensors.iter().map(|tensor| tensor.info.clone()).collect();
    let head = format::head(&metadata(model, weight_type, &vocabulary), &infos);
    stream_atomic(path, |file| {
        file.write_all(&head).map_err(Error::file("write", path))?;
        tensors.iter().try_for_each(|tensor| tensor.write(path, file))
    })?;
    Ok(Differences {
        end_token: vocabulary.appended,
        head_type: (head_type != weight_type).then_some(head_type),
        in_f16: tensors.iter().filter(|tensor| types.is_uneven(tensor.spec, &tensor.info.shape)).count(),
        is_gelu_approximate: model.config.activation == Activation::Gelu,
    })
}

/// The types of the tensors.
struct Types {
    weight_type: WeightType,
    /// The type of the parameter `head`.
    head_type: WeightType,
    head: &'static str,
}

impl Types {
    /// The type of a tensor of this shape.
    fn of(&self, spec: &ParameterSpec, shape: &[u64]) -> WeightType {
        match self.wanted(spec) {
            _ if self.is_uneven(spec, shape) => WeightType::F16,
            wanted => wanted,
        }
    }

    /// Whether the rows of a tensor cannot be divided into the blocks of its type.
    fn is_uneven(&self, spec: &ParameterSpec, shape: &[u64]) -> bool {
        self.wanted(spec) == WeightType::Q8_0 && !shape[shape.len() - 1].is_multiple_of(BLOCK as u64)
    }

    fn wanted(&self, spec: &ParameterSpec) -> WeightType {
        match spec.name.as_str() {
            "wpe.weight" => WeightType::F32,
            _ if !spec.is_matrix() => WeightType::F32,
            name if name == self.head => self.head_type,
            _ => self.weight_type,
        }
    }
}

/// The tokens of the file.
struct Vocabulary {
    spelled: SpelledVocabulary,
    begin: u32,
    end: u32,
    /// The end token, if it is not the model's.
    appended: Option<(String, u32)>,
}

impl Vocabulary {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let mut spelled = tokenizer.spelled().map_err(|what| {
            refused(format!(
                "GGUF's tokenizer gpt2 cannot express this model's: it {what}; use the format hf"
            ))
        })?;
        let appended = tokenizer.end_token().is_none().then(|| {
            let is_free = |name: &String| !spelled.tokens.contains(name);
            let numbered = (1_u32..).map(|number| format!("<|endoftext{number}|>"));
            let mut names = std::iter::once(END_OF_TEXT.to_owned()).chain(numbered);
            (names.find(is_free).expect("one is free"), spelled.tokens.len() as u32)
        });
        if let Some((name, _)) = &appended {
            spelled.tokens.push(name.clone());
            spelled.kinds.push(TokenKind::Control);
        }
        let end = tokenizer.end_token().or(appended.as_ref().map(|(_, id)| *id)).expect("one of the two");
        Ok(Self { spelled, begin: tokenizer.begin_token().unwrap_or(end), end, appended })
    }
}

fn metadata(
    model: &TrainedModel<'_>,
    weight_type: WeightType,
    vocabulary: &Vocabulary,
) -> Vec<(&'static str, Value)> {
    let config = &model.config;
    let number = |size: usize| Value::U32(u32::try_from(size).expect("sizes are limited"));
    let text = |text: &str| Value::Text(text.to_owned());
    // llama.cpp's `llama_ftype`: the type of most tensors.
    let file_type = match weight_type {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::Q8_0 => 7,
        WeightType::Bf16 => 32,
    };
    // llama.cpp's `llama_token_type`.
    let kind = |kind: &TokenKind| match kind {
        TokenKind::Normal => 1,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
    };
    let SpelledVocabulary { tokens, kinds, merges } = &vocabulary.spelled;
    vec![
        ("general.architecture", text("gpt2")),
        ("general.type", text("model")),
        ("general.name", text(model.name)),
        ("general.file_type", Value::U32(file_type)),
        ("general.quantization_version", Value::U32(2)),
        ("gpt2.context_length", number(config.block_size)),
        ("gpt2.embedding_length", number(config.n_emb)),
        ("gpt2.block_count", number(config.n_blocks)),
        ("gpt2.feed_forward_length", number(config.inner())),
        ("gpt2.attention.head_count", number(config.n_heads)),
        ("gpt2.attention.layer_norm_epsilon", Value::F32(config.layer_norm_epsilon)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", Value::Texts(tokens.clone())),
        ("tokenizer.ggml.token_type", Value::I32s(kinds.iter().map(kind).collect())),
        ("tokenizer.ggml.merges", Value::Texts(merges.clone())),
        ("tokenizer.ggml.bos_token_id", Value::U32(vocabulary.begin)),
        ("tokenizer.ggml.eos_token_id", Value::U32(vocabulary.end)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ]
}

/// A tensor of the file and where its numbers come from.
struct Tensor<'a> {
    info: TensorInfo,
    spec: &'a ParameterSpec,
    values: &'a [f32],
    /// Whether the columns of `values` are the rows of the tensor.
    is_transposed: bool,
    /// A row after those of `values`.
    last_row: Option<&'a [f32]>,
}

/// The tensors of the file, in the order of the parameters.
fn tensors<'a>(model: &TrainedModel<'a>, types: &Types, end_row: Option<&'a [f32]>) -> Vec<Tensor<'a>> {
    let mut offset = 0;
    let parameters = model.parameters;
    let tensor = |spec: &'a ParameterSpec| {
        let (name, is_transposed) = tensor_name(&spec.name);
        let has_tokens = ["wte.weight", "lm_head.weight"].contains(&spec.name.as_str());
        let last_row = end_row.filter(|_| has_tokens);
        let mut shape: Vec<u64> = spec.shape.iter().map(|&size| size as u64).collect();
        shape[0] += u64::from(last_row.is_some());
        if is_transposed {
            shape.reverse();
        }
        let weight_type = types.of(spec, &shape);
        let info = TensorInfo { name, shape, weight_type, offset };
        offset = format::aligned(offset + info.bytes());
        Tensor { info, spec, values: parameters.tensor(spec), is_transposed, last_row }
    };
    parameters.specs().iter().map(tensor).collect()
}

/// llama.cpp's name of a parameter, and whether its matrix is transposed.
fn tensor_name(name: &str) -> (String, bool) {
    let (path, end) = name.rsplit_once('.').expect("weight or bias");
    let whole = |renamed: &str| (format!("{renamed}.{end}"), false);
    match path {
        "wte" => return whole("token_embd"),
        "wpe" => return whole("position_embd"),
        "ln_f" => return whole("output_norm"),
        "lm_head" => return whole("output"),
        _ => {}
    }
    let (block, part) = path.strip_prefix("h.").and_then(|path| path.split_once('.')).expect("a block's");
    let (renamed, is_matrix) = match part {
        "ln_1" => ("attn_norm", false),
        "attn.c_attn" => ("attn_qkv", true),
        "attn.c_proj" => ("attn_output", true),
        "ln_2" => ("ffn_norm", false),
        "mlp.c_fc" => ("ffn_up", true),
        "mlp.c_proj" => ("ffn_down", true),
        other => unreachable!("GPT-2 has no {other}"),
    };
    (format!("blk.{block}.{renamed}.{end}"), is_matrix && end == "weight")
}

impl Tensor<'_> {
    /// Writes the numbers and the padding after them.
    fn write(&self, path: &Path, file: &mut dyn Write) -> Result<()> {
        let mut bytes = Vec::new();
        let mut write_row = |row: &[f32]| {
            bytes.clear();
            let encoded = self.info.weight_type.encode(row, &mut bytes);
            encoded.map_err(|value| not_held(self.spec, value, self.info.weight_type))?;
            file.write_all(&bytes).map_err(Error::file("write", path))
        };
        let columns = *self.spec.shape.last().expect("no scalars");
        if self.is_transposed {
            let mut row = Vec::new();
            for column in 0..columns {
                row.clear();
                row.extend(self.values.iter().skip(column).step_by(columns));
                write_row(&row)?;
            }
        } else {
            self.values.chunks_exact(columns).try_for_each(&mut write_row)?;
            self.last_row.into_iter().try_for_each(write_row)?;
        }
        let written = self.info.bytes();
        let padding = vec![0; (format::aligned(written) - written) as usize];
        file.write_all(&padding).map_err(Error::file("write", path))
    }
}
