//! Models that cannot be imported: one line each, with what is wrong and a way out, and nothing executed.

use super::*;

#[track_caller]
fn check(directory: &Path, hints: &Hints, part: &str) {
    let message = import::read(directory, hints).map(drop).expect_err(part).to_string();
    assert!(message.contains(part) && !message.contains('\n'), "{message}");
}

/// Changes a copy of a model and checks that it is refused.
#[track_caller]
fn check_changed(name: &str, change: impl FnOnce(&Path), part: &str) {
    let place = copy(name);
    change(place.path());
    check(place.path(), &hints(name), part);
}

#[track_caller]
fn check_config(from: &str, to: &str, part: &str) {
    let change = |directory: &Path| {
        let path = directory.join("config.json");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(&path, config.replace(from, to)).unwrap();
    };
    check_changed("hf", change, part);
}

#[track_caller]
fn check_tensors(change: impl FnOnce(&mut Parts), part: &str) {
    check_changed("hf", |directory| edit(directory, change), part);
}

#[test]
fn other_models_are_refused_by_name() {
    check_config("\"gpt2\"", "\"llama\"", "config.json describes a model of type 'llama'");
    check_config("gelu_new", "relu", "the activation_function 'relu': folio has gelu_new and gelu");
    check_config(
        "\"n_layer\": 2",
        "\"n_layer\": 1",
        "has the tensor h.1.attn.c_attn.bias, which a GPT-2 of this size does not have",
    );
    check_config("\"n_layer\": 2", "\"n_layer\": 3", "lacks the tensor h.2.ln_1.weight");
    check_config(
        "\"n_layer\": 2",
        "\"n_layer\": 1000000",
        "has 2 blocks, but the model is described with 1000000",
    );
    check_config("\"n_layer\": 2", "\"n_layer\": 1e30", "n_layer = 1e+30");
    check_config("\"n_head\": 2", "\"n_head\": 3", "`n_emb 8` is not divisible by `n_heads 3`");
    check_config(
        "\"n_embd\": 8",
        "\"n_embd\": 4",
        "wte.weight with the shape [270, 8], but according to config.json it is [270, 4]",
    );
    check_config("\"vocab_size\": 270", "\"vocab_size\": 1000000", "is too small for the model of");
    check_config("{", "", "is not valid JSON");
    check_changed("hf", |at| fs::remove_file(at.join("config.json")).unwrap(), "config.json is missing");
    check_changed(
        "hf",
        |at| fs::remove_file(at.join("model.safetensors")).unwrap(),
        "holds no model that folio can read",
    );
    check(Path::new("nowhere"), &Hints::default(), "nowhere does not exist");
    check(
        &golden("hf/config.json"),
        &Hints::default(),
        "is neither a safetensors file nor a file of torch.save",
    );
}

#[test]
fn wrong_tensors_are_refused_with_their_names() {
    let name = "transformer.h.0.mlp.c_fc.weight";
    check_tensors(|parts| drop(parts.remove(name)), "lacks the tensor h.0.mlp.c_fc.weight");
    let other = "score.weight".to_owned();
    let score = (safetensors::Dtype::F32, vec![1], vec![0; 4]);
    check_tensors(|parts| drop(parts.insert(other, score)), "has the tensor score.weight, which a GPT-2");
    check_tensors(
        |parts| parts.get_mut(name).unwrap().1.reverse(),
        "has h.0.mlp.c_fc.weight with the shape [32, 8]",
    );
    for (bits, shown) in [(0x7fc0_0000_u32, "has NaN in"), (0xff80_0000, "has -inf in")] {
        let set = |parts: &mut Parts| {
            parts.get_mut(name).unwrap().2[4 * 33..4 * 34].copy_from_slice(&bits.to_le_bytes());
        };
        check_tensors(set, &format!("{shown} h.0.mlp.c_fc.weight, at [1, 1]"));
    }
    check_tensors(
        |parts| parts.get_mut(name).unwrap().0 = safetensors::Dtype::I32,
        "has h.0.mlp.c_fc.weight as integers",
    );
    let untied = |parts: &mut Parts| {
        let mut head = parts["transformer.wte.weight"].clone();
        head.2[0] ^= 1;
        parts.insert("lm_head.weight".to_owned(), head);
    };
    check_tensors(untied, "has a lm_head.weight that differs from wte.weight");
}

