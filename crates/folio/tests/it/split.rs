//! Training and evaluation blocks are disjoint, and an epoch visits every training block once.
//!
//! Texts here contain every character once, in ascending order. So the id of a token is its position in the text, and
//! batches show where they are from.

use std::collections::BTreeSet;
use std::sync::Arc;

use folio::data::{BatchBuffer, BlockOffset, Dataset, Part, Split, SplitKind, TokenStream};
use folio::model::{Backend, CpuBackend};
use folio::rng::{Rng, Stream};
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Requests, Start, Trainer};

const PARTS: [Part; 3] = [Part::Train, Part::Eval, Part::Test];

/// A text of `len` different characters, and its tokens 0, 1, 2, …
fn positions(len: u32, split: SplitKind) -> (Arc<TokenStream>, Arc<Tokenizer>) {
    let text: String = (0..len).map(|i| char::from_u32(0x4E00 + i).expect("an ideograph")).collect();
    let tokenizer = Tokenizer::chars(&text);
    assert_eq!(tokenizer.vocab_size(), len as usize);
    let stream = TokenStream::encode(&text, &tokenizer, split).expect("its own characters");
    (Arc::new(stream), Arc::new(tokenizer))
}

fn dataset(len: u32, split: SplitKind, block_size: usize, seed: u64) -> Dataset {
    Dataset::new(positions(len, split).0, block_size, seed).expect("long enough")
}

/// The inputs and the targets of all batches of a part, by position.
fn positions_of(dataset: &Dataset, part: Part) -> (Vec<u32>, Vec<u32>) {
    positions_in(dataset, dataset.blocks(part))
}

/// The inputs and the targets of some blocks, by position.
fn positions_in(dataset: &Dataset, blocks: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    let mut buffer = BatchBuffer::default();
    for starts in blocks.chunks(3) {
        let batch = buffer.fill(dataset, starts, dataset.block_size());
        inputs.extend_from_slice(batch.inputs);
        targets.extend_from_slice(batch.targets);
    }
    (inputs, targets)
}

/// Text lengths without a tail, with the longest tail, and with few blocks; block sizes; seeds.
fn cases() -> impl Iterator<Item = (u32, usize, u64)> {
    let lengths_and_blocks = [(801, 16), (816, 16), (40, 7), (500, 1), (33, 16), (2_000, 3)];
    lengths_and_blocks.into_iter().flat_map(|(len, block)| [1, 1337].map(|seed| (len, block, seed)))
}

#[test]
fn targets_are_the_inputs_one_later() {
    for split in [SplitKind::Blocks, SplitKind::Contiguous] {
        let dataset = dataset(801, split, 16, 1);
        for part in PARTS {
            let (inputs, targets) = positions_of(&dataset, part);
            assert!(inputs.iter().map(|position| position + 1).eq(targets), "{split:?} {part:?}");
        }
    }
}

#[test]
fn parts_do_not_overlap() {
    for (len, block_size, seed) in cases() {
        let dataset = dataset(len, SplitKind::Blocks, block_size, seed);
        let (mut read, mut predicted) = (Vec::new(), Vec::new());
        for part in PARTS {
            let (inputs, targets) = positions_of(&dataset, part);
            read.extend(inputs);
            predicted.extend(targets);
        }
        // Sorted, they are all positions up to the tail, each once.
        read.sort_unstable();
        predicted.sort_unstable();
        let covered = (len - 1) / block_size as u32 * block_size as u32;
        assert!(read.into_iter().eq(0..covered), "{len} {block_size} {seed}");
        assert!(predicted.into_iter().eq(1..covered + 1), "{len} {block_size} {seed}");
    }
}

#[test]
fn blocks_are_split_eighty_ten_ten_in_random_order() {
    let dataset = dataset(2_005, SplitKind::Blocks, 16, 1337);
    let [train, eval, test] = PARTS.map(|part| dataset.blocks(part));
    // 125 blocks; a tenth, rounded down, is 12.
    assert_eq!((train.len(), eval.len(), test.len()), (101, 12, 12));
    let is_sorted = |blocks: &[usize]| blocks.is_sorted();
    assert!(!is_sorted(train) && !is_sorted(eval) && !is_sorted(test));
    // The probability that 12 random blocks of 125 lie within an eighth of the text is below 10^-8.
    for blocks in [eval, test] {
        let spread = blocks.iter().max().expect("some") - blocks.iter().min().expect("some");
        assert!(spread > 2_000 / 8, "{blocks:?}");
    }
}

