//! Hyperparameter search over a grid: every combination of the values given.

use crate::settings::Settings;

/// The settings that take several values. The nesting is that of the fields: the last varies fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Tokens a sequence.
    pub block_sizes: Vec<usize>,
    /// Sequences a step.
    pub batch_sizes: Vec<usize>,
    /// Peak learning rates.
    pub learning_rates: Vec<f64>,
    /// Decoupled weight decays.
    pub weight_decays: Vec<f64>,
    /// Dropout rates.
    pub dropouts: Vec<f64>,
    /// Floors of the cosine.
    pub cosine_final_lr: Vec<f64>,
    /// Half periods.
    pub cosine_t_max: Vec<u64>,
    /// Growths of the period.
    pub cosine_t_mult: Vec<u64>,
    /// Factors at a restart.
    pub cosine_lr_restart_decay: Vec<f64>,
}

impl Grid {
    /// Every combination, laid over `base`, in order.
    ///
    /// ```
    /// use folio::settings::Settings;
    /// use folio::sweep::Grid;
    /// let base = Settings::default();
    /// let grid = Grid { batch_sizes: vec![8, 16], dropouts: vec![0.0, 0.1, 0.2], ..Grid::of(&base) };
    /// let runs = grid.combinations(&base);
    /// assert_eq!(runs.len(), 6);
    /// assert_eq!((runs[1].batch_size, runs[1].dropout), (8, 0.1));
    /// ```
    pub fn combinations(&self, base: &Settings) -> Vec<Settings> {
        let mut runs = vec![base.clone()];
        vary(&mut runs, &self.block_sizes, |run, value| run.block_size = value);
        vary(&mut runs, &self.batch_sizes, |run, value| run.batch_size = value);
        vary(&mut runs, &self.learning_rates, |run, value| run.learning_rate = value);
        vary(&mut runs, &self.weight_decays, |run, value| run.weight_decay = value);
        vary(&mut runs, &self.dropouts, |run, value| run.dropout = value);
        vary(&mut runs, &self.cosine_final_lr, |run, value| run.cosine_final_lr = value);
        vary(&mut runs, &self.cosine_t_max, |run, value| run.cosine_t_max = value);
        vary(&mut runs, &self.cosine_t_mult, |run, value| run.cosine_t_mult = value);
        vary(&mut runs, &self.cosine_lr_restart_decay, |run, value| run.cosine_lr_restart_decay = value);
        runs
    }

    /// The grid whose only point is `base`.
    pub fn of(base: &Settings) -> Self {
        Self {
            block_sizes: vec![base.block_size],
            batch_sizes: vec![base.batch_size],
            learning_rates: vec![base.learning_rate],
            weight_decays: vec![base.weight_decay],
            dropouts: vec![base.dropout],
            cosine_final_lr: vec![base.cosine_final_lr],
            cosine_t_max: vec![base.cosine_t_max],
            cosine_t_mult: vec![base.cosine_t_mult],
            cosine_lr_restart_decay: vec![base.cosine_lr_restart_decay],
        }
    }

    /// The names and values, as printed, of what differs between the runs of this grid.
    pub fn varying(&self, run: &Settings) -> Vec<(&'static str, String)> {
        let fields = [
            ("block_size", self.block_sizes.len(), run.block_size.to_string()),
            ("batch_size", self.batch_sizes.len(), run.batch_size.to_string()),
            ("learning_rate", self.learning_rates.len(), run.learning_rate.to_string()),
            ("weight_decay", self.weight_decays.len(), run.weight_decay.to_string()),
            ("dropout", self.dropouts.len(), run.dropout.to_string()),
            ("cosine_final_lr", self.cosine_final_lr.len(), run.cosine_final_lr.to_string()),
            ("cosine_T_max", self.cosine_t_max.len(), run.cosine_t_max.to_string()),
            ("cosine_T_mult", self.cosine_t_mult.len(), run.cosine_t_mult.to_string()),
            (
                "cosine_lr_restart_decay",
                self.cosine_lr_restart_decay.len(),
                run.cosine_lr_restart_decay.to_string(),
            ),
        ];
        fields.into_iter().filter(|(_, count, _)| *count > 1).map(|(name, _, value)| (name, value)).collect()
    }
}

/// Replaces every run by one for each value.
fn vary<T: Copy>(runs: &mut Vec<Settings>, values: &[T], set: impl Fn(&mut Settings, T)) {
    *runs = runs
        .iter()
        .flat_map(|run| {
            values.iter().map(|&value| {
                let mut run = run.clone();
                set(&mut run, value);
                run
            })
        })
        .collect();
}
