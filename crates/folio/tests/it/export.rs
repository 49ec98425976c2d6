//! Exported files have the model: the weights of a GGUF file, the files for transformers, the graph of an ONNX file.
//!
//! `reference/export_check.py` has llama.cpp, transformers and onnxruntime load them.

use std::fs;
use std::path::Path;

use folio::export::gguf::{self, Gguf, Value};
use folio::export::{TrainedModel, WeightType, hf, onnx};
use folio::model::{Activation, ModelConfig, ParameterSpec, Parameters};
use folio::names::Named;
use folio::rng::{Rng, Stream};
use folio::tokenizer::Tokenizer;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value as Json;

mod onnx_graph;

pub(crate) const TEXT: &str = "Größe — 日本語 👩‍🚀 naïve";

/// The sizes of a small model of `tokens` tokens, whose rows are whole blocks of q8_0 except those of its MLP.
fn sizes(tokens: usize) -> ModelConfig {
    let sizes = ModelConfig {
        vocab_size: tokens,
        n_blocks: 2,
        n_emb: 32,
        n_heads: 4,
        block_size: 9,
        ..ModelConfig::GPT2
    };
    ModelConfig { n_inner: Some(40), ..sizes }
}

/// Random weights, biases and LayerNorms too.
fn random(config: &ModelConfig) -> Parameters {
    let mut parameters = Parameters::zeros(config);
    let mut rng = Rng::new(7, Stream::Init);
    let norms: Vec<ParameterSpec> = parameters
        .specs()
        .iter()
        .filter(|spec| spec.name.contains("ln_") && spec.name.ends_with("weight"))
        .cloned()
        .collect();
    parameters.values_mut().fill_with(|| 0.3 * rng.normal() as f32);
    for spec in norms {
        parameters.values_mut()[spec.range].iter_mut().for_each(|value| *value = 1.0 + 0.3 * *value);
    }
    parameters
}

/// Calls `check` with a model of characters.
fn with_model(change: impl FnOnce(&mut ModelConfig), check: impl FnOnce(&TrainedModel<'_>, &Path)) {
    let tokenizer = Tokenizer::chars(TEXT);
    let mut config = sizes(tokenizer.vocab_size());
    change(&mut config);
    let parameters = random(&config);
    let place = tempfile::tempdir().expect("a temporary directory");
    let model = TrainedModel { name: "tiny", config, parameters: &parameters, tokenizer: &tokenizer };
    check(&model, &place.path().join("model"));
}

fn texts<'a>(file: &'a Gguf, key: &str) -> Vec<&'a str> {
    match file.value(key) {
        Some(Value::Texts(texts)) => texts.iter().map(String::as_str).collect(),
        other => panic!("{key}: {other:?}"),
    }
}

/// The parameter that a tensor of a GGUF file has, with its columns first if the matrix is transposed.
fn parameter_of(name: &str) -> (String, bool) {
    let (path, end) = name.rsplit_once('.').expect("weight or bias");
    let (parameter, is_matrix) = match path.strip_prefix("blk.").and_then(|path| path.split_once('.')) {
        Some((block, part)) => {
            let (part, is_matrix) = match part {
                "attn_norm" => ("ln_1", false),
                "attn_qkv" => ("attn.c_attn", true),
                "attn_output" => ("attn.c_proj", true),
                "ffn_norm" => ("ln_2", false),
                "ffn_up" => ("mlp.c_fc", true),
                "ffn_down" => ("mlp.c_proj", true),
                other => panic!("{other}"),
            };
            (format!("h.{block}.{part}"), is_matrix)
        }
        None => match path {
            "token_embd" => ("wte".to_owned(), false),
            "position_embd" => ("wpe".to_owned(), false),
            "output_norm" => ("ln_f".to_owned(), false),
            "output" => ("lm_head".to_owned(), false),
            other => panic!("{other}"),
        },
    };
    (format!("{parameter}.{end}"), is_matrix && end == "weight")
}

/// The type that a tensor should have.
fn type_of(
    spec: &ParameterSpec,
    weight_type: WeightType,
    head_type: Option<WeightType>,
    inner: usize,
) -> WeightType {
    let rows_of = if spec.name.ends_with("mlp.c_proj.weight") { inner } else { 32 };
    match weight_type {
        _ if head_type.is_some() && spec.name == "wte.weight" => head_type.expect("some"),
        _ if !spec.is_matrix() || spec.name == "wpe.weight" => WeightType::F32,
        WeightType::Q8_0 if rows_of % 32 != 0 => WeightType::F16,
        other => other,
    }
}

