//! The files of a run: their names, keys and shapes.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::place::{Place, TINY, keys, plays};

/// Training blocks of plays.txt: it has 62 blocks of 16 tokens, a tenth of them for evaluation and a tenth for testing.
const TRAIN_BLOCKS: usize = 50;
/// Steps per epoch, with batches of 4.
const STEPS: usize = TRAIN_BLOCKS.div_ceil(4);

#[test]
fn a_run_writes_these_files_and_no_others() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --save_losses --save_checkpoint --run_dir run"));
    let inside = [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    // The second checkpoint is the newest and the best. The first is kept as a fallback.
    let mut expected: Vec<String> =
        [1, 2].iter().flat_map(|n| inside.map(|name| format!("checkpoint_{n}/{name}"))).collect();
    let files = [
        "best",
        "hyperparameters.json",
        "latest",
        "losses.json",
        "lrs.json",
        "metrics.jsonl",
        "model_hyperparameters.json",
        "status.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ];
    expected.extend(files.map(str::to_owned));
    expected.sort_unstable();
    assert_eq!(place.names("run"), expected);
    assert_eq!(
        (place.link("run/latest"), place.link("run/best")),
        ("checkpoint_2".to_owned(), "checkpoint_2".to_owned())
    );
}

#[test]
fn runs_are_saved_in_a_new_directory_unless_no_save_is_given() {
    let place = Place::new();
    let before = place.files("");
    let ran = place.ok(&format!("train {TINY} --no_save"));
    assert_eq!(place.files(""), before);
    assert!(ran.stderr.contains("--no_save: the model is discarded when training ends"), "{}", ran.stderr);

    let whole = place.ok(&format!("train {TINY} --run_dir whole"));
    assert!(whole.stderr.contains("saving to whole;"), "{}", whole.stderr);
    for (number, run) in ["runs/plays-1x16", "runs/plays-1x16-2", "runs/plays-1x16-3"].iter().enumerate() {
        let ran = place.ok(&format!("train {TINY}"));
        // Before the first step.
        let announced = ran.stderr.find(&format!("saving to {run};")).expect("the directory is announced");
        assert!(announced < ran.stderr.find(" parameters, ").expect("a start"), "{}", ran.stderr);
        assert_eq!(place.names(run), place.names("whole"), "run {number}");
        let model = |run: &str| place.read(&format!("{run}/best/model.safetensors"));
        assert!(model(run) == model("whole"), "{run}");
        place.ok(&format!("generate {run} --max_new_tokens 3"));
        place.ok(&format!("eval {run}"));
        place.ok(&format!("plot {run}"));
        place.ok(&format!("train --resume {run} --num_epochs 3"));
    }
    let sweep = place.ok(&format!("train {TINY} --learning_rates 1e-3 1e-2"));
    assert!(sweep.stderr.contains("saving to runs/plays-sweep;"), "{}", sweep.stderr);
    place.ok("generate runs/plays-sweep --best_eval_loss_model --max_new_tokens 3");
}

#[test]
fn without_save_checkpoint_the_newest_the_best_and_one_to_fall_back_on_are_kept() {
    let place = Place::new();
    let five = TINY.replace("--num_epochs 2", "--num_epochs 5");
    place.ok(&format!("train {five} --run_dir run"));
    let kept = |run: &str| -> Vec<String> {
        let mut names = place.names(run);
        names.retain(|name| name.ends_with("/optimizer.safetensors"));
        names.iter().filter_map(|name| Some(name.split_once('/')?.0.to_owned())).collect()
    };
    // A run this short improves in every epoch, so the newest checkpoint is the best.
    assert_eq!(place.link("run/best"), "checkpoint_5");
    assert_eq!(kept("run"), ["checkpoint_4", "checkpoint_5"]);
    // With a learning rate that grows fourfold per epoch, from 0.01 to 2.56, the loss ends above 10.
    let growing = "--learning_rates 0.01 --lr_schedule cosine_warm_restarts --cosine_T_max 1 --cosine_lr_restart_decay 4";
    place.ok(&format!("train {five} {growing} --run_dir worse"));
    let best = place.link("worse/best");
    assert_ne!(best, "checkpoint_5");
    let mut expected = vec![best, "checkpoint_4".to_owned(), "checkpoint_5".to_owned()];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(kept("worse"), expected);
    // If the newest is damaged, the run can be resumed from another.
    place.write("run/checkpoint_5/optimizer.safetensors", "damaged");
    let ran = place.ok("train --resume run --skip_damaged");
    assert!(ran.stderr.contains("run resumes from checkpoint_4"), "{}", ran.stderr);
}

#[test]
fn every_start_writes_a_tensorboard_event_file() {
    let place = Place::new();
    let event_files = |run: &str| -> Vec<String> {
        place.names(run).into_iter().filter(|name| name.contains("tfevents")).collect()
    };
    let numbered = |number: u32| format!("events.out.tfevents.{number:010}.folio");
    place.ok(&format!("train {TINY} --save_checkpoint --tensorboard --run_dir run"));
    assert_eq!(event_files("run"), [numbered(1)]);
    let first = place.read(&format!("run/{}", numbered(1)));
    // The samples and losses of two epochs, by name.
    for (part, times) in [("epoch/eval_loss", 2), ("step/loss", 2 * STEPS), ("brain.Event:2", 1)] {
        let found = first.windows(part.len()).filter(|window| *window == part.as_bytes()).count();
        assert_eq!(found, times, "{part}");
    }
    place.ok("train --resume run --num_epochs 3");
    assert_eq!(event_files("run"), [numbered(1), numbered(2)]);
    assert!(place.read(&format!("run/{}", numbered(1))) == first, "TensorBoard may be reading it");
    place.write("run/events.out.tfevents.1234567890.host", "another program's");
    place.ok(&format!("train {TINY} --run_dir run --overwrite"));
    assert_eq!(event_files("run"), ["events.out.tfevents.1234567890.host"], "only ours are removed");
    place.ok(&format!("train {TINY} --learning_rates 1e-3 1e-4 --tensorboard --run_dir search"));
    assert_eq!(event_files("search"), [1, 2].map(|run| format!("run_{run}/{}", numbered(1))));
}

#[test]
fn json_files_have_the_keys_of_the_original_project() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --run_dir run --split contiguous"));
    let model = place.json("run/model_hyperparameters.json");
    assert_eq!(
        model,
        json!({
            "vocab_size": chars().len(), "n_blocks": 1, "n_emb": 16, "n_heads": 2, "block_size": 16, "dropout": 0.1,
        })
    );
    let settings = place.json("run/hyperparameters.json");
    let expected = json!({
        "tokenizer_type": "chrs", "split": "contiguous", "n_emb": 16, "n_heads": 2, "n_blocks": 1, "block_size": 16,
        "batch_size": 4, "dropout": 0.1, "num_epochs": 2, "learning_rate": 1e-3, "weight_decay": 1e-2,
        "lr_schedule": "const", "cosine_final_lr": 1e-6, "cosine_T_max": 10, "cosine_T_mult": 1,
        "cosine_lr_restart_decay": 1.0, "save_losses": false, "save_checkpoint": false,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(settings[key], *value, "{key}");
    }
    assert!(settings["data"].as_str().expect("a path").ends_with("plays.txt"), "{}", settings["data"]);
}

#[test]
fn losses_and_rates_have_one_entry_per_epoch() {
    let place = Place::new();
    let ran = place.ok(&format!("train {TINY} --save_losses --run_dir run"));
    assert_eq!(
        keys(&place.json("run/losses.json")),
        [
            "best_eval_loss",
            "clipped_steps",
            "eval_bits_per_byte",
            "eval_bits_per_character",
            "eval_losses",
            "gradient_norms",
            "skipped_steps",
            "steps",
            "train_bits_per_byte",
            "train_bits_per_character",
            "train_losses"
        ]
    );
    let list = |pointer: &str| place.numbers("run/losses.json", pointer);
    assert_eq!(list("/steps"), [STEPS as f64, 2.0 * STEPS as f64]);
    let (train, eval) = (list("/train_losses"), list("/eval_losses"));
    // The loss of uniform predictions is ln V.
    let ignorance = (chars().len() as f64).ln();
    assert!(train[1] < train[0] && (train[0] - ignorance).abs() < 0.3, "{train:?}, ln V = {ignorance}");
    assert_eq!(eval.len(), 2);
    let best = if eval[1] < eval[0] { 1 } else { 0 };
    assert_eq!(list("/best_eval_loss"), [eval[best], ((best + 1) * STEPS) as f64]);
    assert_eq!(place.numbers("run/lrs.json", ""), [1e-3, 1e-3]);
    let reports: Vec<String> = (0..2)
        .map(|e| {
            format!(
                "Epoch: {}/2 || Train loss: {:.4} || Eval loss: {:.4} || lr: 1.0000e-03 || bits per character: \
                 {:.4}, {:.4}",
                e + 1,
                train[e],
                eval[e],
                train[e] / std::f64::consts::LN_2,
                eval[e] / std::f64::consts::LN_2
            )
        })
        .collect();
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), reports, "the report tells what the file holds");
}

