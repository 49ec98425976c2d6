//! The values that a search goes through.

use serde_json::Value;

use super::choice::Choice;
use super::setting::Setting;
use super::{SETTINGS, Settings};
use crate::error::{Error, Result};
use crate::rng::{Rng, Stream};

/// The values to search of each setting that a search can vary.
///
/// The settings are nested in the order of their [`search_level`](Setting::search_level): the last varies fastest.
#[derive(Clone, Debug)]
pub struct Space(Vec<(&'static Setting, Vec<Choice>)>);

impl Space {
    /// The space whose only point is `base`.
    pub fn of(base: &Settings) -> Self {
        let mut searchable: Vec<&'static Setting> =
            SETTINGS.iter().filter(|setting| setting.search_level.is_some()).collect();
        searchable.sort_by_key(|setting| setting.search_level);
        Self(
            searchable
                .into_iter()
                .map(|setting| (setting, vec![Choice::Value((setting.get)(base))]))
                .collect(),
        )
    }

    /// This space with other values of one setting.
    ///
    /// # Panics
    /// If there is no such setting, or a search cannot vary it.
    #[must_use]
    pub fn with<T: Into<Choice>>(mut self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        let found = self.0.iter_mut().find(|(setting, _)| setting.name == name);
        let (_, choices) = found.unwrap_or_else(|| panic!("a search cannot vary {name}"));
        *choices = values.into_iter().map(Into::into).collect();
        self
    }

    /// Every combination of the values, applied to `base`, in order.
    ///
    /// ```
    /// use folio::settings::Settings;
    /// use folio::sweep::Space;
    /// let base = Settings::default();
    /// let space = Space::of(&base).with("batch_size", [8, 16]).with("dropout", [0.0, 0.1, 0.2]);
    /// let runs = space.grid(&base)?;
    /// assert_eq!(runs.len(), 6);
    /// assert_eq!((runs[1].batch_size, runs[1].dropout), (8, 0.1));
    /// # Ok::<(), folio::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if there is a range, or a setting without a value.
    pub fn grid(&self, base: &Settings) -> Result<Vec<Settings>> {
        let mut runs = vec![base.clone()];
        for (setting, choices) in &self.0 {
            let values = fixed_values(setting, choices)?;
            let with = |run: &Settings, value| {
                let mut run = run.clone();
                (setting.set)(&mut run, value);
                run
            };
            runs = runs.iter().flat_map(|run| values.iter().map(move |&value| with(run, value))).collect();
        }
        Ok(runs)
    }

    /// `trials` random points, which depend on `base.seed` alone: of each setting one of its values and ranges, all
    /// equally likely, and of a range a number in it.
    ///
    /// # Panics
    /// If a setting has no value.
    pub fn sample(&self, base: &Settings, trials: usize) -> Vec<Settings> {
        let mut rng = Rng::new(base.seed, Stream::Search);
        let mut point = || {
            let mut run = base.clone();
            for (setting, choices) in &self.0 {
                // A setting that does not vary takes no random number, so that it does not affect the others.
                let choice = match choices.as_slice() {
                    [only] => only,
                    several => &several[rng.below(several.len() as u64) as usize],
                };
                (setting.set)(&mut run, &choice.sample(setting.kind, &mut rng));
            }
            run
        };
        (0..trials).map(|_| point()).collect()
    }
}

/// The values of a setting, none of which may be a range.
fn fixed_values<'a>(setting: &Setting, choices: &'a [Choice]) -> Result<Vec<&'a Value>> {
    if choices.is_empty() {
        return Err(Error::setting(setting.name, "has no value; give at least one"));
    }
    let value = |choice: &'a Choice| match choice {
        Choice::Value(value) => Ok(value),
        range => {
            let reason = format!("{range} is a range; sample from it with `search random`");
            Err(Error::setting(setting.name, reason))
        }
    };
    choices.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(base: &Settings) -> Space {
        Space::of(base)
            .with("learning_rate", [Choice::Range { low: 1e-5, high: 1e-1, log: true }])
            .with("batch_size", [Choice::from(8), Choice::Range { low: 16.0, high: 18.0, log: false }])
            .with("dropout", [Choice::Range { low: 0.0, high: 0.5, log: false }])
    }

    #[test]
    fn samples_fill_their_ranges_and_depend_on_the_seed_alone() {
        let base = Settings::default();
        let runs = space(&base).sample(&base, 4_000);
        assert_eq!(runs, space(&base).sample(&base, 4_000));
        assert_eq!(runs[..7], space(&base).sample(&base, 7), "more trials begin with the same");
        let other = Settings { seed: 1, ..base.clone() };
        assert_ne!(runs[0].learning_rate, space(&other).sample(&other, 1)[0].learning_rate);
        // Shares of 4,000 samples deviate by at most sqrt(0.25 / 4000) = 0.008: six deviations.
        let near = |inside: &dyn Fn(&Settings) -> bool, share: f64| {
            let found = runs.iter().filter(|run| inside(run)).count() as f64 / 4_000.0;
            assert!((found - share).abs() < 0.048, "{found} for {share}");
        };
        near(&|run| run.learning_rate < 1e-3, 0.5);
        near(&|run| run.dropout < 0.125, 0.25);
        near(&|run| run.batch_size == 8, 0.5);
        near(&|run| run.batch_size == 17, 0.25);
        assert!(runs.iter().all(|run| (1e-5..=1e-1).contains(&run.learning_rate)));
        assert!(runs.iter().all(|run| run.weight_decay == base.weight_decay));
    }

    #[test]
    fn a_grid_nests_settings_in_the_documented_order() {
        let base = Settings::default();
        let names: Vec<&str> = Space::of(&base).0.iter().map(|(setting, _)| setting.key).collect();
        let documented = "block_sizes batch_sizes learning_rates weight_decays dropouts cosine_final_lr \
                          cosine_T_max cosine_T_mult cosine_lr_restart_decay";
        assert!(names.join(" ").starts_with(documented), "{names:?}");
    }

    #[test]
    fn a_grid_has_no_ranges_and_no_empty_lists() {
        let base = Settings::default();
        let error = Space::of(&base).with("dropout", [0.0; 0]).grid(&base).unwrap_err();
        assert_eq!(error.to_string(), "dropout: has no value; give at least one");
        let error = space(&base).grid(&base).unwrap_err();
        assert!(error.to_string().starts_with("batch_size: 16..18 is a range"), "{error}");
    }
}
