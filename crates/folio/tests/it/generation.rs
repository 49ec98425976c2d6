//! Generation with kept keys and values beside the full forward pass, which golden.rs holds to PyTorch.

use std::sync::Arc;

use folio::generate::{Drawn, Finish, Generator, PastContext, Request, Sampler, Sampling, TextId};
use folio::model::{Gpt2, ModelConfig, Parameters, Precision, Predictor, WeightFormat};
use folio::rng::{Rng, Stream};
use folio::tokenizer::Tokenizer;
use rayon::ThreadPoolBuilder;

/// Odd sizes: a vocabulary over one panel, heads of 10, widths that are no multiple of a tile, a context over one tile of
/// attention.
const CONFIG: ModelConfig =
    ModelConfig { vocab_size: 77, n_blocks: 2, n_emb: 70, n_heads: 7, block_size: 67, dropout: 0.0 };

/// Weights four times as large as initial ones, so that logits differ by more than noise.
fn parameters() -> Parameters {
    let mut parameters = Parameters::random(&CONFIG, &mut Rng::new(5, Stream::Init));
    parameters.values_mut().iter_mut().for_each(|value| *value *= 4.0);
    parameters
}

/// One token for each of 77 characters, of which some take two bytes.
fn tokenizer() -> Arc<Tokenizer> {
    let text: String = ('a'..='z').chain('A'..='Z').chain('\u{e0}'..='\u{f8}').collect();
    Arc::new(Tokenizer::chars(&text))
}

fn generator(format: WeightFormat) -> Generator {
    Generator::new(Arc::new(Predictor::new(CONFIG, format, &parameters())), tokenizer())
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::Sampling);
    (0..count).map(|_| rng.below(77) as u32).collect()
}

/// What a text is made of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Written {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<f32>,
    finish: Option<Finish>,
}

impl Written {
    fn push(&mut self, drawn: Drawn) {
        assert_eq!(self.finish, None, "a token after the last");
        self.tokens.push(drawn.token);
        self.text += drawn.text;
        self.logprobs.extend(drawn.logprob);
        self.finish = drawn.finish;
    }
}

fn write(generator: &mut Generator, request: Request) -> Written {
    let mut written = Written::default();
    generator.write(request, |drawn| written.push(drawn)).expect("a request that can be met");
    written
}

/// The text that the full forward pass writes over the tokens that `window` leaves of those so far.
fn by_full_passes(precision: Precision, request: &Request, window: impl Fn(&[u32]) -> &[u32]) -> Vec<u32> {
    let mut model = Gpt2::from_parameters(CONFIG, precision, parameters());
    let (mut sampler, mut rng) = (Sampler::default(), Rng::new(request.seed, Stream::Sampling));
    let mut tokens = if request.prompt.is_empty() { vec![0] } else { request.prompt.clone() };
    for _ in 0..request.max_new_tokens {
        let seen: Vec<bool> = (0..77).map(|token| tokens.contains(&token)).collect();
        let logits = model.next_logits(window(&tokens));
        tokens.push(sampler.draw(&request.sampling, logits, &seen, &mut rng));
    }
    tokens.split_off(tokens.len() - request.max_new_tokens)
}

/// The logprobs of every token, which come from the logits' every bit, at every position and far past the context.
#[test]
fn a_cached_text_is_that_of_full_passes_bit_for_bit_past_the_context_too() {
    for (format, precision) in [(WeightFormat::F32, Precision::F32), (WeightFormat::Bf16, Precision::Bf16)] {
        let mut model = Gpt2::from_parameters(CONFIG, precision, parameters());
        for prompt in [tokens(0, 1), tokens(1, 2), tokens(66, 3), tokens(67, 4), tokens(300, 5)] {
            let request =
                Request { prompt, max_new_tokens: 140, seed: 7, logprobs: Some(0), ..Request::default() };
            let got = write(&mut generator(format), request.clone());
            let last = |tokens: &'_ [u32]| tokens.len().saturating_sub(67);
            assert_eq!(got.tokens, by_full_passes(precision, &request, |all| &all[last(all)..]));
            let mut all = if request.prompt.is_empty() { vec![0] } else { request.prompt };
            for (token, logprob) in got.tokens.into_iter().zip(got.logprobs) {
                let logits = model.next_logits(&all[last(&all)..]);
                let want = Sampler::default().log_probabilities(logits, token, 0, &mut Vec::new());
                assert_eq!(logprob.to_bits(), want.to_bits(), "{format:?} after {} tokens", all.len());
                all.push(token);
            }
        }
    }
}

