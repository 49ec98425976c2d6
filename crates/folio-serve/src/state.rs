//! The state that all handlers share.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::catalog::Catalog;
use crate::chat_template::ChatTemplate;
use crate::errors::{ApiError, ApiResult};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::{LoadedModel, ModelCache};
use crate::queue::{PushError, Queue, Task};
use crate::records::RecordFiles;

/// The state that all handlers share.
pub(crate) struct Shared {
    pub(crate) catalog: Catalog,
    pub(crate) models: ModelCache,
    pub(crate) records: RecordFiles,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    /// Limits how many `/tokenize` and `/detokenize` requests run at the same time.
    pub(crate) tokenize_permits: Arc<Semaphore>,
    pub(crate) chat_template: Option<ChatTemplate>,
    pub(crate) limits: Limits,
    pub(crate) on_warning: Box<dyn Fn(&str) + Send + Sync>,
}

impl Shared {
    /// The model with this name or, without a name, that of the most recently saved checkpoint.
    pub(crate) fn model_or_newest(&self, name: Option<&str>) -> ApiResult<Arc<LoadedModel>> {
        let Some(name) = name else {
            let listing = self.catalog.listing();
            let newest = listing.newest().ok_or_else(ApiError::no_models)?;
            return self.model(newest);
        };
        self.model(name)
    }

    /// The model with this name. Loads it if it is not in memory.
    pub(crate) fn model(&self, name: &str) -> ApiResult<Arc<LoadedModel>> {
        let listing = self.catalog.listing();
        let (run, saved) = listing.find(name).ok_or_else(|| ApiError::unknown_model(name))?;
        self.models.get(run, saved, &self.metrics).map_err(|error| {
            // Clients do not see paths of the server.
            self.warn(&error.to_string());
            ApiError::internal("the model cannot be loaded; see the server's log")
        })
    }

    /// Queues a task for the engine.
    pub(crate) fn push(&self, task: Task) -> ApiResult<()> {
        self.queue.push(task).map_err(|error| match error {
            PushError::Full { retry_after } => ApiError::queue_full(retry_after),
            PushError::ShuttingDown => ApiError::shutting_down(),
        })
    }

    pub(crate) fn warn(&self, line: &str) {
        (self.on_warning)(line);
    }

    /// Rejects new tasks and gives running sequences [`Limits::grace_time`] to finish.
    pub(crate) fn begin_shutdown(&self) {
        self.queue.shut_down(Instant::now() + self.limits.grace_time);
    }
}
