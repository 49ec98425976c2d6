//! What is trained on is never evaluated on, and an epoch is every training block once.
//!
//! Texts here have every character once, in ascending order: a token's id is its position in the text, so that
//! a batch tells where it is from.

use std::collections::BTreeSet;
use std::sync::Arc;

use folio::data::{BatchBuffer, Dataset, Part, SplitKind, TokenStream};
use folio::model::{Backend, CpuBackend};
use folio::rng::{Rng, Stream};
use folio::settings::Settings;
use folio::tokenizer::Tokenizer;
use folio::train::{Event, Requests, Start, Trainer};

const PARTS: [Part; 3] = [Part::Train, Part::Eval, Part::Test];

/// A text of so many different characters, and its tokens: 0, 1, 2, …
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
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    let mut buffer = BatchBuffer::default();
    for starts in dataset.blocks(part).chunks(3) {
        let batch = buffer.fill(dataset, starts, dataset.block_size());
        inputs.extend_from_slice(batch.inputs);
        targets.extend_from_slice(batch.targets);
    }
    (inputs, targets)
}

/// Lengths that leave no tail, the longest tail, and few blocks; sizes of blocks; seeds.
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
fn no_position_is_read_or_predicted_in_two_parts() {
    for (len, block_size, seed) in cases() {
        let dataset = dataset(len, SplitKind::Blocks, block_size, seed);
        let (mut read, mut predicted) = (Vec::new(), Vec::new());
        for part in PARTS {
            let (inputs, targets) = positions_of(&dataset, part);
            read.extend(inputs);
            predicted.extend(targets);
        }
        // Sorted, they are all positions up to the tail that fills no block, each once.
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
    // 125 blocks, of which a tenth is 12.
    assert_eq!((train.len(), eval.len(), test.len()), (101, 12, 12));
    let is_sorted = |blocks: &[usize]| blocks.is_sorted();
    assert!(!is_sorted(train) && !is_sorted(eval) && !is_sorted(test));
    // Twelve random blocks of 125 lie within an eighth of the text by a chance below 10^-8.
    for blocks in [eval, test] {
        let spread = blocks.iter().max().expect("some") - blocks.iter().min().expect("some");
        assert!(spread > 2_000 / 8, "{blocks:?}");
    }
}

#[test]
fn a_split_is_its_seed_s_alone() {
    let parts = |len: u32, seed: u64| {
        let dataset = dataset(len, SplitKind::Blocks, 16, seed);
        PARTS.map(|part| dataset.blocks(part).to_vec())
    };
    assert_eq!(parts(801, 1), parts(801, 1));
    assert_ne!(parts(801, 1), parts(801, 2));
    // The tail that fills no block changes nothing.
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
        assert!(unread < block_size as u32, "only a tail that fills no block is left out: {unread}");

        let (inputs, mut targets) = positions_of(&dataset, Part::Eval);
        assert!(inputs.iter().chain(&targets).all(|&position| position >= border), "{len} {block_size}");
        if let Some((start, time)) = dataset.eval_tail() {
            assert!(time < block_size);
            targets.extend_from_slice(BatchBuffer::default().fill(&dataset, &[start], time).targets);
        }
        assert!(targets.into_iter().eq(border + 1..len), "evaluation predicts every character but its first");
        assert!(dataset.blocks(Part::Test).is_empty());
    }
}

#[test]
fn no_token_of_several_characters_spans_the_border() {
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
        if let (Part::Eval, Some((start, time))) = (part, dataset.eval_tail()) {
            tokens.extend_from_slice(BatchBuffer::default().fill(&dataset, &[start], time).targets);
        }
        tokenizer.decode(&tokens)
    };
    assert!(text[..border].starts_with(&decode(Part::Train)), "{}", decode(Part::Train));
    assert_eq!(decode(Part::Eval), text[border..]);
}

/// A run whose weights stay as they are: its rate is too small for an f32.
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

/// The loss of each training block by itself, as the frozen model has it.
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

/// The losses of a run's steps, and how many tokens each took, epoch by epoch.
fn steps(trainer: &mut Trainer) -> Vec<Vec<(f64, u64)>> {
    let mut epochs = Vec::new();
    let mut on_event = |event: &Event| match event {
        Event::EpochStarted { .. } => epochs.push(Vec::new()),
        Event::Step(report) => {
            epochs.last_mut().expect("an epoch has begun").push((f64::from(report.loss), report.tokens));
        }
        _ => {}
    };
    trainer.run(None, &Requests::default(), &mut on_event).expect("a run without mishap");
    epochs
}

/// Two ways to sum the losses of 8 tokens, each around ln 330 = 5.8: eight roundings of such a number.
const TOLERANCE: f64 = 8.0 * 5.8 * f32::EPSILON as f64;

#[test]
fn the_trainer_visits_every_training_block_once_an_epoch_in_a_new_order() {
    for split in [SplitKind::Blocks, SplitKind::Contiguous] {
        let (settings, mut trainer) = frozen(1, split);
        let known = block_losses(&settings, trainer.dataset());
        let mut sorted = known.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(
            sorted.windows(2).all(|pair| pair[1] - pair[0] > 2.0 * TOLERANCE),
            "a loss tells which block it is of: {sorted:?}"
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
        assert_eq!(orders.len(), 3, "another order in every epoch");
    }
}

#[test]
fn the_last_batch_may_be_short_and_counts_like_any() {
    let (settings, mut trainer) = frozen(10, SplitKind::Blocks);
    // 41 blocks less 4 and 4: three batches of 10 and one of 3.
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
        assert_ne!(mean_of_batches, over_blocks, "the short batch counts for more than its blocks");
    }
    let last_steps: Vec<u64> = trainer.history().epochs.iter().map(|epoch| epoch.step).collect();
    assert_eq!(last_steps, [4, 8, 12]);
}