#[test]
fn damaged_and_missing_files_are_refused() {
    let shard = "model-00002-of-00002.safetensors";
    let index = "model.safetensors.index.json";
    check_changed(
        "hf_varied",
        |at| fs::remove_file(at.join(shard)).unwrap(),
        "model-00002-of-00002.safetensors is missing: model.safetensors.index.json names it",
    );
    let other = |at: &Path| {
        fs::copy(at.join("model-00001-of-00002.safetensors"), at.join(shard)).unwrap();
    };
    check_changed("hf_varied", other, "has the tensor");
    let rename = |to: &'static str| {
        move |at: &Path| {
            let text = fs::read_to_string(at.join(index)).unwrap();
            fs::write(at.join(index), text.replace(shard, to)).unwrap();
        }
    };
    for escape in ["../model.safetensors", "/etc/passwd", ".hidden", ""] {
        check_changed("hf_varied", rename(escape), "which is not a file beside it");
    }
    check_changed("hf_varied", |at| fs::write(at.join(index), "{}").unwrap(), "has no object 'weight_map'");
    let promise = |at: &Path| {
        let text = fs::read_to_string(at.join(index)).unwrap();
        fs::write(at.join(index), text.replace("\"lm_head.weight\"", "\"lm_head.weights\"")).unwrap();
    };
    check_changed(
        "hf_varied",
        promise,
        "lacks the tensor lm_head.weights, which model.safetensors.index.json promises",
    );
    let cut = |name: &'static str| {
        move |at: &Path| {
            let bytes = fs::read(at.join(name)).unwrap();
            fs::write(at.join(name), &bytes[..bytes.len() - 100]).unwrap();
        }
    };
    check_changed("hf", cut("model.safetensors"), "is damaged (it has 18460 bytes, its header says 18560)");
    check_changed("nanogpt", cut("ckpt.pt"), "is damaged");
    let flip = |at: &Path| {
        let mut bytes = fs::read(at.join("ckpt.pt")).unwrap();
        // Inside the first storage, which follows the pickle.
        let start = bytes.windows(6).position(|part| part == b"data/0").unwrap();
        bytes[start + 200] ^= 1;
        fs::write(at.join("ckpt.pt"), bytes).unwrap();
    };
    check_changed("nanogpt", flip, "is damaged (data/0 ");
    check_changed(
        "hf",
        |at| fs::write(at.join("model.safetensors"), [0xff; 64]).unwrap(),
        "its header is longer than the file",
    );
}

/// A file of torch.save with this pickle.
fn torch_file(path: &Path, pickle: &[u8]) {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("archive/data/0", stored).unwrap();
    zip.write_all(&[0; 64]).unwrap();
    zip.finish().unwrap();
}

#[test]
fn pickles_that_do_more_than_hold_data_are_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("ckpt.pt");
    let witness = place.path().join("witness");
    let command = format!("touch {}", witness.display());
    // os.system(command), as pickle writes it in protocol 2.
    let mut attack = b"\x80\x02cposix\nsystem\nX".to_vec();
    attack.extend_from_slice(&(command.len() as u32).to_le_bytes());
    attack.extend_from_slice(command.as_bytes());
    attack.extend_from_slice(b"\x85R.");
    torch_file(&path, &attack);
    check(
        &path,
        &Hints::default(),
        "contains posix.system, which is not part of a state dict, and folio executes nothing",
    );
    assert!(!witness.exists());
    fs::write(place.path().join("meta.pkl"), &attack).unwrap();
    let meta = Hints { tokenizer: Some(TokenizerKind::File(place.path().join("meta.pkl"))), n_heads: None };
    check(&golden("mingpt"), &meta, "meta.pkl contains posix.system");
    assert!(!witness.exists());
    torch_file(&path, b"\x80\x02N.");
    check(&path, &Hints::default(), "holds no state dict");
    // A view of 64 bytes that claims 2^40 elements, by a stride of 0 and by its size.
    for (shape, strides) in [("\u{1}", "\0"), ("\u{1}", "\u{1}")] {
        let mut view = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQK\0\x8a\x06\0\0\0\0\0".to_vec();
        view.extend_from_slice(shape.as_bytes());
        view.extend_from_slice(b"\x85K");
        view.extend_from_slice(strides.as_bytes());
        view.extend_from_slice(b"\x85\x89NtRs.");
        torch_file(&path, &view);
        check(&path, &Hints::default(), "has the tensor w, which is larger than its storage");
    }
}

#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let given = |kind| Hints { n_heads: None, tokenizer: Some(kind) };
    check(&golden("hf"), &given(TokenizerKind::Bpe), "bpe is not the tokenizer of the model");
    check(
        &golden("hf_bin"),
        &given(TokenizerKind::Bpe),
        "has an embedding of 270 tokens, fewer than the 50257 of GPT-2's tokenizer",
    );
    check(&golden("hf_bin"), &given(TokenizerKind::Chrs), "`tokenizer_type chrs` is made of the text");
    check(
        &golden("hf_bin"),
        &Hints::default(),
        "has an embedding of 270 tokens, but no tokenizer is beside it",
    );
    let foreign = |at: &Path| {
        fs::copy(golden("hf/tokenizer.json"), at.join("tokenizer.json")).unwrap();
    };
    check_changed("nanogpt", foreign, "has an embedding of 13 tokens, fewer than the 265 of the tokenizer");
    check_changed(
        "hf_varied",
        |at| fs::remove_file(at.join("vocab.json")).unwrap(),
        "does not exist, but merges.txt does",
    );
    check_changed(
        "hf_varied",
        |at| fs::write(at.join("merges.txt"), "a qq\n").unwrap(),
        "which is not a pair of its tokens",
    );
    check_changed(
        "nanogpt",
        |at| fs::write(at.join("meta.pkl"), b"\x80\x02}.").unwrap(),
        "holds no character vocabulary",
    );
}