#[test]
fn a_rolling_context_gives_up_its_older_half_when_it_is_full() {
    let request = Request {
        prompt: tokens(50, 1),
        max_new_tokens: 120,
        past_context: PastContext::Rolling,
        sampling: Sampling { repetition_penalty: 1.3, top_k: Some(30), ..Sampling::default() },
        ..Request::default()
    };
    let got = write(&mut generator(WeightFormat::F32), request.clone());
    // The context of 67 is full at 67 tokens; the 68th finds 33 left of them, itself included: 35 are given up, and
    // so on every 35 tokens.
    let window = |all: &'_ [u32]| if all.len() <= 67 { 0 } else { 35 + (all.len() - 68) / 35 * 35 };
    assert_eq!(got.tokens, by_full_passes(Precision::F32, &request, |all| &all[window(all)..]));
}

#[test]
fn a_text_may_end_with_its_context() {
    let request = Request { prompt: tokens(60, 1), past_context: PastContext::Stop, ..Request::default() };
    let got = write(&mut generator(WeightFormat::F32), request.clone());
    // Seven find room, and what follows them can still be told.
    assert_eq!((got.tokens.len(), got.finish), (8, Some(Finish::Length)));
    let longer = Request { max_new_tokens: 20, past_context: PastContext::Exact, ..request.clone() };
    assert_eq!(write(&mut generator(WeightFormat::F32), longer).tokens[..8], got.tokens);
    let error = generator(WeightFormat::F32).begin(Request { prompt: tokens(68, 1), ..request }).unwrap_err();
    assert!(error.to_string().contains("68 tokens are more than the context of 67"), "{error}");
}

fn various_requests() -> Vec<Request> {
    let request = |prompt: usize, max_new_tokens, past_context, sampling| Request {
        prompt: tokens(prompt, 9),
        max_new_tokens,
        past_context,
        sampling,
        seed: prompt as u64,
        logprobs: Some(2),
        ..Request::default()
    };
    let plain = Sampling::default();
    vec![
        request(0, 30, PastContext::Exact, plain),
        request(5, 1, PastContext::Exact, plain),
        request(64, 40, PastContext::Exact, Sampling { temperature: 0.0, ..plain }),
        request(300, 25, PastContext::Rolling, Sampling { top_p: Some(0.9), min_p: Some(0.01), ..plain }),
        request(12, 90, PastContext::Rolling, Sampling { repetition_penalty: 1.5, ..plain }),
        request(33, 60, PastContext::Stop, Sampling { top_k: Some(5), temperature: 2.0, ..plain }),
    ]
}

#[test]
fn texts_that_are_written_together_are_those_written_alone_on_any_number_of_threads() {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
        let mut alone = generator(format);
        let want: Vec<Written> = various_requests().into_iter().map(|r| write(&mut alone, r)).collect();
        for threads in [1, 3] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let got = pool.install(|| {
                let mut generator = generator(format);
                let mut got = vec![Written::default(); want.len()];
                let mut waiting = various_requests().into_iter();
                // They come one after the other, while others are under way.
                for request in waiting.by_ref().take(2) {
                    generator.begin(request).expect("can be met");
                }
                while generator.texts() > 0 {
                    generator.step(|id, drawn| got[id.number() as usize].push(drawn));
                    waiting.next().map(|request| generator.begin(request).expect("can be met"));
                }
                got
            });
            assert_eq!(got, want, "{format:?} on {threads} threads");
        }
    }
}

#[test]
fn a_text_that_is_given_up_leaves_the_others_alone() {
    let requests = various_requests();
    let want = write(&mut generator(WeightFormat::F32), requests[0].clone());
    let mut generator = generator(WeightFormat::F32);
    let ids: Vec<TextId> = requests.into_iter().map(|request| generator.begin(request).unwrap()).collect();
    let mut got = Written::default();
    for step in 0.. {
        if generator.texts() == 0 {
            break;
        }
        generator.step(|id, drawn| {
            assert!(id == ids[0] || step < 5, "a token of a text that was given up");
            if id == ids[0] {
                got.push(drawn);
            }
        });
        if step == 4 {
            ids[1..].iter().for_each(|&id| generator.cancel(id));
        }
    }
    assert_eq!(got, want);
}

