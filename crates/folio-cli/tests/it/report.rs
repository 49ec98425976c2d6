//! `folio report` and `folio export`.

use serde_json::Value;

use crate::place::{MODEL, Place, TINY};

/// The figures of a page. Checks that each has exactly one element.
fn figures(page: &str) -> Vec<Value> {
    let start = page.find("id=\"figures\">").expect("a list of figures") + "id=\"figures\">".len();
    let end = start + page[start..].find("</script>").expect("its end");
    let Value::Array(figures) = serde_json::from_str(&page[start..end]).expect("JSON") else {
        panic!("a list")
    };
    for figure in &figures {
        let id = figure["id"].as_str().expect("a name");
        assert_eq!(page.matches(&format!("id=\"{id}\"")).count(), 1, "{id} has one element");
    }
    figures
}

/// A page without its plotting library.
fn own_part(page: &str) -> String {
    let start = page.find("<script>").expect("the library");
    let end = start + page[start..].find("</script>").expect("its end");
    format!("{}{}", &page[..start], &page[end..])
}

#[track_caller]
fn check_loads_nothing(page: &str) {
    let own = own_part(page);
    for part in ["http://", "https://", "src=", "@import", "url(", "fetch("] {
        assert!(!own.contains(part), "the page has '{part}'");
    }
}

#[test]
fn a_run_s_page_shows_its_curves_samples_and_settings() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --save_losses --run_dir run"));
    let ran = place.ok("report run");
    assert_eq!(ran.stdout, "run/report.html\n");
    let page = place.text("run/report.html");
    check_loads_nothing(&page);
    let figures = figures(&page);
    let ids: Vec<&str> = figures.iter().map(|figure| figure["id"].as_str().expect("a name")).collect();
    assert_eq!(ids, ["figure-loss", "figure-bits", "figure-rate", "figure-norm", "figure-speed"]);
    let eval: Vec<f64> =
        figures[0]["data"][2]["y"].as_array().expect("points").iter().filter_map(Value::as_f64).collect();
    assert_eq!(eval, place.numbers("run/losses.json", "/eval_losses"));
    assert_eq!(figures[0]["data"][0]["x"].as_array().expect("points").len(), 26, "every step of two epochs");
    let own = own_part(&page);
    let best = format!("{:.4} after epoch", place.numbers("run/losses.json", "/best_eval_loss")[0]);
    for part in
        ["<html lang=\"en\">", "finished", &best, "Epoch 2", "learning_rate", "0.001", "plays.txt", "folio"]
    {
        assert!(own.contains(part), "lacks '{part}'");
    }
    // --overwrite removes it with the rest of the run.
    place.ok(&format!("train {TINY} --run_dir run --overwrite"));
    assert!(!place.path("run/report.html").exists());
}

#[test]
fn a_sweep_s_page_ranks_its_runs() {
    let place = Place::new();
    let sweep =
        "--block_sizes 16 --batch_sizes 4 --num_epochs 1 --learning_rates 1e-4 3e-3 1e30 --dropouts 0 0.1";
    place.ok(&format!("train {MODEL} {sweep} --run_dir search"));
    place.ok("report search --out page.html");
    let page = place.text("page.html");
    check_loads_nothing(&page);
    let figures = figures(&page);
    let ids: Vec<&str> = figures.iter().map(|figure| figure["id"].as_str().expect("a name")).collect();
    assert_eq!(ids[..4], ["figure-runs", "figure-parallel", "figure-by-dropout", "figure-by-learning_rate"]);
    // Two of the six diverge in their first epoch.
    assert_eq!(figures[1]["data"][0]["dimensions"][0]["values"].as_array().expect("values").len(), 4);
    assert_eq!(figures[3]["layout"]["xaxis"]["type"], "log");
    let ranked = place.ok("runs search").stdout;
    let first: Vec<&str> = ranked.lines().nth(1).expect("a run").split_whitespace().collect();
    let (run, [.., dropout, learning_rate]) = (first[1], &first[..]) else { panic!("{first:?}") };
    let label = format!("lr {learning_rate}, dropout {dropout}");
    let own = own_part(&page);
    assert!(own.contains(&format!("The best is <strong>{label}</strong> ({run}), shown")), "{label}, {run}");
    assert_eq!(figures[0]["data"][0]["name"], label.as_str(), "the legend says what differs");
    // The top margin leaves room for the toolbar above the legend.
    assert!(own.contains("margin: { l: 60, r: 20, t: 40, b: 45 }"));
    let axis = &figures[1]["data"][0]["dimensions"][1];
    assert_eq!((&axis["label"], &axis["ticktext"]), (&"lr".into(), &serde_json::json!(["1e-4", "3e-3"])));
    assert_eq!(own.matches(">diverged<").count(), 2);
}

