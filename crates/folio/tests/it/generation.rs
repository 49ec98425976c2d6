//! Generation with the KV cache is compared to the full forward pass, which golden.rs compares to PyTorch.

use std::sync::Arc;

use folio::generate::{Finish, Generator, PastContext, Request, SampledToken, Sampler, Sampling, SequenceId};
use folio::model::{
    Activation, CpuBackend, InferenceModel, ModelConfig, Parameters, Precision, WeightFormat,
};
use folio::rng::{Rng, Stream};
use folio::tokenizer::Tokenizer;
use rayon::ThreadPoolBuilder;

/// Odd sizes: a vocabulary larger than one panel, heads of size 10, widths that are not multiples of a tile, and a
/// context longer than one attention tile.
const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 77,
    n_blocks: 2,
    n_emb: 70,
    n_heads: 7,
    block_size: 67,
    dropout: 0.0,
    ..ModelConfig::GPT2
};

/// The same sizes with every variation: an MLP narrower than qkv, GELU with erf, another epsilon, a separate head.
const VARIED: ModelConfig = ModelConfig {
    n_inner: Some(90),
    activation: Activation::Gelu,
    layer_norm_epsilon: 1e-6,
    tie_word_embeddings: false,
    ..CONFIG
};

/// Four times the initial weights, so that logits differ by more than noise.
fn parameters(config: &ModelConfig) -> Parameters {
    let mut parameters = Parameters::random(config, &mut Rng::new(5, Stream::Init));
    parameters.values_mut().iter_mut().for_each(|value| *value *= 4.0);
    parameters
}

/// 77 characters, one token each; some have two bytes.
fn tokenizer() -> Arc<Tokenizer> {
    let text: String = ('a'..='z').chain('A'..='Z').chain('\u{e0}'..='\u{f8}').collect();
    Arc::new(Tokenizer::chars(&text))
}

fn generator(format: WeightFormat) -> Generator {
    generator_of(CONFIG, format)
}

fn generator_of(config: ModelConfig, format: WeightFormat) -> Generator {
    Generator::new(Arc::new(InferenceModel::new(config, format, &parameters(&config))), tokenizer())
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::Sampling);
    (0..count).map(|_| rng.below(77) as u32).collect()
}

/// The output of one request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Output {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<f32>,
    finish: Option<Finish>,
}

impl Output {
    fn push(&mut self, token: SampledToken) {
        assert_eq!(self.finish, None, "a token after the last");
        self.tokens.push(token.token);
        self.text += token.text;
        self.logprobs.extend(token.logprob);
        self.finish = token.finish;
    }
}

fn generate(generator: &mut Generator, request: Request) -> Output {
    let mut output = Output::default();
    generator.generate(request, |token| output.push(token)).expect("a request that can be met");
    output
}

/// Generates by full forward passes over `window` of the tokens so far.
fn by_full_passes(
    config: ModelConfig,
    precision: Precision,
    request: &Request,
    window: impl Fn(&[u32]) -> &[u32],
) -> Vec<u32> {
    let mut model = CpuBackend::from_parameters(config, precision, parameters(&config));
    let (mut sampler, mut rng) = (Sampler::default(), Rng::new(request.seed, Stream::Sampling));
    let mut tokens = if request.prompt.is_empty() { vec![0] } else { request.prompt.clone() };
    for _ in 0..request.max_new_tokens {
        let seen: Vec<bool> = (0..77).map(|token| tokens.contains(&token)).collect();
        let logits = model.next_logits(window(&tokens));
        tokens.push(sampler.sample(&request.sampling, logits, &seen, &mut rng));
    }
    tokens.split_off(tokens.len() - request.max_new_tokens)
}

/// Compares the log probability of every token bit for bit, far beyond the context.
#[test]
fn cached_generation_equals_full_passes_bit_for_bit() {
    check_full_passes(CONFIG);
    check_full_passes(VARIED);
}

