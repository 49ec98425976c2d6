//! The main use of each command besides `folio train`.

use folio::text::Corpus;
use folio_kernels::isa::Isa;
use serde_json::{Value, json};

use crate::place::{Place, TINY};

const SAVED: &str = "--save_losses --save_checkpoint";

fn place_with_run() -> Place {
    let place = Place::new();
    place.ok(&format!("train {TINY} {SAVED} --run_dir run"));
    place
}

/// A place with a sweep of three runs: the second has the lowest loss, the third the highest.
fn place_with_sweep() -> Place {
    let place = Place::new();
    place.ok(&format!("train {TINY} {SAVED} --learning_rates 1e-4 3e-3 1e-6 --run_dir search"));
    place
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

#[test]
fn generate_continues_a_prompt_for_max_new_tokens() {
    let place = place_with_run();
    // Longer than the block of 16, so the context is cropped.
    let text = place.ok("generate run --prompt 'First Citizen:' --max_new_tokens 40 --seed 1").stdout;
    assert!(text.starts_with("First Citizen:"), "{text}");
    assert_eq!(text.chars().count(), "First Citizen:".len() + 40 + "\n".len(), "{text}");
    let default = place.ok("generate run").stdout;
    assert_eq!(default.chars().count(), 100 + "\n".len(), "{default}");
}

#[test]
fn generate_is_deterministic_for_a_seed() {
    let place = place_with_run();
    let seeded = |seed: u64| place.ok(&format!("generate run --seed {seed}")).stdout;
    assert_eq!(seeded(1), seeded(1));
    assert_ne!(seeded(1), seeded(2));
    let greedy = place.ok("generate run --temperature 0 --seed 1").stdout;
    assert_eq!(greedy, place.ok("generate run --top_k 1 --seed 2").stdout);
    assert_eq!(greedy, place.ok("generate run --top-p 1e-6 --seed 3").stdout);
    assert_eq!(greedy, place.ok("generate run --temperature 1e-60 --seed 4").stdout);
    assert_eq!(seeded(1), place.ok("generate run --top_k 100000 --top_p 1 --min_p 0 --seed 1").stdout);
}

#[test]
fn generate_writes_the_given_epochs_and_number_of_samples() {
    let place = place_with_run();
    let of = |flags: &str| place.ok(&format!("generate run --seed 1 {flags}")).stdout;
    let (first, second) = (of("--checkpoint_step 1"), of("--checkpoint_step 2"));
    assert_ne!(first, second);
    let losses = place.numbers("run/losses.json", "/eval_losses");
    assert!(losses[1] < losses[0], "it learns");
    assert_eq!(of(""), second, "the best by default");
    assert_eq!(of("--checkpoint_step 1 2"), format!("{first}----\n{second}"));
    let two = of("--num_samples 2");
    let (one, other) = two.split_once("----\n").expect("a line between two samples");
    assert!(one == second && other != second, "{two}");
    assert_eq!(place.ok("generate run --seed 2").stdout, other, "the second sample is the next seed's");
}

#[test]
fn many_samples_are_generated_in_groups() {
    let place = place_with_run();
    // More than are generated in parallel.
    let many = place.ok("generate run --seed 1 --max_new_tokens 3 --num_samples 300").stdout;
    let texts: Vec<&str> = many.split("----\n").collect();
    assert_eq!(texts.len(), 300);
    for sample in [1, 256, 257, 300] {
        let alone = place.ok(&format!("generate run --seed {sample} --max_new_tokens 3")).stdout;
        assert_eq!(texts[sample - 1], alone, "sample {sample}");
    }
    let json =
        json_lines(&place.ok("generate run --seed 1 --max_new_tokens 3 --num_samples 300 --json").stdout);
    assert_eq!((json.len(), &json[299]["seed"]), (300, &json!(300)));
}

#[test]
fn generate_writes_every_checkpoint_with_its_loss() {
    let place = place_with_run();
    let losses = place.numbers("run/losses.json", "/eval_losses");
    let of = |flags: &str| place.ok(&format!("generate run --seed 1 --max_new_tokens 9 {flags}")).stdout;
    let expected: Vec<String> = (1..=2)
        .map(|epoch| {
            let loss = losses[epoch - 1];
            format!(
                "== after epoch {epoch}, eval loss {loss:.4}\n{}",
                of(&format!("--checkpoint_step {epoch}"))
            )
        })
        .collect();
    assert_eq!(of("--all_checkpoints"), expected.join("----\n"));
}

#[test]
fn generate_writes_json() {
    let place = place_with_run();
    let plain = place.ok("generate run --prompt We --num_samples 2 --seed 4 --max_new_tokens 12").stdout;
    let lines = json_lines(
        &place.ok("generate run --prompt We --num_samples 2 --seed 4 --max_new_tokens 12 --json").stdout,
    );
    let texts: Vec<String> =
        lines.iter().map(|line| format!("We{}\n", line["text"].as_str().expect("text"))).collect();
    assert_eq!(texts.join("----\n"), plain);
    for (line, seed) in lines.iter().zip(4..) {
        let expected = json!({
            "checkpoint": "checkpoint_2", "seed": seed, "prompt": "We", "text": line["text"], "tokens": 12,
            "finish": "length",
        });
        assert_eq!(*line, expected);
    }
}

#[test]
fn generate_lists_probabilities_without_colors() {
    let place = place_with_run();
    let flags = "--prompt We --seed 4 --max_new_tokens 30";
    let plain = place.ok(&format!("generate run {flags}")).stdout;
    let listed = place.ok(&format!("generate run {flags} --show-probabilities")).stdout;
    let mut text = String::new();
    for (index, line) in listed.lines().enumerate() {
        let (number, token) = line.split_at(9);
        text += &serde_json::from_str::<String>(token.trim()).expect("a string");
        let percent =
            number.trim().strip_suffix('%').map(|number| number.trim().parse::<f64>().expect("a number"));
        assert!(percent.map_or(index == 0, |percent| (0.0..=100.0).contains(&percent)), "{line}");
    }
    assert_eq!(text + "\n", plain);
}

#[test]
fn generate_stops_before_a_stop_string_and_at_the_end_of_the_context() {
    let place = place_with_run();
    let free = place.ok("generate run --seed 5 --max_new_tokens 60").stdout;
    let (before, _) = free.split_once('e').expect("an e among 60 letters");
    let stopped = place.ok("generate run --seed 5 --max_new_tokens 60 --stop e --stop zzzz").stdout;
    assert_eq!(stopped, format!("{before}\n"));
    // With a block of 16, the start token and 15 more fit; one more token is sampled from the full context.
    let full = place.ok("generate run --seed 5 --max_new_tokens 60 --past_context stop").stdout;
    assert_eq!(full.trim_end_matches('\n'), free.chars().take(16).collect::<String>().trim_end_matches('\n'));
}

#[test]
fn generate_with_any_weight_format_does_not_depend_on_threads() {
    let place = place_with_run();
    for precision in ["f32", "bf16", "int8"] {
        let of = |threads: usize| {
            place.ok(&format!("generate run --seed 1 --precision {precision} --threads {threads}")).stdout
        };
        assert_eq!(of(1), of(3), "{precision}");
    }
}

#[test]
fn chat_continues_the_text_so_far() {
    let place = place_with_run();
    let said = place.ok_with("chat run --seed 1 --max_new_tokens 20", "We \n\n/reset\nWe \n").stdout;
    let alone = place.ok("generate run --seed 1 --max_new_tokens 20 --prompt 'We '").stdout;
    let alone = alone.strip_prefix("We ").expect("the prompt");
    assert!(said.starts_with(alone), "{said} after {alone}");
    assert!(said.ends_with(alone), "{said} goes back to {alone}");
    let refused = place.ok_with("chat run", "We \u{20ac}\n/what\n/temperature x\n/temperature 0.5\n/help\n");
    for part in ["'\u{20ac}'", "/what", "/temperature", "/reset"] {
        assert!(refused.stderr.contains(part), "{part} in {}", refused.stderr);
    }
}

#[test]
fn generate_appends_to_a_file_of_the_run() {
    let place = place_with_run();
    let first = place.ok("generate run --seed 1 --checkpoint_step 1 --write_to_file samples.txt").stdout;
    let second = place.ok("generate run --seed 2 --write_to_file samples.txt --prompt 'We'").stdout;
    let expected = format!("Checkpoint 1 output:\n{first}\nCheckpoint 2 output:\n{second}\n");
    assert_eq!(place.text("run/samples.txt"), expected);
}

#[test]
fn generate_can_use_the_best_model_of_a_sweep() {
    let place = place_with_sweep();
    let loss_of = |run: usize| place.numbers(&format!("search/run_{run}/losses.json"), "/best_eval_loss")[0];
    assert!(
        loss_of(2) < loss_of(1) && loss_of(1) < loss_of(3),
        "the ranking that the learning rates should give"
    );
    let best = place.ok("generate search --best_eval_loss_model --seed 1").stdout;
    assert_eq!(best, place.ok("generate search/run_2 --checkpoint_step 2 --seed 1").stdout);
    assert_ne!(best, place.ok("generate search/run_1 --seed 1").stdout);
}

#[test]
fn eval_gives_loss_perplexity_and_bits_of_each_epoch() {
    let place = place_with_run();
    let ran = place.ok("eval run --checkpoint_step 1 2 --json");
    let measured = json_lines(&ran.stdout);
    assert_eq!(measured.len(), 2);
    for (epoch, measured) in (1..).zip(&measured) {
        let get = |key: &str| measured[key].as_f64().unwrap_or_else(|| panic!("{key}: {measured}"));
        assert_eq!((get("tokens"), get("characters")), (96.0, 96.0), "six blocks of 16");
        assert_eq!(get("perplexity"), get("loss").exp());
        // The same sum of nats divided in another order: two roundings.
        let bits = get("loss") / std::f64::consts::LN_2;
        assert!((get("bits_per_character") - bits).abs() <= 2.0 * f64::EPSILON * bits, "{measured}");
        assert_eq!(measured["checkpoint"], json!(format!("run/checkpoint_{epoch}")));
    }
}

#[test]
fn eval_equals_the_report_when_all_blocks_fit_a_batch() {
    let place = Place::new();
    let large = TINY.replace("--batch_sizes 4", "--batch_sizes 8");
    place.ok(&format!("train {large} {SAVED} --run_dir run"));
    let reported = place.numbers("run/losses.json", "/eval_losses")[1];
    let measured = &json_lines(&place.ok("eval run --json").stdout)[0]["loss"];
    assert_eq!(*measured, json!(reported));
    let lines = place.ok("eval run --threads 3").stdout;
    assert!(lines.contains(&format!("loss                {reported:.4} nats per token")), "{lines}");
}

#[test]
fn eval_measures_each_part_of_the_text() {
    let place = place_with_run();
    let loss = |part: &str| {
        json_lines(&place.ok(&format!("eval run --json --split {part}")).stdout)[0]["loss"].clone()
    };
    let tokens = |part: &str| {
        json_lines(&place.ok(&format!("eval run --json --split {part}")).stdout)[0]["tokens"].clone()
    };
    assert_eq!(
        [tokens("train"), tokens("eval"), tokens("test")],
        [50 * 16, 6 * 16, 6 * 16].map(|count| json!(count))
    );
    assert!(loss("eval") != loss("test") && loss("train") != loss("eval"));
}

#[test]
fn plot_writes_an_svg_and_a_png_of_a_run_and_of_a_sweep() {
    let place = place_with_sweep();
    for run in ["search", "search/run_1"] {
        let ran = place.ok(&format!("plot {run}"));
        assert!(ran.stdout.contains("loss"), "a chart on stdout:\n{}", ran.stdout);
        check_svg(&place.text(&format!("{run}/losses.svg")));
        check_png(&place.read(&format!("{run}/losses.png")));
    }
    let legend = place.text("search/losses.svg");
    assert!(["lr 1e-4", "lr 3e-3", "lr 1e-6"].iter().all(|run| legend.contains(run)), "every run has a name");
    place.ok("plot search --out a.svg b.png");
    assert_eq!(place.text("a.svg"), legend);
    assert_eq!(place.read("b.png"), place.read("search/losses.png"));
}

fn check_svg(svg: &str) {
    let document = roxmltree::Document::parse(svg).expect("well-formed XML");
    let root = document.root_element();
    assert_eq!(root.tag_name().name(), "svg");
    assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
    let drawn = root.descendants().filter(|node| ["polyline", "path"].contains(&node.tag_name().name()));
    assert!(drawn.count() >= 2, "two curves at least: {svg}");
}

fn check_png(png: &[u8]) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size that fits in memory")];
    let frame = reader.next_frame(&mut pixels).expect("all of the picture");
    assert!(frame.width >= 400 && frame.height >= 200, "{} by {}", frame.width, frame.height);
    assert!(pixels.iter().any(|&value| value != pixels[0]), "something is drawn");
}

