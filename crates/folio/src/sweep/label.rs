//! Short labels for runs: the settings in which they differ, as in `lr 3e-3, dropout 0`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::settings::setting;

/// The names of the settings in which runs differ, without those that do not affect how good a run is. Each run is the
/// content of its `hyperparameters.json`.
pub fn differing(runs: &[&Value]) -> Vec<String> {
    let Some((first, others)) = runs.split_first() else { return Vec::new() };
    let keys = first.as_object().into_iter().flat_map(|settings| settings.keys());
    let differs = |key: &&String| {
        let matters = setting(key).is_none_or(|setting| !setting.label.is_empty());
        matters && others.iter().any(|run| run[key.as_str()] != first[key.as_str()])
    };
    keys.filter(differs).cloned().collect()
}

/// A label for each run, in the order of the runs, made of the settings `varying`. Labels that several runs would share
/// are empty.
///
/// ```
/// use folio::sweep::labels;
/// use serde_json::json;
/// let runs = [json!({ "dropout": 0.0, "learning_rate": 0.003 }), json!({ "dropout": 0.2, "learning_rate": 0.001 })];
/// let varying = ["dropout", "learning_rate"].map(str::to_owned);
/// assert_eq!(labels(&[&runs[0], &runs[1]], &varying), ["lr 3e-3, dropout 0", "lr 1e-3, dropout 0.2"]);
/// ```
pub fn labels(runs: &[&Value], varying: &[String]) -> Vec<String> {
    let (mut keys, rest): (Vec<&String>, Vec<&String>) =
        varying.iter().partition(|key| *key == "learning_rate");
    keys.extend(rest);
    let label = |run: &&Value| {
        let settings = keys.iter().filter(|key| !run[key.as_str()].is_null());
        let parts: Vec<String> =
            settings.map(|key| format!("{} {}", short_name(key), shown(&run[key.as_str()]))).collect();
        parts.join(", ")
    };
    let labels: Vec<String> = runs.iter().map(label).collect();
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<String> =
        labels.iter().filter(|label| !seen.insert(label.as_str())).cloned().collect();
    labels.into_iter().map(|label| if twice.contains(&label) { String::new() } else { label }).collect()
}

/// A setting's name where room is short.
pub fn short_name(name: &str) -> String {
    match setting(name) {
        Some(setting) if !setting.label.is_empty() && setting.label != setting.name => {
            setting.label.to_owned()
        }
        _ => name.replace('_', " "),
    }
}

/// A setting's value in short: `3e-3`, `0.1`, the file name of a path, `-` for none.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.rsplit(['/', '\\']).next().unwrap_or_default().to_owned(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), short_number),
        other => other.to_string(),
    }
}

/// A number with at most four digits, as `3e-3` or `0.003`, whichever is shorter; integers in full.
pub fn short_number(x: f64) -> String {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        // Adding 0 turns -0 into 0.
        return format!("{}", x + 0.0);
    }
    let rounded: f64 = format!("{x:.3e}").parse().expect("a number was just written");
    let (plain, exponent) = (rounded.to_string(), format!("{rounded:e}"));
    if exponent.len() < plain.len() { exponent } else { plain }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_short_and_exact_to_four_digits() {
        let check = |x: f64, want: &str| assert_eq!(short_number(x), want);
        check(0.003, "3e-3");
        check(0.001, "1e-3");
        check(1e-6, "1e-6");
        check(0.01, "0.01");
        check(0.2, "0.2");
        check(0.0, "0");
        check(-0.0, "0");
        check(0.004247, "0.004247");
        check(0.12341, "0.1234");
        check(1024.0, "1024");
        check(1000.0, "1000");
        check(1e30, "1e30");
        check(f64::NAN, "NaN");
    }

    #[test]
    fn values_are_shown_in_short() {
        let check = |value: Value, want: &str| assert_eq!(shown(&value), want);
        check(Value::Null, "-");
        check(json!("/home/me/plays.txt"), "plays.txt");
        check(json!("blocks"), "blocks");
        check(json!(64), "64");
        check(json!(0.0), "0");
        check(json!(true), "true");
    }

    #[test]
    fn labels_show_what_differs() {
        let run = |lr: f64, batch: u64, hash: &str| json!({ "data_sha256": hash, "batch_size": batch, "dropout": 0.1, "learning_rate": lr });
        let check = |runs: &[Value], want: &[&str]| {
            let runs: Vec<&Value> = runs.iter().collect();
            assert_eq!(labels(&runs, &differing(&runs)), want);
        };
        check(&[run(1e-3, 8, "a"), run(3e-4, 8, "b")], &["lr 1e-3", "lr 3e-4"]);
        check(&[run(1e-3, 8, ""), run(3e-4, 16, "")], &["lr 1e-3, batch 8", "lr 3e-4, batch 16"]);
        check(&[run(1e-3, 8, ""), run(3e-4, 8, ""), run(3e-4, 8, "")], &["lr 1e-3", "", ""]);
        check(&[run(1e-3, 8, "")], &[""]);
        check(&[], &[]);
    }
}