#[test]
fn a_test_part_is_held_out_of_the_evaluation_part_and_shares_nothing_with_the_others() {
    for kind in [SplitKind::Blocks, SplitKind::Contiguous] {
        for test_fraction in [0.25, 0.5, 0.75] {
            let context = format!("{kind:?} {test_fraction}");
            let (len, block_size) = (2_005, 16);
            let text: String = (0..len).map(|i| char::from_u32(0x4E00 + i).expect("an ideograph")).collect();
            let tokenizer = Tokenizer::chars(&text);
            let of = |split: Split| {
                let stream = TokenStream::encode(&text, &tokenizer, split).expect("its own characters");
                Dataset::new(Arc::new(stream), block_size, 1337).expect("long enough")
            };
            let (without, with) = (of(kind.into()), of(Split { kind, test_fraction }));
            assert_eq!(
                with.blocks(Part::Train),
                without.blocks(Part::Train),
                "{context}: training stays the same"
            );
            // With their tails, the parts predict other characters each, and together what they did before.
            let predicted = |dataset: &Dataset, part: Part| -> BTreeSet<u32> {
                let (_, mut targets) = positions_of(dataset, part);
                if let Some((start, time)) = dataset.tail(part) {
                    targets.extend_from_slice(BatchBuffer::default().fill(dataset, &[start], time).targets);
                }
                targets.into_iter().collect()
            };
            let [eval, test] = [Part::Eval, Part::Test].map(|part| predicted(&with, part));
            let [eval_before, test_before] = [Part::Eval, Part::Test].map(|part| predicted(&without, part));
            assert!(eval.is_disjoint(&test) && eval.is_subset(&eval_before), "{context}");
            assert!(test.is_superset(&test_before), "{context}");
            let mut all: BTreeSet<u32> = eval.union(&test).copied().collect();
            if kind == SplitKind::Contiguous {
                // The first character of the test part is not predicted, like that of the evaluation part.
                assert!(all.insert(*test.first().expect("some") - 1), "{context}");
                assert!(eval.last() < test.first(), "{context}: the test part is the last one");
            }
            assert_eq!(all, eval_before.union(&test_before).copied().collect(), "{context}");
            let held_out = (eval_before.len() - eval.len()) as f64 / eval_before.len() as f64;
            // Rounded to whole blocks of 12, or to characters.
            let rounding = if kind == SplitKind::Blocks { 0.5 / 12.0 } else { 1.5 / 200.0 };
            assert!((held_out - test_fraction).abs() <= rounding, "{context}: {held_out}");
        }
    }
}

#[test]
fn a_text_too_short_for_the_test_part_is_refused() {
    for (kind, len, way_out) in [
        (SplitKind::Blocks, 200, "a smaller `test_fraction`"),
        (SplitKind::Contiguous, 400, "`block_size 9`"),
    ] {
        let text: String = (0..len).map(|i| char::from_u32(0x4E00 + i).expect("an ideograph")).collect();
        let tokenizer = Tokenizer::chars(&text);
        let split = Split { kind, test_fraction: 0.75 };
        let stream = Arc::new(TokenStream::encode(&text, &tokenizer, split).expect("its own characters"));
        let error = Dataset::new(stream, 16, 1).expect_err("one block evaluates").to_string();
        assert!(error.contains("a training, an evaluation and a test block"), "{error}");
        assert!(error.contains(way_out), "{error}");
    }
}

#[test]
fn a_split_depends_only_on_the_seed() {
    let parts = |len: u32, seed: u64| {
        let dataset = dataset(len, SplitKind::Blocks, 16, seed);
        PARTS.map(|part| dataset.blocks(part).to_vec())
    };
    assert_eq!(parts(801, 1), parts(801, 1));
    assert_ne!(parts(801, 1), parts(801, 2));
    // The tail has no effect.
    assert_eq!(parts(801, 1), parts(816, 1));
}

