use std::fs;

use super::super::gpt2::gpt2;
use super::read::{elements, from_json};
use super::*;

fn chars_file() -> Value {
    serde_json::to_value(of(&TokenizerModel::Chars(CharVocabulary::of_text("abé")))).unwrap()
}

fn gpt2_file() -> Value {
    serde_json::to_value(of(&TokenizerModel::Bpe(gpt2()))).unwrap()
}

/// Changes a good file, which must then be refused with this message.
#[track_caller]
fn check_refused(mut file: Value, edit: impl Fn(&mut Value), expected: &str) {
    edit(&mut file);
    let reason = from_json(&file).unwrap_err();
    assert!(reason.starts_with(expected), "{reason:?} does not start with {expected:?}");
}

#[test]
fn files_have_the_fields_of_the_format() {
    let chars = chars_file();
    assert_eq!(chars["model"]["vocab"], json!({ "a": 0, "b": 1, "é": 2 }));
    assert_eq!((&chars["decoder"], &chars["pre_tokenizer"]), (&json!({ "type": "Fuse" }), &Value::Null));
    let gpt2 = gpt2_file();
    assert_eq!(gpt2["model"]["vocab"]["<|endoftext|>"], 50_256);
    assert_eq!(gpt2["added_tokens"][0]["content"], "<|endoftext|>");
    assert_eq!(gpt2["model"]["merges"][2], "h e");
    assert_eq!(gpt2["pre_tokenizer"]["add_prefix_space"], false);
}

#[test]
fn characters_in_any_order_load() {
    let mut file = chars_file();
    file["model"]["vocab"] = json!({ "a": 2, "é": 0, "b": 1 });
    let expected = CharVocabulary::new(vec!['é', 'b', 'a']).unwrap();
    assert_eq!(from_json(&file), Ok(TokenizerModel::Chars(expected)));
}

#[test]
fn other_spellings_of_gpt2_load() {
    let mut file = gpt2_file();
    let pairs = elements(&file["model"]["merges"]).iter().map(|merge| {
        let (left, right) = merge.as_str().unwrap().split_once(' ').unwrap();
        json!([left, right])
    });
    file["model"]["merges"] = pairs.collect();
    file["model"].as_object_mut().unwrap().remove("type");
    file["model"]["vocab"].as_object_mut().unwrap().remove("<|endoftext|>");
    file["model"]["continuing_subword_prefix"] = json!("");
    assert_eq!(from_json(&file), Ok(TokenizerModel::Bpe(gpt2())));
}

#[test]
fn broken_vocabularies_are_refused() {
    let vocab = |vocab: Value| move |file: &mut Value| file["model"]["vocab"] = vocab.clone();
    check_refused(chars_file(), vocab(json!({})), "has an empty vocabulary");
    check_refused(chars_file(), vocab(json!(["a"])), "has no object 'model.vocab'");
    check_refused(
        chars_file(),
        vocab(json!({ "a": 1 })),
        "gives \"a\" the id 1; the ids of 1 tokens must be 0 to 0",
    );
    check_refused(chars_file(), vocab(json!({ "a": -1 })), "gives \"a\" the id -1");
    check_refused(chars_file(), vocab(json!({ "a": 0, "b": 0 })), "gives \"a\" and \"b\" the same id 0");
    check_refused(chars_file(), vocab(json!({ "ab": 0 })), "has the token \"ab\"");
    check_refused(chars_file(), vocab(json!({ "": 0 })), "has the token \"\"");
}

#[test]
fn foreign_tokenizers_are_refused() {
    let set = |pointer: &'static str, value: Value| {
        move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value.clone()
    };
    check_refused(json!([]), |_| {}, "has no object 'model'");
    check_refused(chars_file(), set("/model/type", json!("Unigram")), "has a model of type 'Unigram'");
    check_refused(chars_file(), set("/model/type", json!(1)), "has a model of type ''");
    for option in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        let set_option = move |file: &mut Value| file["model"][option] = json!("x");
        check_refused(chars_file(), set_option, &format!("has the option 'model.{option}'"));
        check_refused(gpt2_file(), set_option, &format!("has the option 'model.{option}'"));
    }
    for option in ["unk_token", "byte_fallback", "ignore_merges"] {
        let set_option = move |file: &mut Value| file["model"][option] = json!(true);
        check_refused(
            chars_file(),
            set_option,
            &format!("has the option 'model.{option}' without a byte-level"),
        );
    }
    check_refused(chars_file(), set("/model/merges", json!(["a b"])), "has merges or added tokens");
    check_refused(chars_file(), set("/normalizer", json!({ "type": "NFC" })), "has a 'normalizer' without");
    let bert = json!({ "type": "BertProcessing" });
    check_refused(
        chars_file(),
        set("/post_processor", bert),
        "has a 'post_processor' of type 'BertProcessing'",
    );
    check_refused(chars_file(), set("/decoder", Value::Null), "has characters without the decoder 'Fuse'");
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": true });
    check_refused(chars_file(), set("/pre_tokenizer", byte_level), "has a 'decoder' that is not ByteLevel");
    let unset = json!({ "type": "ByteLevel" });
    check_refused(gpt2_file(), set("/pre_tokenizer", unset), "has null in 'pre_tokenizer.add_prefix_space'");
}