/// Checks every tensor against its parameter.
#[track_caller]
fn check_tensors(
    file: &Gguf,
    model: &TrainedModel<'_>,
    weight_type: WeightType,
    head_type: Option<WeightType>,
) {
    let specs = model.parameters.specs();
    assert_eq!(file.tensors().len(), specs.len());
    for tensor in file.tensors() {
        let (name, is_transposed) = parameter_of(&tensor.name);
        let spec = specs.iter().find(|spec| spec.name == name).unwrap_or_else(|| panic!("{name}"));
        let mut shape: Vec<u64> = spec.shape.iter().map(|&size| size as u64).collect();
        let extra = u64::from(["wte.weight", "lm_head.weight"].contains(&name.as_str()));
        shape[0] += extra;
        if is_transposed {
            shape.reverse();
        }
        assert_eq!(tensor.shape, shape, "{name}");
        assert_eq!(tensor.weight_type, type_of(spec, weight_type, head_type, model.config.inner()), "{name}");
        let (got, want) = (file.numbers(tensor), model.parameters.tensor(spec));
        assert_eq!(got.len(), want.len() + (extra as usize) * 32, "{name}");
        // The largest of 32 numbers is below 2: q8_0's half step is below 2 / 127 / 2, bfloat16's error 2^-8 of a number.
        let relative = match tensor.weight_type {
            WeightType::F32 => 0.0,
            WeightType::F16 => 2f32.powi(-11),
            WeightType::Bf16 => 2f32.powi(-8),
            WeightType::Q8_0 => 2f32.powi(-11),
        };
        let absolute = if tensor.weight_type == WeightType::Q8_0 { 2.0 / 127.0 / 2.0 } else { 0.0 };
        for (index, want) in want.iter().enumerate() {
            let columns = spec.shape[spec.shape.len() - 1];
            let (row, column) = (index / columns, index % columns);
            let got = if is_transposed { got[column * spec.shape[0] + row] } else { got[index] };
            let allowed =
                relative * want.abs() + absolute + f32::from(u8::from(relative > 0.0)) * 2f32.powi(-24);
            assert!((got - want).abs() <= allowed, "{name} [{row}, {column}]: {got}, want {want}");
        }
    }
}

#[test]
fn a_gguf_file_has_every_weight_in_every_type() {
    for &weight_type in WeightType::ALL {
        with_model(
            |_| {},
            |model, path| {
                let differences = gguf::write(model, weight_type, path).expect("it fits");
                let file = Gguf::read(path).expect("its own");
                check_tensors(&file, model, weight_type, differences.head_type);
                let in_f16 = if weight_type == WeightType::Q8_0 { 2 } else { 0 };
                assert_eq!(differences.in_f16, in_f16, "{weight_type}");
            },
        );
    }
}

#[test]
fn a_gguf_file_describes_its_model() {
    let vary = |config: &mut ModelConfig| {
        (config.layer_norm_epsilon, config.tie_word_embeddings) = (1e-6, false);
        config.activation = Activation::Gelu;
    };
    with_model(vary, |model, path| {
        let differences = gguf::write(model, WeightType::F32, path).expect("it fits");
        let tokens = model.config.vocab_size as u32;
        assert_eq!(differences.end_token, Some(("<|endoftext|>".to_owned(), tokens)));
        assert!(differences.is_gelu_approximate);
        let file = Gguf::read(path).expect("its own");
        check_tensors(&file, model, WeightType::F32, None);
        let number = |key: &str| match file.value(key) {
            Some(Value::U32(number)) => *number,
            other => panic!("{key}: {other:?}"),
        };
        for (key, want) in [
            ("gpt2.context_length", 9),
            ("gpt2.embedding_length", 32),
            ("gpt2.block_count", 2),
            ("gpt2.feed_forward_length", 40),
            ("gpt2.attention.head_count", 4),
            ("general.file_type", 0),
            ("tokenizer.ggml.eos_token_id", tokens),
            ("tokenizer.ggml.bos_token_id", tokens),
        ] {
            assert_eq!(number(key), want, "{key}");
        }
        for (key, want) in [
            ("general.architecture", Value::Text("gpt2".to_owned())),
            ("general.name", Value::Text("tiny".to_owned())),
            ("gpt2.attention.layer_norm_epsilon", Value::F32(1e-6)),
            ("tokenizer.ggml.model", Value::Text("gpt2".to_owned())),
            ("tokenizer.ggml.pre", Value::Text("gpt-2".to_owned())),
            ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ] {
            assert_eq!(file.value(key), Some(&want), "{key}");
        }
    });
}

