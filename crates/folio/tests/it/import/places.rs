//! Where models and tokenizers are looked for.

use super::*;

#[test]
fn a_tokenizer_is_found_where_programs_keep_it() {
    // nanoGPT keeps a checkpoint in out/ and the vocabulary in data/NAME/.
    let place = tempfile::tempdir().unwrap();
    let [out, data] = ["out", "data/to_be"].map(|name| place.path().join(name));
    fs::create_dir_all(&out).unwrap();
    fs::create_dir_all(&data).unwrap();
    fs::copy(golden("nanogpt_no_bias/ckpt.pt"), out.join("ckpt.pt")).unwrap();
    let message = import::read(&out, &Hints::default()).unwrap_err().to_string();
    assert!(message.contains("has an embedding of 13 tokens, but no tokenizer is beside it"), "{message}");
    fs::copy(golden("nanogpt/meta.pkl"), data.join("meta.pkl")).unwrap();
    let found = import::read(&out, &Hints::default()).unwrap();
    assert_eq!(found.tokenizer, read("nanogpt").tokenizer);
    assert_eq!(found.tokenizer.decode(&[0, 1, 2, 3]), " ,be");
}

#[test]
fn a_model_with_gpt_2_s_rows_has_gpt_2_s_tokenizer() {
    for rows in [50_257, 50_304] {
        let place = copy("hf");
        fs::remove_file(place.path().join("tokenizer.json")).unwrap();
        let path = place.path().join("config.json");
        let config = fs::read_to_string(&path)
            .unwrap()
            .replace("\"vocab_size\": 270", &format!("\"vocab_size\": {rows}"));
        fs::write(&path, config).unwrap();
        edit(place.path(), |parts| {
            let (_, shape, bytes) = parts.get_mut("transformer.wte.weight").unwrap();
            *shape = vec![rows, 8];
            bytes.resize(rows * 8 * 4, 0);
        });
        let found = import::read(place.path(), &Hints::default()).unwrap();
        assert_eq!((found.tokenizer.vocab_size(), found.config.vocab_size), (50_257, rows));
        assert_eq!(found.tokenizer_kind, TokenizerKind::Bpe);
        let settings = found.settings(Settings { block_size: 4, ..Settings::default() }).unwrap();
        assert_eq!(settings.embedding_rows, (rows > 50_257).then_some(rows));
        assert_eq!(settings.model_config(50_257).vocab_size, rows);
    }
}

#[test]
fn a_head_that_equals_the_embedding_is_tied() {
    let place = copy("hf");
    edit(place.path(), |parts| {
        let embedding = parts["transformer.wte.weight"].clone();
        parts.insert("lm_head.weight".to_owned(), embedding);
    });
    let found = import::read(place.path(), &Hints::default()).unwrap();
    assert!(found.config.tie_word_embeddings);
    assert_eq!(found.sha256, read("hf").sha256);
}

#[test]
fn mingpt_s_heads_may_be_given() {
    let place = copy("mingpt");
    fs::remove_file(place.path().join("config.json")).unwrap();
    let message = import::read(place.path(), &hints("mingpt")).unwrap_err().to_string();
    assert!(message.ends_with("does not say how many attention heads the model has, and no config.json beside it does: give `n_heads`"), "{message}");
    let given = Hints { n_heads: Some(2), ..hints("mingpt") };
    let found = import::read(&place.path().join("model.pt"), &given).unwrap();
    assert_eq!(found.sha256, read("mingpt").sha256);
}