#[test]
fn runs_ranks_a_sweep_by_its_best_loss() {
    let place = place_with_sweep();
    let table = place.ok("runs search").stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        "rank run state best eval loss bits/char best at learning_rate".split(' ').collect::<Vec<_>>()
    );
    let ranked = [("run_2", "3e-3"), ("run_1", "1e-4"), ("run_3", "1e-6")];
    for (rank, (run, learning_rate)) in (1..).zip(ranked) {
        let losses = format!("search/{run}/losses.json");
        let loss = place.numbers(&losses, "/best_eval_loss")[0];
        let bits = place.numbers(&losses, "/eval_bits_per_character")[1];
        let [rank_text, loss, bits] = [rank.to_string(), format!("{loss:.4}"), format!("{bits:.4}")];
        assert_eq!(rows[rank], [&rank_text, run, "finished", &loss, &bits, "epoch", "2", learning_rate]);
    }
    assert_eq!(rows.len(), 4);

    let lines = json_lines(&place.ok("runs search --json").stdout);
    let names: Vec<_> = lines.iter().map(|line| line["run"].as_str().expect("a name")).collect();
    assert_eq!(names, ranked.map(|(run, _)| run));
    assert_eq!(lines[0]["settings"], place.json("search/run_2/hyperparameters.json"));
}