fn check_full_passes(config: ModelConfig) {
    for (format, precision) in [(WeightFormat::F32, Precision::F32), (WeightFormat::Bf16, Precision::Bf16)] {
        let mut model = CpuBackend::from_parameters(config, precision, parameters(&config));
        for prompt in [tokens(0, 1), tokens(1, 2), tokens(66, 3), tokens(67, 4), tokens(300, 5)] {
            let request =
                Request { prompt, max_new_tokens: 140, seed: 7, logprobs: Some(0), ..Request::default() };
            let got = generate(&mut generator_of(config, format), request.clone());
            let last = |tokens: &'_ [u32]| tokens.len().saturating_sub(67);
            assert_eq!(got.tokens, by_full_passes(config, precision, &request, |all| &all[last(all)..]));
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
fn the_logits_of_a_sequence_are_those_of_its_prefixes_bit_for_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut model = CpuBackend::from_parameters(CONFIG, precision, parameters(&CONFIG));
        let tokens = tokens(67, 4);
        let all = model.logits(&tokens).to_vec();
        assert_eq!(all.len(), 67 * CONFIG.vocab_size);
        for (end, row) in (1..).zip(all.chunks_exact(CONFIG.vocab_size)) {
            let want = model.next_logits(&tokens[..end]);
            let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(row), bits(want), "{precision:?} after {end} tokens");
        }
    }
}

#[test]
fn a_full_rolling_context_drops_its_older_half() {
    let request = Request {
        prompt: tokens(50, 1),
        max_new_tokens: 120,
        past_context: PastContext::Rolling,
        sampling: Sampling { repetition_penalty: 1.3, top_k: Some(30), ..Sampling::default() },
        ..Request::default()
    };
    let got = generate(&mut generator(WeightFormat::F32), request.clone());
    // The context of 67 tokens is full at 67. At the 68th, 35 tokens are dropped and 33 remain, itself included; the same
    // happens every 35 tokens.
    let window = |all: &'_ [u32]| if all.len() <= 67 { 0 } else { 35 + (all.len() - 68) / 35 * 35 };
    assert_eq!(got.tokens, by_full_passes(CONFIG, Precision::F32, &request, |all| &all[window(all)..]));
}

#[test]
fn generation_can_stop_at_a_full_context() {
    let request = Request { prompt: tokens(60, 1), past_context: PastContext::Stop, ..Request::default() };
    let got = generate(&mut generator(WeightFormat::F32), request.clone());
    // The context has room for seven more tokens. The token after those can still be predicted.
    assert_eq!((got.tokens.len(), got.finish), (8, Some(Finish::Length)));
    let longer = Request { max_new_tokens: 20, past_context: PastContext::Exact, ..request.clone() };
    assert_eq!(generate(&mut generator(WeightFormat::F32), longer).tokens[..8], got.tokens);
    let error = generator(WeightFormat::F32).begin(Request { prompt: tokens(68, 1), ..request }).unwrap_err();
    assert!(error.to_string().contains("has 68 tokens, but the context holds 67"), "{error}");
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
fn sequences_do_not_depend_on_each_other_or_on_threads() {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
        let mut alone = generator(format);
        let want: Vec<Output> = various_requests().into_iter().map(|r| generate(&mut alone, r)).collect();
        for threads in [1, 3] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let got = pool.install(|| {
                let mut generator = generator(format);
                let mut got = vec![Output::default(); want.len()];
                let mut waiting = various_requests().into_iter();
                // Requests arrive while others are active.
                for request in waiting.by_ref().take(2) {
                    generator.begin(request).expect("can be met");
                }
                while generator.active() > 0 {
                    generator.step(|id, token| got[id.number() as usize].push(token));
                    waiting.next().map(|request| generator.begin(request).expect("can be met"));
                }
                got
            });
            assert_eq!(got, want, "{format:?} on {threads} threads");
        }
    }
}

#[test]
fn canceling_a_sequence_does_not_affect_the_others() {
    let requests = various_requests();
    let want = generate(&mut generator(WeightFormat::F32), requests[0].clone());
    let mut generator = generator(WeightFormat::F32);
    let ids: Vec<SequenceId> =
        requests.into_iter().map(|request| generator.begin(request).unwrap()).collect();
    let mut got = Output::default();
    for step in 0.. {
        if generator.active() == 0 {
            break;
        }
        generator.step(|id, token| {
            assert!(id == ids[0] || step < 5, "a token of a canceled sequence");
            if id == ids[0] {
                got.push(token);
            }
        });
        if step == 4 {
            ids[1..].iter().for_each(|&id| generator.cancel(id));
        }
    }
    assert_eq!(got, want);
}

/// The weights are exact in int8, so both formats hold the same model and differ only in f32 rounding and in the 15 bits of inputs.
#[test]
fn int8_weights_give_the_logits_of_the_f32_weights() {
    check_int8(CONFIG);
    check_int8(VARIED);
}