/// Weights that eight bits hold exactly, so that both formats have the same model: what differs are the roundings of f32.
#[test]
fn eight_bits_give_the_logits_of_the_weights_they_stand_for() {
    let mut parameters = parameters();
    let specs = parameters.specs().to_vec();
    for spec in specs.iter().filter(|spec| spec.shape.len() == 2 && spec.name != "wpe.weight") {
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        // wte is the head's weight transposed: its columns are tokens.
        let (depth, columns, step, next) =
            if spec.name == "wte.weight" { (cols, rows, 1, cols) } else { (rows, cols, cols, 1) };
        let values = &mut parameters.values_mut()[spec.range.clone()];
        for column in 0..columns {
            let at = |k: usize| column * next + k * step;
            let greatest = (0..depth).map(|k| values[at(k)].abs()).fold(0.0, f32::max);
            // A power of two as the scale makes every quotient and product exact.
            let scale = (greatest / 127.0).log2().ceil().exp2();
            for k in 0..depth {
                values[at(k)] = (values[at(k)] / scale).round() * scale;
            }
            values[at(0)] = 127.0 * scale;
        }
    }
    let tokens = tokens(60, 2);
    let mut model = Gpt2::from_parameters(CONFIG, Precision::F32, parameters.clone());
    let want = model.next_logits(&tokens).to_vec();
    let predictor = Arc::new(Predictor::new(CONFIG, WeightFormat::Int8, &parameters));
    let mut generator = Generator::new(predictor, tokenizer());
    let request = Request { prompt: tokens, max_new_tokens: 1, logprobs: Some(77), ..Request::default() };
    let mut got = vec![f64::NAN; 77];
    generator
        .write(request, |drawn| {
            drawn.alternatives.iter().for_each(|&(token, logprob)| got[token as usize] = logprob.into());
        })
        .unwrap();
    let greatest = want.iter().copied().fold(f32::MIN, f32::max);
    let total: f64 = want.iter().map(|&logit| f64::from(logit - greatest).exp()).sum();
    let want: Vec<f64> = want.iter().map(|&logit| f64::from(logit - greatest) - total.ln()).collect();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(got, want)| got - want));
    // The longest chain of roundings: in each block the sums over 70, 70, 70 and 280 inputs, over 10 channels and 60
    // keys, and some thirty of LayerNorms, softmax and GELU; the head's 70; each by U of the norm.
    let roundings = 2.0 * (70.0 + 70.0 + 70.0 + 280.0 + 10.0 + 60.0 + 30.0) + 70.0;
    let tolerance = roundings * f64::from(f32::EPSILON) / 2.0 * norm(&mut want.iter().copied());
    assert!(error <= tolerance, "off by {error:e}, {tolerance:e} may be");
}

#[test]
fn stop_strings_end_a_text_before_them() {
    let request = Request { max_new_tokens: 60, seed: 3, ..Request::default() };
    let free = write(&mut generator(WeightFormat::F32), request.clone());
    let characters: Vec<(usize, char)> = free.text.char_indices().collect();
    assert_eq!(characters.len(), 60);
    // Three characters from the middle, and a string that never comes.
    let (start, end) = (characters[30].0, characters[33].0);
    let stop = free.text[start..end].to_owned();
    let place = free.text.find(&stop).expect("it comes");
    let stopped =
        write(&mut generator(WeightFormat::F32), Request { stop: vec!["\u{1}".to_owned(), stop], ..request });
    assert_eq!((stopped.text.as_str(), stopped.finish), (&free.text[..place], Some(Finish::Stop)));
    assert_eq!(stopped.tokens[..], free.tokens[..free.text[..place].chars().count() + 3]);
}

