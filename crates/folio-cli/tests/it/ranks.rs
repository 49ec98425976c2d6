//! `folio train` on several ranks of a real MPI library, on this machine.

use std::io::{BufRead, BufReader, Write, stderr};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::place::{Place, words};

/// A model whose batches of 4 sequences are divided over up to 4 ranks. An epoch has 13 steps.
const RUN: &str = "train --data plays.txt --n_emb 16 --n_heads 2 --n_blocks 1 --block_sizes 16 --batch_sizes 4 \
                   --dropouts 0.1 --precision f32 --save_checkpoint --keep all";
/// MPICH's launcher.
const MPICH: &str = "mpirun.mpich";
/// The files of a checkpoint that must be equal.
const FILES: [&str; 3] = ["model.safetensors", "optimizer.safetensors", "state.json"];

/// A launcher with some ranks of `folio`: Open MPI's, or MPICH's if FOLIO_MPIRUN is `mpich`. `None`, with a notice, on a machine
/// without it. With FOLIO_MPIRUN set that is a failure.
fn mpirun(place: &Place, ranks: usize, line: &str) -> Option<Command> {
    let mut command = launcher()?;
    command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_folio")]).args(words(line));
    command.current_dir(place.path(""));
    Some(command)
}

/// The launcher and its flags.
fn launcher() -> Option<Command> {
    let wanted = std::env::var("FOLIO_MPIRUN").ok();
    let is_mpich = wanted.as_deref() == Some("mpich");
    let launcher = if is_mpich { MPICH } else { "mpirun.openmpi" };
    if let Err(error) = Command::new(launcher).arg("--version").output() {
        assert!(wanted.is_none(), "{launcher}: {error}: see .ci/mpi");
        // Not eprintln!, whose output is hidden for tests that pass.
        let _ = writeln!(stderr(), "\nRANKS ARE NOT TESTED: {launcher}: {error}. `.ci/mpi` installs it.\n");
        return None;
    }
    let mut command = Command::new(launcher);
    if !is_mpich {
        // More ranks than processors, which yield while they wait.
        command.args(["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]);
        command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    }
    Some(command)
}

#[track_caller]
fn check_same(place: &Place, one: &str, other: &str) {
    for file in FILES {
        let [one, other] = [one, other].map(|run| place.read(&format!("{run}/{file}")));
        assert!(one == other, "{file} differs");
    }
}

#[test]
fn one_two_and_four_ranks_train_the_same_bits() {
    let place = Place::new();
    place.ok(&format!("{RUN} --num_epochs 2 --gradient_accumulation_steps 4 --run_dir alone"));
    for (ranks, accumulation) in [(2, 2), (4, 1)] {
        let line = format!(
            "{RUN} --num_epochs 2 --gradient_accumulation_steps {accumulation} --run_dir ranks_{ranks}"
        );
        let Some(mut mpirun) = mpirun(&place, ranks, &line) else { return };
        let output = mpirun.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{ranks} ranks: {said}");
        assert_eq!(said.matches("the run is in").count(), 1, "only rank 0 prints: {said}");
        check_same(&place, "alone/checkpoint_2", &format!("ranks_{ranks}/checkpoint_2"));
    }
}

/// Runs ranks to their end. `None` on a machine without a launcher; otherwise what they printed on stderr.
#[track_caller]
fn train(place: &Place, ranks: usize, line: &str) -> Option<String> {
    let output = mpirun(place, ranks, line)?.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{ranks} ranks: {said}");
    Some(said)
}

#[test]
fn ranks_that_divide_adamw_train_the_same_bits_and_resume_without_dividing_it() {
    let place = Place::new();
    // Batches of 7 sequences, the last of 3: a rank of 4 has none.
    let run = RUN.replace("--batch_sizes 4", "--batch_sizes 7");
    for accumulation in [3, 4] {
        place.ok(&format!(
            "{run} --num_epochs 2 --gradient_accumulation_steps {accumulation} --run_dir alone_{accumulation}"
        ));
    }
    for (ranks, accumulation, whole) in [(2, 2, "alone_4"), (4, 1, "alone_4"), (3, 1, "alone_3")] {
        let name = format!("zero_{ranks}");
        let line = format!(
            "{run} --num_epochs 1 --gradient_accumulation_steps {accumulation} --zero 1 --run_dir {name}"
        );
        let Some(said) = train(&place, ranks, &line) else { return };
        assert!(said.contains(&format!("\n{ranks} ranks: ")), "{said}");
        assert!(said.contains("of memory each at most, communication "), "{said}");
        check_same(&place, &format!("{whole}/checkpoint_1"), &format!("{name}/checkpoint_1"));
        let metrics = String::from_utf8(place.read(&format!("{name}/metrics.jsonl"))).expect("UTF-8");
        let records = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let reports: Vec<Value> = records.filter(|record| record["event"] == "ranks").collect();
        assert_eq!(reports.len(), 1, "{metrics}");
        assert_eq!(reports[0]["ranks"].as_array().map(Vec::len), Some(ranks), "{metrics}");
        let line = format!("train --resume {name} --zero 0 --num_epochs 2");
        assert!(train(&place, ranks, &line).is_some());
        check_same(&place, &format!("{whole}/checkpoint_2"), &format!("{name}/checkpoint_2"));
    }
}

#[test]
fn gradients_in_bfloat16_train_the_same_bits_each_time_whatever_else_is_divided() {
    let place = Place::new();
    for (name, flags) in [
        ("f32", ""),
        ("bf16", "--reduce_precision bf16"),
        ("again", "--reduce_precision bf16"),
        ("zero", "--reduce_precision bf16 --zero 1"),
    ] {
        let line = format!("{RUN} --num_epochs 1 {flags} --run_dir {name}");
        if train(&place, 3, &line).is_none() {
            return;
        }
    }
    check_same_weights(&place, "bf16", "again");
    check_same_weights(&place, "bf16", "zero");
    let model = |run: &str| place.read(&format!("{run}/checkpoint_1/model.safetensors"));
    assert_ne!(model("bf16"), model("f32"));
}

#[track_caller]
fn check_same_weights(place: &Place, one: &str, other: &str) {
    check_same(place, &format!("{one}/checkpoint_1"), &format!("{other}/checkpoint_1"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_signal_to_one_rank_saves_and_stops_all_and_another_number_resumes() {
    let place = Place::new();
    let steps = "--num_epochs 100 --max_steps 1200";
    let Some(mut mpirun) =
        mpirun(&place, 2, &format!("{RUN} {steps} --gradient_accumulation_steps 2 --run_dir run"))
    else {
        return;
    };
    let mut ranks = mpirun.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    let mut lines =
        BufReader::new(ranks.stderr.take().expect("piped")).lines().map(|line| line.expect("UTF-8"));
    assert!(lines.any(|line| line.contains("steps in f32")), "training has begun");
    kill_process(pid_of_rank_1(ranks.id()), Signal::TERM).expect("it runs");
    let rest: Vec<String> = lines.collect();
    assert!(rest.iter().any(|line| line.starts_with("stopped; to resume")), "{rest:#?}");
    assert!(!ranks.wait().expect("it ends").success());
    assert_eq!(place.json("run/status.json")["state"], json!("stopped"));

    let alone = "--gradient_accumulation_steps 4";
    place.ok(&format!("train --resume run {steps} {alone}"));
    place.ok(&format!("{RUN} {steps} {alone} --run_dir alone"));
    check_same(&place, "alone/latest", "run/latest");
}

#[test]
#[cfg(target_os = "linux")]
fn a_rank_that_is_killed_ends_the_job_and_the_newest_checkpoint_resumes() {
    let place = Place::new();
    let run = format!("{RUN} --num_epochs 100000 --run_dir run").replace("--keep all", "--keep best");
    let Some(mut mpirun) = mpirun(&place, 2, &run) else { return };
    let mut ranks = mpirun.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut lines =
        BufReader::new(ranks.stdout.take().expect("piped")).lines().map(|line| line.expect("UTF-8"));
    assert!(lines.any(|line| line.starts_with("Epoch: 3/")), "three epochs are saved");
    kill_process(pid_of_rank_1(ranks.id()), Signal::KILL).expect("it runs");
    lines.for_each(drop);
    assert!(!ranks.wait().expect("it ends").success());
    let epochs = place.json("run/latest/state.json")["epoch"].as_u64().expect("a number");
    assert!(epochs >= 2, "{epochs}");
    place.ok(&format!("train --resume run --num_epochs {}", epochs + 1));
}

/// A file size limit of 4 KiB, less than a checkpoint needs, stands for a full disk.
#[test]
fn a_full_disk_on_rank_0_ends_all_ranks_and_costs_only_what_could_not_be_saved() {
    let place = Place::new();
    place.ok(&format!("{RUN} --num_epochs 1 --run_dir run"));
    let before = place.files("run/checkpoint_1");
    let Some(mut mpirun) = launcher().filter(|command| command.get_program() != MPICH) else {
        return; // MPICH's ranks talk over files of memory, which the limit forbids. So do Open MPI's, unless they are told not to.
    };
    let folio = [env!("CARGO_BIN_EXE_folio"), "train", "--resume", "run", "--num_epochs", "2"];
    mpirun.env("OMPI_MCA_btl", "tcp,self");
    mpirun.args(["-n", "1", "sh", "-c", "ulimit -f 8; exec \"$0\" \"$@\""]).args(folio);
    mpirun.args([":", "-n", "1"]).args(folio).current_dir(place.path(""));
    let output = mpirun.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("could not be saved"), "{said}");
    assert_eq!(place.files("run/checkpoint_1"), before);
    place.ok("train --resume run --num_epochs 2");
}

/// The process of rank 1, a descendant of the launcher.
#[cfg(target_os = "linux")]
fn pid_of_rank_1(launcher: u32) -> Pid {
    let children = |pid: &str| {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let list = std::fs::read_to_string(path).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let is_rank_1 = |pid: &String| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        variables.any(|variable| variable == b"OMPI_COMM_WORLD_RANK=1" || variable == b"PMI_RANK=1")
    };
    let mut processes = children(&launcher.to_string());
    while let Some(pid) = processes.pop() {
        if is_rank_1(&pid) {
            return Pid::from_raw(pid.parse().expect("a number")).expect("not 0");
        }
        processes.extend(children(&pid));
    }
    panic!("rank 1 is not there");
}

#[test]
fn the_runs_of_a_sweep_are_shared_by_ranks() {
    let place = Place::new();
    let sweep = format!("{RUN} --num_epochs 2 --lr 3e-3 2e-3 1e-3 5e-4");
    place.ok(&format!("{sweep} --run_dir alone"));
    for (flags, run_dir, same) in [("", "runs", true), ("--parallel batches", "batches", false)] {
        let Some(mut mpirun) = mpirun(&place, 3, &format!("{sweep} {flags} --run_dir {run_dir}")) else {
            return;
        };
        let output = mpirun.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let shown = String::from_utf8_lossy(&output.stdout);
        for run in 1..=4 {
            assert!(shown.contains(&format!("Experiment {run}/4")), "{shown}");
            let [alone, ranks] = ["alone", run_dir].map(|sweep| format!("{sweep}/run_{run}/losses.json"));
            // Three ranks add gradients in another order.
            assert!(
                place.path(&ranks).exists() && (!same || place.read(&ranks) == place.read(&alone)),
                "{ranks}"
            );
        }
    }
    // With nothing saved, the ranks need no directory.
    let Some(mut mpirun) = mpirun(&place, 2, &sweep.replace("--save_checkpoint --keep all", "--no_save"))
    else {
        return;
    };
    let output = mpirun.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn mistakes_end_all_ranks_with_one_line() {
    let place = Place::new();
    for (ranks, flags, part) in [
        (2, "--n_emb 15", "`--n_emb 15` is not divisible"),
        (
            3,
            "--batch_sizes 2",
            "3 ranks share a batch of 2 sequences; use a larger batch, or at most 2 ranks",
        ),
        (2, "--lr 1e-3 2e-3 --jobs 2", "--jobs: each rank trains one run at a time; leave it out"),
        (
            2,
            "--lr 1e-3 2e-3 --jobs 2 --parallel batches",
            "--jobs: all ranks train the same run; leave it out",
        ),
    ] {
        let run = RUN.replace("--batch_sizes 4", "").replace("--n_emb 16", "");
        let Some(mut mpirun) = mpirun(&place, ranks, &format!("{run} {flags} --run_dir run")) else { return };
        let output = mpirun.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{flags}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(said.contains(part), "{flags}: {said}");
        assert!(!place.path("run").exists(), "{flags}: nothing was written");
    }
}

#[test]
fn an_error_on_all_ranks_is_printed_once() {
    let place = Place::new();
    for (line, part) in [
        (
            format!("{RUN} --learning_rates 1e30 --max_skipped_steps 1 --run_dir run"),
            "error: training diverged: ",
        ),
        ("bench step --batch 1".to_owned(), "error: 2 ranks share a batch of 1; use a larger --batch"),
        (
            "tokenizer train --data plays.txt --vocab_size 300 --out tokenizer.json".to_owned(),
            "error: 2 ranks would each write the files of `folio tokenizer train`; start it once",
        ),
    ] {
        let Some(mut mpirun) = mpirun(&place, 2, &line) else { return };
        let output = mpirun.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{line}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(said.contains(part), "{line}: {said}");
    }
    assert!(!place.path("tokenizer.json").exists());
}

#[test]
fn a_launcher_whose_library_is_missing_is_reported() {
    let place = Place::new();
    let mut folio = Command::new(env!("CARGO_BIN_EXE_folio"));
    folio.args(words(&format!("{RUN} --run_dir run"))).current_dir(place.path(""));
    folio.envs([("PMI_SIZE", "2"), ("PMI_RANK", "0"), ("FOLIO_MPI", "/no/such/library")]);
    let output = folio.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let want = "error: mpirun of MPICH started 2 ranks, but no MPI library was found (/no/such/library: ";
    assert!(said.starts_with(want) && said.contains("FOLIO_MPI") && said.lines().count() == 1, "{said}");
    assert!(!place.path("run").exists());
}