#[test]
fn the_first_bytes_of_a_gguf_file_are_those_of_the_format() {
    with_model(
        |_| {},
        |model, path| {
            gguf::write(model, WeightType::F16, path).expect("it fits");
            let bytes = fs::read(path).expect("there");
            // Magic, version 3, 28 tensors, 19 keys, then the first key: its length, the key, type 8 and a text.
            let mut want = b"GGUF\x03\0\0\0\x1c\0\0\0\0\0\0\0\x13\0\0\0\0\0\0\0".to_vec();
            want.extend(b"\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2");
            assert_eq!(bytes[..want.len()], want);
            assert!(bytes.len().is_multiple_of(32));
        },
    );
}

/// GPT-2's byte alphabet, from its definition: visible characters of Latin-1 are themselves, the others U+0100 and on.
fn alphabet() -> Vec<char> {
    let is_visible = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let spelled = (0..256).map(|byte| if is_visible(byte) { byte } else { others.next().expect("endless") });
    spelled.map(|code| char::from_u32(code).expect("below the surrogates")).collect()
}

/// Tokenizes as llama.cpp does: bytes in the alphabet, the first of the merges that apply, bytes without a token dropped.
/// The split into words is left out: characters do not merge across it, and other tokenizers get single words.
fn llama_cpp_ids(file: &Gguf, word: &str) -> Vec<u32> {
    let (tokens, merges) = (texts(file, "tokenizer.ggml.tokens"), texts(file, "tokenizer.ggml.merges"));
    let alphabet = alphabet();
    let mut parts: Vec<String> = word.bytes().map(|byte| alphabet[usize::from(byte)].to_string()).collect();
    loop {
        let rank =
            |pair: &[String]| merges.iter().position(|merge| *merge == format!("{} {}", pair[0], pair[1]));
        let ranked = parts.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at)));
        let Some((_, at)) = ranked.min() else { break };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    let id = |part: &str| tokens.iter().position(|token| *token == part).map(|id| id as u32);
    let ids = parts.iter().flat_map(|part| match id(part) {
        Some(id) => vec![id],
        None => part.chars().filter_map(|byte| id(&byte.to_string())).collect(),
    });
    ids.collect()
}

#[track_caller]
fn check_vocabulary(tokenizer: &Tokenizer, words: &[&str]) {
    let config = sizes(tokenizer.vocab_size());
    let parameters = Parameters::zeros(&config);
    let model = TrainedModel { name: "tiny", config, parameters: &parameters, tokenizer };
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("model.gguf");
    gguf::write(&model, WeightType::F32, &path).expect("it fits");
    let file = Gguf::read(&path).expect("its own");
    for word in words {
        assert_eq!(
            llama_cpp_ids(&file, word),
            tokenizer.encode(word).expect("its own characters"),
            "{word:?}"
        );
    }
}

#[test]
fn llama_cpp_s_tokenizer_gives_the_ids_of_folio() {
    check_vocabulary(&Tokenizer::chars(TEXT), &[TEXT, "öß日👩\u{200d}", "nï"]);
    check_vocabulary(&Tokenizer::chars("ab\n"), &["ab\nba"]);
    let trained = Tokenizer::train_bpe(&TEXT.repeat(3), 290, &[]).expect("enough pairs");
    check_vocabulary(&trained, &["Größe", " 日本語", "naïve", "👩"]);
}

#[test]
fn end_tokens_are_the_model_s_own_where_it_has_one() {
    let own = Tokenizer::train_bpe(TEXT, 265, &["<|x|>", "<|endoftext|>"]).expect("enough pairs");
    let config = sizes(265);
    let parameters = Parameters::zeros(&config);
    let model = TrainedModel { name: "own", config, parameters: &parameters, tokenizer: &own };
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("model.gguf");
    assert_eq!(gguf::write(&model, WeightType::F32, &path).expect("it fits").end_token, None);
    let file = Gguf::read(&path).expect("its own");
    assert_eq!(file.value("tokenizer.ggml.eos_token_id"), Some(&Value::U32(264)));
    assert_eq!(texts(&file, "tokenizer.ggml.tokens")[263..], ["<|x|>", "<|endoftext|>"]);
    let Some(Value::I32s(kinds)) = file.value("tokenizer.ggml.token_type") else { panic!("no types") };
    assert!(kinds[..263].iter().all(|kind| *kind == 1) && kinds[263..] == [3, 3], "{kinds:?}");
    assert_eq!(file.tensor("token_embd.weight").expect("there").shape, [265, 32]);
}