#[test]
fn a_contiguous_split_shares_no_character() {
    for (len, block_size, seed) in cases().filter(|&(len, block_size, _)| len as usize / 10 > block_size) {
        let dataset = dataset(len, SplitKind::Contiguous, block_size, seed);
        let border = len * 9 / 10;
        let (inputs, targets) = positions_of(&dataset, Part::Train);
        assert!(inputs.iter().chain(&targets).all(|&position| position < border), "{len} {block_size}");
        let unread = border - 1 - inputs.len() as u32;
        assert!(unread < block_size as u32, "only a tail shorter than a block is left out: {unread}");

        let (inputs, mut targets) = positions_of(&dataset, Part::Eval);
        assert!(inputs.iter().chain(&targets).all(|&position| position >= border), "{len} {block_size}");
        if let Some((start, time)) = dataset.tail(Part::Eval) {
            assert!(time < block_size);
            targets.extend_from_slice(BatchBuffer::default().fill(&dataset, &[start], time).targets);
        }
        assert!(targets.into_iter().eq(border + 1..len), "evaluation predicts every character but its first");
        assert!(dataset.blocks(Part::Test).is_empty());
    }
}

#[test]
fn random_offsets_read_training_text_only_and_all_of_it() {
    for (split, (len, block_size, seed)) in cases()
        .flat_map(|case| [SplitKind::Blocks, SplitKind::Contiguous].map(|split| (split, case)))
        .filter(|&(split, (len, block_size, _))| split == SplitKind::Blocks || len as usize / 10 > block_size)
    {
        let context = format!("{split:?} {len} {block_size} {seed}");
        let dataset = dataset(len, split, block_size, seed);
        let set = |(inputs, targets): (Vec<u32>, Vec<u32>)| -> [BTreeSet<u32>; 2] {
            [inputs, targets].map(|positions| positions.into_iter().collect())
        };
        let mut allowed = set(positions_of(&dataset, Part::Train));
        if split == SplitKind::Contiguous {
            // Random offsets reach the tail, too.
            let border = len * 9 / 10;
            allowed = [(0..border - 1).collect(), (1..border).collect()];
        }
        let mut rng = Rng::new(seed, Stream::Order);
        let (mut read, mut offsets) = ([BTreeSet::new(), BTreeSet::new()], BTreeSet::new());
        for _ in 0..200 {
            let blocks = dataset.epoch_blocks(BlockOffset::Random, &mut rng);
            assert_eq!(blocks.len(), dataset.blocks(Part::Train).len(), "{context}");
            offsets.extend(blocks.iter().map(|start| start % block_size));
            let found = set(positions_in(&dataset, &blocks));
            for ((found, allowed), read) in found.into_iter().zip(&allowed).zip(&mut read) {
                assert!(found.is_subset(allowed), "{context}");
                read.extend(found);
            }
        }
        assert_eq!(read, allowed, "{context}");
        // A block without neighbors cannot shift.
        let all: BTreeSet<usize> = dataset.blocks(Part::Train).iter().copied().collect();
        let has_neighbors = all.iter().any(|start| all.contains(&(start + block_size)));
        assert!(!has_neighbors || offsets.len() > block_size / 2, "{context}: {offsets:?}");
    }
}

#[test]
fn fixed_offsets_are_the_same_in_every_epoch() {
    let dataset = dataset(801, SplitKind::Blocks, 16, 1);
    let mut rng = Rng::new(1, Stream::Order);
    let mut epoch = || {
        let mut blocks = dataset.epoch_blocks(BlockOffset::Fixed, &mut rng);
        blocks.sort_unstable();
        blocks
    };
    assert_eq!(epoch(), epoch());
}

#[test]
fn no_token_spans_the_border() {
    let text = "Wherefore art thou Romeo? ".repeat(21);
    let tokenizer = Tokenizer::gpt2();
    let border = text.len() * 9 / 10;
    assert!(text.as_bytes()[border - 1..=border].iter().all(u8::is_ascii_alphabetic), "inside a word");
    let stream = TokenStream::encode(&text, &tokenizer, SplitKind::Contiguous).expect("bytes");
    let dataset = Dataset::new(Arc::new(stream), 4, 1).expect("long enough");
    let decode = |part: Part| {
        let (inputs, targets) = positions_of(&dataset, part);
        let mut tokens = inputs[..1].to_vec();
        tokens.extend(targets);
        if let (Part::Eval, Some((start, time))) = (part, dataset.tail(Part::Eval)) {
            tokens.extend_from_slice(BatchBuffer::default().fill(&dataset, &[start], time).targets);
        }
        tokenizer.decode(&tokens)
    };
    assert!(text[..border].starts_with(&decode(Part::Train)), "{}", decode(Part::Train));
    assert_eq!(decode(Part::Eval), text[border..]);
}