#[test]
fn options_that_change_nothing_load() {
    let mut file = gpt2_file();
    // Every byte has a token, so nothing is ever unknown.
    file["model"]["unk_token"] = json!("<|endoftext|>");
    file["model"]["byte_fallback"] = json!(true);
    file["model"]["dropout"] = json!(0.0);
    assert_eq!(from_json(&file), Ok(TokenizerModel::Bpe(gpt2())));
}

#[test]
fn byte_level_bpes_that_do_not_fit_together_are_refused() {
    let set = |pointer: &'static str, value: Value| {
        move |file: &mut Value| *file.pointer_mut(pointer).unwrap() = value.clone()
    };
    let merge = |value| set("/model/merges/7", value);
    check_refused(gpt2_file(), merge(json!("q zzz")), "has the merge \"q zzz\", which is not a pair");
    check_refused(gpt2_file(), merge(json!(["a", "b", "c"])), "has the merge [\"a\",\"b\",\"c\"]");
    check_refused(gpt2_file(), merge(json!(7)), "has the merge 7");
    check_refused(gpt2_file(), merge(json!("zz qq")), "has");
    check_refused(gpt2_file(), merge(json!("Ġ t")), "has merge 7, whose result is \" t\", twice");
    check_refused(
        gpt2_file(),
        set("/added_tokens/0/id", json!(7)),
        "gives \"<|endoftext|>\" the id 50256 in one",
    );
    check_refused(gpt2_file(), set("/added_tokens/0/content", json!("<pad>")), "gives");
    let rename = |from: &'static str, to: &'static str| {
        move |file: &mut Value| {
            let vocab = file["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove(from).unwrap();
            vocab.insert(to.to_owned(), id);
        }
    };
    check_refused(
        gpt2_file(),
        rename("!", "日"),
        "has the token \"日\", which is not written in the alphabet",
    );
    check_refused(gpt2_file(), rename("zzle", "zzqx"), "has");
}

#[test]
fn any_byte_level_bpe_loads() {
    let mut file = gpt2_file();
    let swap = |file: &mut Value| {
        let vocab = &mut file["model"]["vocab"];
        assert_eq!((&vocab["the"], &vocab["oad"]), (&json!(1169), &json!(1170)));
        vocab["the"] = json!(1170);
        vocab["oad"] = json!(1169);
    };
    swap(&mut file);
    let Ok(TokenizerModel::Bpe(bpe)) = from_json(&file) else { panic!("a BPE") };
    assert_eq!((bpe.encode("the"), bpe.encode("oad")), (vec![1170], vec![1169]));
    file["model"]["merges"] = json!([]);
    let Ok(TokenizerModel::Bpe(bytes)) = from_json(&file) else { panic!("a BPE") };
    assert_eq!(bytes.encode("the"), [83, 71, 68]);
}

#[track_caller]
fn check_unreadable(contents: Option<&[u8]>, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    if let Some(contents) = contents {
        fs::write(&path, contents).unwrap();
    }
    let message = read(&path).unwrap_err().to_string();
    assert!(message.contains(expected) && message.contains("tokenizer.json"), "{message:?}");
    assert!(!message.contains('\n'), "{message:?}");
}

#[test]
fn unreadable_files_are_named() {
    check_unreadable(None, "does not exist; give the folder of a run");
    check_unreadable(Some(b"{\"model\":"), "is not valid JSON: EOF");
    check_unreadable(Some(b"\xff"), "is not valid JSON");
    check_unreadable(Some(&vec![b' '; (MAX_FILE_BYTES + 1) as usize]), "is larger than 64 MiB");
}