fn check_int8(config: ModelConfig) {
    let mut parameters = parameters(&config);
    let specs = parameters.specs().to_vec();
    for spec in specs.iter().filter(|spec| spec.shape.len() == 2 && spec.name != "wpe.weight") {
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        // wte, or the separate head, is the transposed weight of the head: its columns are tokens.
        let is_head = ["wte.weight", "lm_head.weight"].contains(&&*spec.name);
        let (depth, columns, step, next) =
            if is_head { (cols, rows, 1, cols) } else { (rows, cols, cols, 1) };
        let values = &mut parameters.values_mut()[spec.range.clone()];
        for column in 0..columns {
            let at = |k: usize| column * next + k * step;
            let greatest = (0..depth).map(|k| values[at(k)].abs()).fold(0.0, f32::max);
            // A power of two as the scale makes division and multiplication exact.
            let scale = (greatest / 127.0).log2().ceil().exp2();
            for k in 0..depth {
                values[at(k)] = (values[at(k)] / scale).round() * scale;
            }
            values[at(0)] = 127.0 * scale;
        }
    }
    let tokens = tokens(60, 2);
    let mut model = CpuBackend::from_parameters(config, Precision::F32, parameters.clone());
    let want = model.next_logits(&tokens).to_vec();
    let model = Arc::new(InferenceModel::new(config, WeightFormat::Int8, &parameters));
    let mut generator = Generator::new(model, tokenizer());
    let request = Request { prompt: tokens, max_new_tokens: 1, logprobs: Some(77), ..Request::default() };
    let mut got = vec![f64::NAN; 77];
    generator
        .generate(request, |sampled| {
            sampled.alternatives.iter().for_each(|&(token, logprob)| got[token as usize] = logprob.into());
        })
        .unwrap();
    let greatest = want.iter().copied().fold(f32::MIN, f32::max);
    let total: f64 = want.iter().map(|&logit| f64::from(logit - greatest).exp()).sum();
    let want: Vec<f64> = want.iter().map(|&logit| f64::from(logit - greatest) - total.ln()).collect();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(got, want)| got - want));
    // The longest chain of roundings, each at most U times the norm: per block, sums over 70, 70, 70 and at most 280 inputs, over
    // 10 channels and 60 keys, and about 30 in LayerNorm, softmax and GELU; then the 70 inputs of the head.
    let roundings = 2.0 * (70.0 + 70.0 + 70.0 + 280.0 + 10.0 + 60.0 + 30.0) + 70.0;
    // An input of a matmul changes by up to half a step, a 32,512th of its row's maximum, which is at most the norm. The changes are
    // independent and uniformly distributed: their root mean square is a step / sqrt(12), and those of all inputs add in quadrature.
    let inputs: f64 = 2.0 * (3.0 * 70.0 + 280.0) + 70.0;
    let relative = roundings * f64::from(f32::EPSILON) / 2.0 + (inputs / 12.0).sqrt() / 16_256.0;
    let tolerance = relative * norm(&mut want.iter().copied());
    assert!(error <= tolerance, "error {error:e}, tolerance {tolerance:e}");
}

#[test]
fn text_ends_before_a_stop_string() {
    let request = Request { max_new_tokens: 60, seed: 3, ..Request::default() };
    let free = generate(&mut generator(WeightFormat::F32), request.clone());
    let characters: Vec<(usize, char)> = free.text.char_indices().collect();
    assert_eq!(characters.len(), 60);
    // Three characters from the middle, and a string that never occurs.
    let (start, end) = (characters[30].0, characters[33].0);
    let stop = free.text[start..end].to_owned();
    let place = free.text.find(&stop).expect("it occurs");
    let stopped = generate(
        &mut generator(WeightFormat::F32),
        Request { stop: vec!["\u{1}".to_owned(), stop], ..request },
    );
    assert_eq!((stopped.text.as_str(), stopped.finish), (&free.text[..place], Some(Finish::Stop)));
    assert_eq!(stopped.tokens[..], free.tokens[..free.text[..place].chars().count() + 3]);
}