#[test]
fn tokenizers_can_be_read_by_other_programs() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --run_dir chrs"));
    place.ok(&format!("train {TINY} --run_dir bpe --tokenizer_type bpe --max_steps 1"));
    let sorted: Vec<String> = chars().iter().map(char::to_string).collect();
    assert_eq!(place.json("chrs/vocab.json"), json!(sorted));
    assert!(!place.path("bpe/vocab.json").exists(), "vocab.json is a list of characters");
    for (name, tokens) in [("chrs", sorted.len()), ("bpe", 50_257)] {
        let tokenizer = place.json(&format!("{name}/tokenizer.json"));
        let vocabulary = tokenizer["model"]["vocab"].as_object().expect("Hugging Face's vocabulary");
        let ids: BTreeSet<u64> = vocabulary.values().filter_map(Value::as_u64).collect();
        assert!(ids.iter().copied().eq(0..tokens as u64), "{name}: ids from 0 to {tokens} without a gap");
        assert_eq!(place.json(&format!("{name}/model_hyperparameters.json"))["vocab_size"], json!(tokens));
    }
}

#[test]
fn checkpoints_have_the_names_and_shapes_of_hugging_face() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --save_checkpoint --run_dir run"));
    let config = place.json("run/checkpoint_2/config.json");
    let (v, t, c) = (chars().len(), 16, 16);
    let expected = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "vocab_size": v,
        "n_positions": t, "n_embd": c, "n_layer": 1, "n_head": 2, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(config[key], *value, "{key}");
    }

    let shapes = [
        ("wte.weight", vec![v, c]),
        ("wpe.weight", vec![t, c]),
        ("h.0.ln_1.weight", vec![c]),
        ("h.0.ln_1.bias", vec![c]),
        ("h.0.attn.c_attn.weight", vec![c, 3 * c]),
        ("h.0.attn.c_attn.bias", vec![3 * c]),
        ("h.0.attn.c_proj.weight", vec![c, c]),
        ("h.0.attn.c_proj.bias", vec![c]),
        ("h.0.ln_2.weight", vec![c]),
        ("h.0.ln_2.bias", vec![c]),
        ("h.0.mlp.c_fc.weight", vec![c, 4 * c]),
        ("h.0.mlp.c_fc.bias", vec![4 * c]),
        ("h.0.mlp.c_proj.weight", vec![4 * c, c]),
        ("h.0.mlp.c_proj.bias", vec![c]),
        ("ln_f.weight", vec![c]),
        ("ln_f.bias", vec![c]),
    ];
    let under = |prefix: &str| -> Vec<_> {
        shapes.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.clone())).collect()
    };
    let weights: BTreeMap<_, _> = under("").into_iter().collect();
    assert_eq!(shapes_in(&place, "run/checkpoint_2/model.safetensors"), weights);
    let means: BTreeMap<_, _> = under("mean.").into_iter().chain(under("square.")).collect();
    assert_eq!(shapes_in(&place, "run/checkpoint_2/optimizer.safetensors"), means);
}