#[test]
fn what_a_format_cannot_express_is_refused() {
    let gguf_error = |model: &TrainedModel<'_>, path: &Path| {
        let error = gguf::write(model, WeightType::F16, path).expect_err("refused").to_string();
        assert!(!path.exists(), "{error}");
        error
    };
    with_model(
        |_| {},
        |model, path| {
            let mut parameters = model.parameters.clone();
            parameters.values_mut()[0] = 1e6;
            let model = TrainedModel { parameters: &parameters, ..*model };
            let want = "wte.weight has the value 1000000, which f16 cannot hold; use the type bf16 or f32";
            assert_eq!(gguf_error(&model, path), want);
            assert_eq!(hf::write(&model, WeightType::F16, path).expect_err("refused").to_string(), want);
            hf::write(&model, WeightType::Bf16, path).expect("it fits");
            let error = hf::write(&model, WeightType::Q8_0, path).expect_err("refused").to_string();
            assert!(error.contains("q8_0 is a type of GGUF only"), "{error}");
        },
    );
    with_model(
        |_| {},
        |model, path| {
            let mut parameters = model.parameters.clone();
            parameters.values_mut()[40] = f32::NAN;
            let model = TrainedModel { parameters: &parameters, ..*model };
            let want =
                "has the value NaN, which f16 cannot hold; the model is damaged: take another checkpoint";
            assert!(gguf_error(&model, path).contains(want));
            assert!(onnx::write(&model, path).expect_err("refused").to_string().contains("NaN"));
            assert!(!path.exists());
            let other = Tokenizer::chars("abc");
            let model = TrainedModel { tokenizer: &other, ..model };
            assert!(gguf_error(&model, path).contains("the tokenizer has 3 tokens, but the model"));
        },
    );
}

/// Writes a BPE with other settings in its tokenizer.json and returns why GGUF refuses it.
fn refusal(pointer: &str, value: Json) -> String {
    let place = tempfile::tempdir().expect("a temporary directory");
    let file = place.path().join("tokenizer.json");
    Tokenizer::train_bpe(TEXT, 260, &["<|end|>"]).expect("enough pairs").write(&file).expect("room");
    let mut json: Json = serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    fs::write(&file, json.to_string()).expect("room");
    let tokenizer = Tokenizer::read(&file).expect("supported");
    let config = sizes(260);
    let parameters = Parameters::zeros(&config);
    let model = TrainedModel { name: "x", config, parameters: &parameters, tokenizer: &tokenizer };
    gguf::write(&model, WeightType::F32, &place.path().join("x.gguf")).expect_err("refused").to_string()
}

#[test]
fn tokenizers_that_llama_cpp_s_gpt2_cannot_express_are_refused_by_name() {
    for (pointer, value, part) in [
        ("/normalizer", serde_json::json!({ "type": "NFC" }), "it normalizes a text to NFC"),
        (
            "/pre_tokenizer/add_prefix_space",
            true.into(),
            "it splits a text into words in another way than GPT-2",
        ),
        ("/model/ignore_merges", true.into(), "(ignore_merges)"),
        ("/added_tokens/0/lstrip", true.into(), "the added token \"<|end|>\" with lstrip"),
    ] {
        let refused = refusal(pointer, value);
        assert!(refused.contains(part) && refused.ends_with("use the format hf"), "{refused}");
    }
}

#[test]
fn a_directory_for_transformers_has_the_checkpoint_s_files() {
    for (weight_type, dtype, name) in [
        (WeightType::F32, Dtype::F32, "float32"),
        (WeightType::F16, Dtype::F16, "float16"),
        (WeightType::Bf16, Dtype::BF16, "bfloat16"),
    ] {
        with_model(
            |_| {},
            |model, path| {
                hf::write(model, weight_type, path).expect("it fits");
                let mut names: Vec<String> = fs::read_dir(path)
                    .expect("there")
                    .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
                    .collect();
                names.sort();
                let mut want: Vec<&str> = hf::file_names().collect();
                want.sort_unstable();
                assert_eq!(names, want);
                let config: Json =
                    serde_json::from_slice(&fs::read(path.join("config.json")).expect("there"))
                        .expect("JSON");
                assert_eq!((&config["torch_dtype"], &config["n_inner"]), (&name.into(), &40.into()));
                let bytes = fs::read(path.join("model.safetensors")).expect("there");
                let tensors = SafeTensors::deserialize(&bytes).expect("valid");
                assert_eq!(tensors.len(), model.parameters.specs().len());
                for spec in model.parameters.specs() {
                    let tensor = tensors.tensor(&spec.name).expect("there");
                    assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &spec.shape[..]), "{}", spec.name);
                    let first = model.parameters.tensor(spec)[0];
                    let bits = &tensor.data()[..tensor.data().len() / spec.range.len()];
                    let want = match weight_type {
                        WeightType::Bf16 => half::bf16::from_f32(first).to_le_bytes().to_vec(),
                        WeightType::F16 => half::f16::from_f32(first).to_le_bytes().to_vec(),
                        _ => first.to_le_bytes().to_vec(),
                    };
                    assert_eq!(bits, want, "{}", spec.name);
                }
            },
        );
    }
}