#[test]
fn attention_weights_are_causal_and_do_not_see_what_comes_later() {
    let tokens = tokens(67, 8);
    let mut generator = generator(WeightFormat::F32);
    for block in 0..2 {
        let all = generator.attention(&tokens, block);
        let less = generator.attention(&tokens[..20], block);
        assert_eq!((all.len(), less.len()), (7 * 67 * 67, 7 * 20 * 20));
        for (head, query) in (0..7).flat_map(|head| (0..67).map(move |query| (head, query))) {
            let row = &all[(head * 67 + query) * 67..][..67];
            // Quotients by a sum: off by U a term of it and of this one.
            let sum: f64 = row.iter().map(|&weight| f64::from(weight)).sum();
            assert!((sum - 1.0).abs() <= 140.0 * f64::from(f32::EPSILON), "{sum}");
            assert!(row[..=query].iter().all(|&weight| weight > 0.0), "softmax reaches every key");
            assert!(row[query + 1..].iter().all(|&weight| weight == 0.0), "none of the future");
            if query < 20 {
                assert_eq!(&row[..20], &less[(head * 20 + query) * 20..][..20]);
            }
        }
    }
    let [first, second] = [0, 1].map(|block| generator.attention(&tokens, block));
    assert_ne!(first, second);
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let refused = |change: &dyn Fn(&mut Request), what: &str| {
        let mut request = Request::default();
        change(&mut request);
        let mut generator = generator(WeightFormat::F32);
        let error = generator.begin(request).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(generator.texts(), 0);
    };
    refused(&|r| r.prompt = vec![1, 77], "token 77 is outside the vocabulary of 77");
    refused(&|r| r.max_new_tokens = 0, "max_new_tokens: 0 writes nothing");
    refused(&|r| r.stop = vec![String::new()], "stop: an empty string");
    refused(
        &|r| r.sampling.temperature = -1.0,
        "temperature: must be 0 (always the likeliest token) or more, not -1",
    );
    refused(
        &|r| r.sampling.temperature = f64::NAN,
        "temperature: must be 0 (always the likeliest token) or more, not NaN",
    );
    refused(&|r| r.sampling.top_k = Some(0), "top_k: 0 leaves no token");
    refused(&|r| r.sampling.top_p = Some(0.0), "top_p: 0 is outside (0, 1]");
    refused(&|r| r.sampling.min_p = Some(1.1), "min_p: 1.1 is outside [0, 1]");
    refused(&|r| r.sampling.repetition_penalty = 0.0, "repetition_penalty: must be greater than 0, not 0");
}

/// A BPE of 77 more tokens than bytes, whose last ends a text or is like any other.
fn bpe(special: &str) -> Arc<Tokenizer> {
    let text =
        "abcdefgh".repeat(3) + "the cat sat on the mat; a dog ate it all, then ran off to the far wood";
    Arc::new(Tokenizer::train_bpe(&text, 276, &[special]).expect("enough pairs"))
}

#[test]
fn a_text_ends_where_the_model_draws_the_end_token() {
    let config = ModelConfig { vocab_size: 276, ..CONFIG };
    let mut parameters = Parameters::random(&config, &mut Rng::new(5, Stream::Init));
    parameters.values_mut().iter_mut().for_each(|value| *value *= 4.0);
    let predictor = Arc::new(Predictor::new(config, WeightFormat::F32, &parameters));
    let write_with = |special: &str, request: &Request| {
        let mut generator = Generator::new(Arc::clone(&predictor), bpe(special));
        write(&mut generator, request.clone())
    };
    let mut ended = 0;
    for seed in 0..12 {
        let request = Request { max_new_tokens: 200, seed, ..Request::default() };
        // Both tokenizers have the same tokens; one of them knows that the last ends a text.
        let (plain, with_end) = (write_with("<|x|>", &request), write_with("<|endoftext|>", &request));
        let Some(end) = plain.tokens.iter().position(|&token| token == 275) else {
            assert_eq!(with_end, plain);
            continue;
        };
        ended += 1;
        assert_eq!(with_end.tokens, plain.tokens[..=end]);
        assert_eq!(with_end.finish, Some(Finish::Stop));
        // The token is not part of the text; a character that it cut off is U+FFFD as at every end.
        assert_eq!(with_end.text, bpe("<|x|>").decode(&plain.tokens[..end]));
    }
    assert!(ended >= 3, "{ended} texts drew the token");

    // A token that is given, to be told how likely it is, ends nothing.
    let given = vec![275, 4, 275, 9];
    let request =
        Request { max_new_tokens: 4, given: given.clone(), logprobs: Some(0), ..Request::default() };
    let scored = write_with("<|endoftext|>", &request);
    assert_eq!((scored.tokens, scored.finish), (given, Some(Finish::Length)));
}