/// The names and shapes in a safetensors file. Checks that all its numbers are finite.
fn shapes_in(place: &Place, name: &str) -> BTreeMap<String, Vec<usize>> {
    let bytes = place.read(name);
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let shape = |(name, tensor): (String, safetensors::tensor::TensorView)| {
        let mut numbers =
            tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        assert!(numbers.all(f32::is_finite), "{name}");
        (name, tensor.shape().to_vec())
    };
    tensors.tensors().into_iter().map(shape).collect()
}

/// The distinct characters of plays.txt, sorted.
fn chars() -> Vec<char> {
    plays().chars().collect::<BTreeSet<char>>().into_iter().collect()
}

#[test]
fn checkpoints_have_everything_transformers_needs() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --max_steps 3 --save_checkpoint --run_dir chrs"));
    let file = |run: &str, name: &str| place.json(&format!("{run}/best/{name}"));
    for name in ["config.json", "generation_config.json"] {
        let config = file("chrs", name);
        assert_eq!(
            (&config["bos_token_id"], &config["eos_token_id"]),
            (&json!(null), &json!(null)),
            "{name}"
        );
    }
    // The number of positions.
    assert_eq!(file("chrs", "generation_config.json")["max_length"], 16);
    let config = file("chrs", "tokenizer_config.json");
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!((&config["model_max_length"], &config["eos_token"]), (&json!(16), &json!(null)));
    assert_eq!(place.text("chrs/best/tokenizer.json"), place.text("chrs/tokenizer.json"));

    place.ok("tokenizer train --data plays.txt --vocab_size 300 --special <|endoftext|> --out own.json");
    let own = TINY.replace("--block_sizes 16", "--block_sizes 20");
    place.ok(&format!("train {own} --max_steps 3 --tokenizer_type own.json --save_checkpoint --run_dir own"));
    for name in ["config.json", "generation_config.json"] {
        let config = file("own", name);
        assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(299), &json!(299)), "{name}");
    }
    // transformers uses a length of 20 if none is set.
    assert_eq!(file("own", "generation_config.json")["max_length"], 19);
    let config = file("own", "tokenizer_config.json");
    assert_eq!(
        (&config["bos_token"], &config["eos_token"]),
        (&json!("<|endoftext|>"), &json!("<|endoftext|>"))
    );
    assert_eq!(place.text("own/best/tokenizer.json"), place.text("own.json"));
}