/// A run whose weights never change: its learning rate is too small for f32.
fn frozen(batch_size: usize, split: SplitKind) -> (Settings, Trainer) {
    let settings = Settings {
        n_emb: 16,
        n_heads: 2,
        n_blocks: 1,
        block_size: 8,
        batch_size,
        dropout: 0.0,
        num_epochs: 3,
        learning_rate: 1e-300,
        split,
        ..Settings::default()
    };
    let (stream, tokenizer) = positions(330, split);
    let trainer = Trainer::new(settings.clone(), stream, tokenizer, &Start::Fresh).expect("valid settings");
    (settings, trainer)
}

/// The loss of each training block under the frozen model.
fn block_losses(settings: &Settings, dataset: &Dataset) -> Vec<f64> {
    let config = settings.model_config(330);
    let mut model = CpuBackend::new(config, settings.precision, &mut Rng::new(settings.seed, Stream::Init));
    let mut buffer = BatchBuffer::default();
    let loss = |&start: &usize| {
        let losses = model.losses(buffer.fill(dataset, &[start], dataset.block_size()));
        losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
    };
    dataset.blocks(Part::Train).iter().map(loss).collect()
}

/// The loss and the number of tokens of every step, by epoch.
fn steps(trainer: &mut Trainer) -> Vec<Vec<(f64, u64)>> {
    let mut epochs = Vec::new();
    let mut on_event = |event: &Event| match event {
        Event::EpochStarted { .. } => epochs.push(Vec::new()),
        Event::Step(report) => {
            epochs.last_mut().expect("an epoch has started").push((f64::from(report.loss), report.tokens));
        }
        _ => {}
    };
    trainer.run(None, &Requests::default(), &mut on_event).expect("training succeeds");
    epochs
}

/// Two ways to sum the losses of 8 tokens, each about ln 330 = 5.8: eight roundings of such numbers.
const TOLERANCE: f64 = 8.0 * 5.8 * f32::EPSILON as f64;

#[test]
fn every_epoch_visits_every_training_block_once_in_a_new_order() {
    for split in [SplitKind::Blocks, SplitKind::Contiguous] {
        let (settings, mut trainer) = frozen(1, split);
        let known = block_losses(&settings, trainer.dataset());
        let mut sorted = known.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(
            sorted.windows(2).all(|pair| pair[1] - pair[0] > 2.0 * TOLERANCE),
            "losses identify blocks: {sorted:?}"
        );
        let mut orders = BTreeSet::new();
        for epoch in steps(&mut trainer) {
            let block_of = |&(loss, _): &(f64, u64)| {
                known.iter().position(|known| (known - loss).abs() <= TOLERANCE).expect("a training block")
            };
            let order: Vec<usize> = epoch.iter().map(block_of).collect();
            let visited: BTreeSet<usize> = order.iter().copied().collect();
            assert_eq!((order.len(), visited.len()), (known.len(), known.len()), "{split:?}: {order:?}");
            assert!(!order.is_sorted(), "{order:?}");
            orders.insert(order);
        }
        assert_eq!(orders.len(), 3, "a different order in every epoch");
    }
}

#[test]
fn a_short_last_batch_counts_like_the_others() {
    let (settings, mut trainer) = frozen(10, SplitKind::Blocks);
    // 41 blocks minus 4 and 4: three batches of 10 and one of 3.
    let known = block_losses(&settings, trainer.dataset());
    assert_eq!(known.len(), 33);
    let epochs = steps(&mut trainer);
    for (epoch, report) in epochs.iter().zip(&trainer.history().epochs) {
        let tokens: Vec<u64> = epoch.iter().map(|step| step.1).collect();
        assert_eq!(tokens, [80, 80, 80, 24]);
        let mean_of_batches = epoch.iter().map(|step| step.0).sum::<f64>() / 4.0;
        assert_eq!(report.train_loss, mean_of_batches);
        let over_blocks = epoch.iter().map(|&(loss, tokens)| loss * (tokens / 8) as f64).sum::<f64>() / 33.0;
        let mean_of_blocks = known.iter().sum::<f64>() / 33.0;
        assert!((over_blocks - mean_of_blocks).abs() <= TOLERANCE, "{over_blocks} {mean_of_blocks}");
        assert_ne!(mean_of_batches, over_blocks, "blocks of the short batch weigh more");
    }
    let last_steps: Vec<u64> = trainer.history().epochs.iter().map(|epoch| epoch.step).collect();
    assert_eq!(last_steps, [4, 8, 12]);
}