#[test]
fn attention_weights_are_causal() {
    let tokens = tokens(67, 8);
    let mut generator = generator(WeightFormat::F32);
    for block in 0..2 {
        let all = generator.attention(&tokens, block);
        let less = generator.attention(&tokens[..20], block);
        assert_eq!((all.len(), less.len()), (7 * 67 * 67, 7 * 20 * 20));
        for (head, query) in (0..7).flat_map(|head| (0..67).map(move |query| (head, query))) {
            let row = &all[(head * 67 + query) * 67..][..67];
            // Each of the 67 quotients, and each term of both sums, is rounded once by at most U.
            let sum: f64 = row.iter().map(|&weight| f64::from(weight)).sum();
            assert!((sum - 1.0).abs() <= 140.0 * f64::from(f32::EPSILON), "{sum}");
            assert!(
                row[..=query].iter().all(|&weight| weight > 0.0),
                "softmax is positive for every visible key"
            );
            assert!(row[query + 1..].iter().all(|&weight| weight == 0.0), "weights of later keys are 0");
            if query < 20 {
                assert_eq!(&row[..20], &less[(head * 20 + query) * 20..][..20]);
            }
        }
    }
    let [first, second] = [0, 1].map(|block| generator.attention(&tokens, block));
    assert_ne!(first, second);
}

#[test]
fn invalid_requests_are_refused() {
    let refused = |change: &dyn Fn(&mut Request), what: &str| {
        let mut request = Request::default();
        change(&mut request);
        let mut generator = generator(WeightFormat::F32);
        let error = generator.begin(request).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(generator.active(), 0);
    };
    refused(&|r| r.prompt = vec![1, 77], "token 77 is outside the vocabulary of 77");
    refused(&|r| r.max_new_tokens = 0, "max_new_tokens: must be at least 1, not 0");
    refused(&|r| r.stop = vec![String::new()], "stop: a stop string must not be empty");
    refused(&|r| r.sampling.temperature = -1.0, "temperature: must be at least 0, not -1");
    refused(&|r| r.sampling.temperature = f64::NAN, "temperature: must be at least 0, not NaN");
    refused(&|r| r.sampling.top_k = Some(0), "top_k: must be at least 1, not 0");
    refused(&|r| r.sampling.top_p = Some(0.0), "top_p: must be greater than 0 and at most 1, not 0");
    refused(&|r| r.sampling.min_p = Some(1.1), "min_p: must be between 0 and 1, not 1.1");
    refused(&|r| r.sampling.repetition_penalty = 0.0, "repetition_penalty: must be greater than 0, not 0");
}

/// A BPE of 276 tokens. The last one is `special`, which may be the end token.
fn bpe(special: &str) -> Arc<Tokenizer> {
    let text =
        "abcdefgh".repeat(3) + "the cat sat on the mat; a dog ate it all, then ran off to the far wood";
    Arc::new(Tokenizer::train_bpe(&text, 276, &[special]).expect("enough pairs"))
}

#[test]
fn the_end_token_ends_a_sequence() {
    let config = ModelConfig { vocab_size: 276, ..CONFIG };
    let mut parameters = Parameters::random(&config, &mut Rng::new(5, Stream::Init));
    parameters.values_mut().iter_mut().for_each(|value| *value *= 4.0);
    let model = Arc::new(InferenceModel::new(config, WeightFormat::F32, &parameters));
    let generate_with = |special: &str, request: &Request| {
        let mut generator = Generator::new(Arc::clone(&model), bpe(special));
        generate(&mut generator, request.clone())
    };
    let mut ended = 0;
    for seed in 0..12 {
        let request = Request { max_new_tokens: 200, seed, ..Request::default() };
        // The tokenizers have the same tokens, but in only one of them the last is the end token.
        let (plain, with_end) = (generate_with("<|x|>", &request), generate_with("<|endoftext|>", &request));
        let Some(end) = plain.tokens.iter().position(|&token| token == 275) else {
            assert_eq!(with_end, plain);
            continue;
        };
        ended += 1;
        assert_eq!(with_end.tokens, plain.tokens[..=end]);
        assert_eq!(with_end.finish, Some(Finish::Stop));
        // The end token is not part of the text. An incomplete character before it becomes U+FFFD.
        assert_eq!(with_end.text, bpe("<|x|>").decode(&plain.tokens[..end]));
    }
    assert!(ended >= 3, "{ended} sequences contain the token");

    // A given token never ends a sequence.
    let given = vec![275, 4, 275, 9];
    let request =
        Request { max_new_tokens: 4, given: given.clone(), logprobs: Some(0), ..Request::default() };
    let scored = generate_with("<|endoftext|>", &request);
    assert_eq!((scored.tokens, scored.finish), (given, Some(Finish::Length)));
}