#[test]
fn samples_are_escaped_in_the_page() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --save_losses --run_dir run"));
    let nasty = "</script><script>alert(1)</script> & <b>\u{fffd}\u{1}\"'</pre>";
    let mut lines: Vec<Value> = place
        .text("run/metrics.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let last = lines.last_mut().expect("an epoch");
    last["sample"] = nasty.into();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    // The last line is incomplete, as after a kill.
    place.write("run/metrics.jsonl", format!("{text}{{\"event\":\"step\",\"st"));
    place.ok("report run");
    let page = place.text("run/report.html");
    assert!(!page.contains("<script>alert"), "a sample becomes a script");
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"), "it is shown as text");
    check_loads_nothing(&page);
}

#[test]
fn runs_without_records_have_a_page() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --run_dir run"));
    for gone in ["metrics.jsonl", "status.json"] {
        std::fs::remove_file(place.path(&format!("run/{gone}"))).expect("there");
        place.ok("report run");
        figures(&place.text("run/report.html"));
    }
    for (line, part) in [
        ("report none", "none does not exist"),
        ("report .", "not a folio run"),
        ("report run --out none/x.html", "none/x.html: No such file or directory"),
    ] {
        let ran = place.run(line);
        assert_eq!(ran.code, Some(1), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(part) && ran.stderr.lines().count() == 1, "{line}: {}", ran.stderr);
    }
}

/// The rows of a table, by the names of its columns.
fn rows(csv: &str) -> Vec<std::collections::BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    reader.deserialize().map(|row| row.expect("as many cells as columns")).collect()
}

#[test]
fn tables_have_every_epoch_and_step() {
    let place = Place::new();
    let sweep = "--block_sizes 16 --batch_sizes 4 --num_epochs 2 --save_losses --learning_rates 1e-3 3e-3";
    place.ok(&format!("train {MODEL} {sweep} --run_dir search"));
    let epochs = rows(&place.ok("export search").stdout);
    assert_eq!(epochs.len(), 4);
    for (index, row) in epochs.iter().enumerate() {
        let (run, epoch) = (index / 2 + 1, index % 2);
        assert_eq!(
            (row["run"].as_str(), row["epoch"].as_str()),
            (format!("run_{run}").as_str(), ["1", "2"][epoch])
        );
        assert_eq!(row["learning_rate"], ["0.001", "0.003"][run - 1]);
        for (column, pointer) in
            [("train_loss", "/train_losses"), ("eval_bits_per_byte", "/eval_bits_per_byte")]
        {
            let saved = place.numbers(&format!("search/run_{run}/losses.json"), pointer)[epoch];
            assert_eq!(row[column].parse(), Ok(saved), "{column} of run {run}");
        }
    }
    place.ok("export search --steps --out steps.csv");
    let steps = rows(&place.text("steps.csv"));
    assert_eq!(steps.len(), 2 * 26);
    assert!(steps.iter().all(|row| row["skipped"] == "false" && row["loss"].parse::<f64>().is_ok()));
}
