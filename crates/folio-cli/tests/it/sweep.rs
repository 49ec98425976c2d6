//! A sweep runs every combination, in the order stated: the last flag varies fastest.

use serde_json::{Value, json};

use crate::place::{MODEL, Place};

/// A flag, the key under which a run records it, and two values in an order that is not the sorted one.
struct Axis {
    flag: &'static str,
    key: &'static str,
    values: [Value; 2],
}

fn axis(flag: &'static str, key: &'static str, values: [Value; 2]) -> Axis {
    Axis { flag, key, values }
}

/// All flags that take several values, in nesting order.
fn axes() -> [Axis; 14] {
    [
        axis("block_sizes", "block_size", [json!(16), json!(8)]),
        axis("batch_sizes", "batch_size", [json!(4), json!(2)]),
        axis("learning_rates", "learning_rate", [json!(0.001), json!(0.002)]),
        axis("weight_decays", "weight_decay", [json!(0.5), json!(0.1)]),
        axis("dropouts", "dropout", [json!(0.25), json!(0.0)]),
        axis("cosine_final_lr", "cosine_final_lr", [json!(0.00002), json!(0.00001)]),
        axis("cosine_T_max", "cosine_T_max", [json!(7), json!(3)]),
        axis("cosine_T_mult", "cosine_T_mult", [json!(2), json!(1)]),
        axis("cosine_lr_restart_decay", "cosine_lr_restart_decay", [json!(0.5), json!(2.0)]),
        axis("wsd_decay", "wsd_decay", [json!(0.5), json!(0.25)]),
        axis("weight_decay_final", "weight_decay_final", [json!(0.5), json!(0.0)]),
        axis("dropout_final", "dropout_final", [json!(0.25), json!(0.0)]),
        axis("muon_learning_rate", "muon_learning_rate", [json!(0.02), json!(0.01)]),
        axis("muon_momentum", "muon_momentum", [json!(0.95), json!(0.9)]),
    ]
}

/// Runs the sweep over `axes`, whose flags are given in reverse, and checks each run's place in it.
fn check_order(axes: &[Axis]) {
    let place = Place::new();
    let flags = axes.iter().rev().map(|axis| {
        let [first, second] = &axis.values;
        format!(" --{} {first} {second}", axis.flag)
    });
    let flags: String = flags.collect();
    let others = "--lr_schedule cosine_warm_restarts --num_epochs 1 --max_steps 1 --run_dir search";
    let ran = place.ok(&format!("train {MODEL} {others}{flags}"));
    let titles: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("Experiment ")).collect();

    let count = 1 << axes.len();
    assert_eq!(titles.len(), count);
    for (run, title) in titles.iter().enumerate() {
        let settings = place.json(&format!("search/run_{}/hyperparameters.json", run + 1));
        for (digit, axis) in axes.iter().rev().enumerate() {
            // Counting in binary, the last flag is the lowest digit.
            let value = &axis.values[run >> digit & 1];
            assert_eq!(settings[axis.key], *value, "{} of run_{}", axis.key, run + 1);
            let reported = format!("{} {}", axis.key, value.as_f64().expect("a number"));
            assert!(title.contains(&reported), "'{title}' lacks '{reported}'");
        }
        assert!(title.starts_with(&format!("Experiment {}/{count}: ", run + 1)), "{title}");
    }
    assert!(!place.path(&format!("search/run_{}", count + 1)).exists());
}

#[test]
fn model_and_optimizer_flags_nest_in_the_stated_order() {
    check_order(&axes()[..5]);
}

#[test]
fn schedule_flags_nest_inside_them() {
    check_order(&axes()[4..9]);
}

#[test]
fn later_settings_nest_innermost() {
    check_order(&axes()[9..]);
}

#[test]
fn values_in_a_file_make_a_sweep_too() {
    let place = Place::new();
    place.write("search.toml", "learning_rates = [1e-3, 1e-4]\ndropouts = 0.0\n");
    let others = "--block_sizes 16 --num_epochs 1 --max_steps 1 --run_dir search";
    place.ok(&format!("train {MODEL} {others} --config search.toml"));
    for (run, learning_rate) in [(1, 1e-3), (2, 1e-4)] {
        let settings = place.json(&format!("search/run_{run}/hyperparameters.json"));
        assert_eq!(settings["learning_rate"], json!(learning_rate));
    }
}
