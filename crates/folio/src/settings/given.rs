//! The settings that a user gave, before defaults fill in the rest.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::choice::Choice;
use super::kind::Kind;
use super::setting::Setting;
use super::space::Space;
use super::{Keep, SETTINGS, Settings};
use crate::data::SplitKind;
use crate::model::{PrecisionChoice, resolve_precision};
use crate::tokenizer::TokenizerKind;

/// Tokens of a `corpus_bpe` tokenizer whose size is not given.
const DEFAULT_VOCAB_SIZE: usize = 1024;

/// Settings by name, each with the values given for it: from flags, a config file, a preset or an earlier run.
///
/// ```
/// use folio::settings::{Choice, Given, setting};
/// let mut given = Given::default();
/// given.insert(setting("n_emb").unwrap(), vec![Choice::from(128)]);
/// given.insert(setting("dropout").unwrap(), vec![Choice::from(0.0), Choice::from(0.1)]);
/// let (base, space) = given.resolve();
/// assert_eq!(base.n_emb, 128);
/// assert_eq!(space.grid(&base).unwrap().len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given(BTreeMap<&'static str, Vec<Choice>>);

impl Given {
    /// The settings of a run that satisfy `filter`.
    pub fn from_settings(settings: &Settings, filter: impl Fn(&Setting) -> bool) -> Self {
        let mut given = Self::default();
        let is_given = |setting: &Setting| setting.section.is_some() || setting.of_model;
        for setting in SETTINGS.iter().filter(|setting| is_given(setting) && filter(setting)) {
            let value = (setting.get)(settings);
            // Without a text, the embedded one is read.
            let is_embedded = setting.name == "data" && settings.data.is_embedded();
            if !value.is_null() && !is_embedded {
                let values = if let Value::Array(values) = value { values } else { vec![value] };
                given.insert(setting, values.into_iter().map(Choice::Value).collect());
            }
        }
        given
    }

    /// Sets the values of a setting.
    pub fn insert(&mut self, setting: &Setting, values: Vec<Choice>) {
        self.0.insert(setting.name, values);
    }

    /// Removes a setting.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The names of the settings given.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// Whether a setting is given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The values of a setting; none if it is not given.
    pub fn values(&self, name: &str) -> &[Choice] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of a setting, if exactly one is given.
    ///
    /// # Panics
    /// If the setting is of another type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let [Choice::Value(value)] = self.values(name) else { return None };
        Some(serde_json::from_value(value.clone()).expect("a value of the setting's type"))
    }

    /// These settings, and those of `fallback` that are not among them.
    #[must_use]
    pub fn or(mut self, fallback: &Self) -> Self {
        for (name, values) in &fallback.0 {
            self.0.entry(name).or_insert_with(|| values.clone());
        }
        self
    }

    /// The settings that all runs share, and the values to search. Settings that are not given have their defaults, some
    /// of which depend on other settings.
    ///
    /// The text and the teachers keep their defaults: they are recorded once they have been read.
    pub fn resolve(&self) -> (Settings, Space) {
        let mut base = Settings::default();
        let mut space = Space::of(&base);
        for setting in SETTINGS.iter().filter(|setting| self.has(setting.name)) {
            let choices = self.values(setting.name);
            // Texts and teachers are recorded once they have been read.
            let is_text = matches!(setting.kind, Kind::Files);
            match choices {
                _ if setting.search_level.is_some() => {
                    space = space.with(setting.name, choices.iter().cloned());
                }
                // The precision may be "auto", which depends on the model's size.
                [Choice::Value(value)] if !is_text && setting.name != "precision" => {
                    (setting.set)(&mut base, value);
                }
                _ => {}
            }
        }
        let trains_tokenizer = base.tokenizer_type == TokenizerKind::CorpusBpe;
        if trains_tokenizer && !self.has("vocab_size") {
            base.vocab_size = Some(DEFAULT_VOCAB_SIZE);
        }
        if (trains_tokenizer || self.has("eval_data")) && !self.has("split") {
            base.split = SplitKind::Contiguous;
        }
        if !self.has("save_checkpoint") {
            base.save_checkpoint = self.get::<Keep>("keep").is_some_and(|keep| keep != Keep::Best);
        }
        base.precision = resolve_precision(self.precision(), &base.model_config(1));
        (base, space)
    }

    /// The precision; `auto` if it is not given.
    pub fn precision(&self) -> PrecisionChoice {
        self.get("precision").unwrap_or_default()
    }
}
