//! `sweep.json`: the runs of a sweep, and how far each is trained.

use std::collections::VecDeque;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_json, write_json};
use crate::settings::Settings;

pub(crate) const SWEEP_FILE: &str = "sweep.json";

/// The runs of a sweep: the content of `sweep.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// How far to train each run.
    pub plan: Plan,
    /// The names of the settings in which the runs differ.
    pub varying: Vec<String>,
    /// The settings of each run; the first is `run_1`.
    pub runs: Vec<Settings>,
}

/// How far to train the runs of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Plan {
    /// All runs to their end.
    Full,
    /// Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
    /// Optimization"): each stage keeps the best 1/`factor` of the runs and trains them `factor` times as long; the last
    /// stage trains to the end.
    Halving {
        /// 2 or more.
        factor: u64,
    },
}

/// One stage of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Runs in this stage.
    pub runs: usize,
    /// Epochs that they have trained for at its end.
    pub epochs: u64,
}

impl Sweep {
    /// The sweep over several `runs`.
    pub fn new(plan: Plan, runs: Vec<Settings>) -> Self {
        let objects: Vec<_> =
            runs.iter().map(|run| serde_json::to_value(run).expect("settings are JSON")).collect();
        let keys = objects[0].as_object().expect("a struct").keys();
        let varying =
            keys.filter(|key| objects.iter().any(|run| run[*key] != objects[0][*key])).cloned().collect();
        Self { plan, varying, runs }
    }

    /// The sweep in a directory, if there is one.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(SWEEP_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let sweep: Self = read_json(&path)?;
        if sweep.runs.is_empty() {
            return Err(Error::RunDirectory { path, reason: "is damaged: it has no runs".to_owned() });
        }
        sweep.runs.iter().try_for_each(Settings::validate)?;
        Ok(Some(sweep))
    }

    /// Writes `sweep.json`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, directory: &Path) -> Result<()> {
        write_json(&directory.join(SWEEP_FILE), self)
    }

    /// The stages. The number of epochs grows by the factor from stage to stage, up to `num_epochs`.
    ///
    /// ```
    /// # use folio::{settings::Settings, sweep::{Plan, Rung, Sweep}};
    /// let run = Settings { num_epochs: 20, ..Settings::default() };
    /// let sweep = Sweep::new(Plan::Halving { factor: 3 }, vec![run; 12]);
    /// let rungs = [(12, 2), (4, 6), (1, 20)].map(|(runs, epochs)| Rung { runs, epochs });
    /// assert_eq!(sweep.rungs(), rungs);
    /// ```
    pub fn rungs(&self) -> Vec<Rung> {
        let (runs, epochs) = (self.runs.len(), self.runs[0].num_epochs);
        let factor = match self.plan {
            Plan::Full => return vec![Rung { runs, epochs }],
            Plan::Halving { factor } => factor.max(2),
        };
        let mut rungs = VecDeque::from([Rung { runs, epochs }]);
        // As many stages as it takes to get down to one run, if there are enough epochs.
        let mut left = runs;
        while left > 1 && rungs[0].epochs / factor >= 1 {
            rungs.push_front(Rung { runs, epochs: rungs[0].epochs / factor });
            left /= factor as usize;
        }
        let mut runs = runs;
        for rung in &mut rungs {
            rung.runs = runs;
            runs = (runs / factor as usize).max(1);
        }
        rungs.into()
    }

    /// The varying settings of a run: names and values.
    pub fn values(&self, run: usize) -> Vec<(String, String)> {
        let settings = serde_json::to_value(&self.runs[run]).expect("settings are JSON");
        let value = |key: &String| match &settings[key] {
            serde_json::Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        self.varying.iter().map(|key| (key.clone(), value(key))).collect()
    }
}