#[test]
fn corpus_prints_the_embedded_text() {
    let ran = Place::new().ok("corpus");
    assert!(ran.stdout == Corpus::embedded().text, "{} bytes", ran.stdout.len());
}

#[test]
fn bench_step_reports_its_measurements_in_one_json_line() {
    let sizes = "--batch 2 --block 8 --vocab 11 --emb 16 --blocks 1 --heads 2 --steps 2 --dropout 0.25 --threads 1 --optimizer muon";
    let isa = Isa::available()[0].name();
    let ran = Place::new().ok(&format!("bench step {sizes} --isa {isa}"));
    let lines = json_lines(&ran.stdout);
    let [report] = &lines[..] else { panic!("one line: {}", ran.stdout) };
    let expected = json!({
        "what": "step", "batch": 2, "block": 8, "vocab": 11, "emb": 16, "blocks": 1, "heads": 2, "steps": 2,
        "dropout": 0.25, "threads": 1, "optimizer": "muon", "isa": isa,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(report[key], *value, "{key}");
    }
    let get = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert!(get("step_s_min") > 0.0 && get("step_s") >= get("step_s_min"), "{report}");
    // 16 tokens over a time and times it again: two roundings.
    assert!((get("tokens_per_s") * get("step_s") - 16.0).abs() <= 2.0 * f64::EPSILON * 16.0, "{report}");
    assert!(get("gflop_per_s") > 0.0, "{report}");
    // Peak memory is known on Linux only.
    assert!(
        report.get("peak_mib").is_some_and(|peak| peak.as_f64().is_some() || cfg!(not(target_os = "linux")))
    );
}

#[test]
fn suggested_commands_work() {
    let place = Place::new();
    // Titles that a shell would take apart, in characters that ROMEO: has none of.
    let poem = "- 床前明月光, it's $HOME\n疑是地上霜\n举头望明月\n低头思故乡\n".repeat(20);
    place.write("a poem.txt", poem);
    let tiny = TINY.replace("plays.txt", "'a poem.txt'");
    let sweep = format!("train {tiny} --learning_rates 1e-3 1e-4 --run_dir 'two runs'");
    for line in [format!("train {tiny} --run_dir 'my run'"), sweep] {
        let said = place.ok(&line).stderr;
        let (_, next) = said.split_once("next: ").expect("suggestions");
        let commands: Vec<&str> = next.lines().map(str::trim).collect();
        assert_eq!(commands.len(), 4, "{next}");
        assert!(commands[0].starts_with("folio generate ") && commands[0].contains("床前明月光"), "{next}");
        for command in commands.iter().filter(|command| !command.starts_with("folio serve ")) {
            let words = shlex::split(command).expect("a shell's words");
            assert_eq!(words[0], "folio");
            place.ok_words(&words[1..]);
        }
    }
}
