//! A stand-in for the generation library until it is here.

use std::sync::{Arc, Mutex};

use folio::error::{Error, Result};
use folio::generate as old;
use folio::model::{Gpt2, ModelConfig, Parameters, Precision};
use folio::rng::{Rng, Stream};
use folio::text::TextStream;
use folio::tokenizer::Tokenizer;

pub type PredictorChoice = ();
pub struct Predictor(ModelConfig, Mutex<Gpt2>);
impl Predictor {
    pub fn new(config: ModelConfig, (): (), parameters: Parameters) -> Self {
        Self(config, Mutex::new(Gpt2::from_parameters(config, Precision::F32, parameters)))
    }
    pub fn config(&self) -> &ModelConfig {
        &self.0
    }
    pub fn weight_bytes(&self) -> usize {
        4
    }
}
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    pub repetition_penalty: f64,
    pub temperature: f64,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
}
impl Sampling {
    pub fn validate(&self) -> Result<()> {
        let Sampling { temperature, top_k, top_p, .. } = *self;
        old::Sampling { temperature, top_k, top_p }.validate()
    }
}
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PastContext {
    Exact,
    Rolling,
    Stop,
}
impl std::str::FromStr for PastContext {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "exact" => Ok(Self::Exact),
            "rolling" => Ok(Self::Rolling),
            "stop" => Ok(Self::Stop),
            _ => Err(Error::unknown_name("way past the context", name, &["exact", "rolling", "stop"])),
        }
    }
}
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub seed: u64,
    pub stop: Vec<String>,
    pub past_context: PastContext,
    pub logprobs: Option<usize>,
}
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finish {
    Length,
    Stop,
}
pub struct Drawn<'a> {
    pub token: u32,
    pub logprob: Option<f32>,
    pub alternatives: &'a [(u32, f32)],
    pub text: &'a str,
    pub finish: Option<Finish>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TextId(u64);
struct Text {
    id: TextId,
    request: Request,
    tokens: Vec<u32>,
    rng: Rng,
    stream: TextStream,
    held: String,
    drawn: usize,
}
pub struct Generator {
    predictor: Arc<Predictor>,
    tokenizer: Arc<Tokenizer>,
    texts: Vec<Text>,
    paused: Vec<Text>,
    begun: u64,
}
impl Generator {
    pub fn new(predictor: Arc<Predictor>, tokenizer: Arc<Tokenizer>) -> Self {
        Self { predictor, tokenizer, texts: vec![], paused: vec![], begun: 0 }
    }
    pub fn begin(&mut self, request: Request) -> Result<TextId> {
        let Sampling { temperature, top_k, top_p, .. } = request.sampling;
        old::Sampling { temperature, top_k, top_p }.validate()?;
        let id = TextId(self.begun);
        self.begun += 1;
        let mut tokens = request.prompt.clone();
        if tokens.is_empty() {
            tokens.push(0);
        }
        let rng = Rng::new(request.seed, Stream::Sampling);
        let (stream, held) = Default::default();
        self.texts.push(Text { id, request, tokens, rng, stream, held, drawn: 0 });
        Ok(id)
    }
    pub fn cancel(&mut self, id: TextId) {
        self.texts.retain(|text| text.id != id);
        self.paused.retain(|text| text.id != id);
    }
    pub fn pause(&mut self, id: TextId) {
        if let Some(place) = self.texts.iter().position(|text| text.id == id) {
            self.paused.push(self.texts.remove(place));
        }
    }
    pub fn resume(&mut self, id: TextId) {
        if let Some(place) = self.paused.iter().position(|text| text.id == id) {
            self.texts.push(self.paused.remove(place));
        }
    }
    pub fn step(&mut self, mut on_token: impl FnMut(TextId, Drawn)) {
        let mut ended = vec![];
        for text in &mut self.texts {
            let mut model = self.predictor.1.lock().expect("no panics");
            let from = text.tokens.len().saturating_sub(self.predictor.0.block_size);
            let logits = model.next_logits(&text.tokens[from..]);
            let Sampling { temperature, top_k, top_p, .. } = text.request.sampling;
            let token = old::Sampling { temperature, top_k, top_p }.draw(logits, &mut text.rng);
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            let total: f32 = logits.iter().map(|x| (x - most).exp()).sum();
            let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|x| x - most - total.ln())).collect();
            let logprob = text.request.logprobs.map(|_| all[token as usize].1);
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            all.truncate(text.request.logprobs.unwrap_or(0));
            text.tokens.push(token);
            text.drawn += 1;
            text.held += &text.stream.push(&self.tokenizer.decode_bytes(&[token]));
            let mut finish = (text.drawn == text.request.max_new_tokens).then_some(Finish::Length);
            let mut certain = text.held.len();
            for stop in &text.request.stop {
                if let Some(place) = text.held.find(stop.as_str()) {
                    certain = certain.min(place);
                    finish = Some(Finish::Stop);
                }
            }
            if finish.is_none() {
                for stop in &text.request.stop {
                    for length in 1..stop.len() {
                        if stop.is_char_boundary(length) && text.held.ends_with(&stop[..length]) {
                            certain = certain.min(text.held.len() - length);
                        }
                    }
                }
            }
            let rest = text.held.split_off(certain);
            let told = std::mem::replace(&mut text.held, rest);
            on_token(text.id, Drawn { token, logprob, alternatives: &all, text: &told, finish });
            if finish.is_some() {
                ended.push(text.id);
            }
        }
        ended.into_iter().for_each(|id| self.cancel(id));
    }
    pub fn attention(&mut self, tokens: &[u32], _block: usize) -> Vec<f32> {
        let (heads, time) = (self.predictor.0.n_heads, tokens.len());
        let mut weights = vec![0.0; heads * time * time];
        for (row, values) in weights.chunks_mut(time).enumerate() {
            let query = row % time;
            values[..=query].fill(1.0 / (query + 1) as f32);
        }
        weights
    }
}
