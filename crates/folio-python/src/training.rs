//! Training on a thread of its own, whose events Python fetches one by one.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use folio::train::{Outcome, Requests};
use folio_cli::session::{self, Session};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::raise;
use crate::events::Report;
use crate::values;

/// Events that may wait for Python before training waits. It is never more than this far ahead of the loop that consumes
/// its events.
const MOST_WAITING: usize = 64;

/// How often Python's signals are checked while there is no event.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// A message of the training thread.
enum Message {
    Report(Report),
    Ended(Result<Outcome, String>),
}

/// A run or a sweep that is planned, and trains once its events are fetched.
#[pyclass(frozen, module = "folio._folio")]
pub(crate) struct Training {
    stage: Mutex<Stage>,
    requests: Requests,
    run_dir: Option<PathBuf>,
    is_sweep: bool,
    notes: Vec<String>,
    settings: Vec<serde_json::Value>,
}

enum Stage {
    Planned(Box<Session>),
    Training(Receiver<Message>),
    Ended(Option<Outcome>),
}

#[pymethods]
impl Training {
    /// Checks the arguments and reads the text.
    #[new]
    fn new(py: Python<'_>, given: &Bound<'_, PyDict>) -> PyResult<Self> {
        let arguments = values::arguments(given)?;
        let session = py.detach(|| Session::plan(&arguments)).map_err(raise)?;
        let settings = session.runs().iter().map(|run| serde_json::to_value(run).expect("settings are JSON"));
        Ok(Self {
            requests: Requests::default(),
            run_dir: session.run_dir().map(PathBuf::from),
            is_sweep: session.is_sweep(),
            notes: session.notes().to_vec(),
            settings: settings.collect(),
            stage: Mutex::new(Stage::Planned(Box::new(session))),
        })
    }

    /// The directory of the run or the sweep.
    #[getter]
    fn run_dir(&self) -> Option<PathBuf> {
        self.run_dir.clone()
    }

    /// Whether there are several runs.
    #[getter]
    fn is_sweep(&self) -> bool {
        self.is_sweep
    }

    /// What to know before training starts.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    /// The settings of each run.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let runs =
            self.settings.iter().map(|run| values::to_python(py, run)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, runs)
    }

    /// How training ended: finished, stopped, or None if it has not ended or has failed.
    #[getter]
    fn outcome(&self) -> Option<&'static str> {
        match *self.stage() {
            Stage::Ended(Some(Outcome::Finished)) => Some("finished"),
            Stage::Ended(Some(Outcome::Stopped)) => Some("stopped"),
            _ => None,
        }
    }

    /// Requests to finish the step, save and stop.
    fn stop(&self) {
        self.requests.stop.store(true, Ordering::Relaxed);
    }

    /// Requests to finish the step, save and continue.
    fn save(&self) {
        self.requests.save.store(true, Ordering::Relaxed);
    }

    /// The next event: the name of its class, and its fields. Starts training if it has not started; None at its end.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<(&'static str, Bound<'py, PyDict>)>> {
        loop {
            match self.receive(py)? {
                Some(report) => match report.into_fields(py)? {
                    None => {}
                    event => return Ok(event),
                },
                None => return Ok(None),
            }
        }
    }

    /// Stops training, and waits until it has saved. A run that has not started never starts.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        self.stop();
        {
            let mut stage = self.stage();
            if matches!(*stage, Stage::Planned(_)) {
                *stage = Stage::Ended(None);
            }
        }
        while self.receive(py)?.is_some() {}
        Ok(())
    }
}

impl Training {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next report of the training thread; None at its end. Python's signal handlers run meanwhile.
    fn receive(&self, py: Python<'_>) -> PyResult<Option<Report>> {
        loop {
            let received = py.detach(|| {
                let mut stage = self.stage();
                if let Stage::Planned(_) = *stage {
                    let Stage::Planned(session) = std::mem::replace(&mut *stage, Stage::Ended(None)) else {
                        unreachable!("just checked")
                    };
                    *stage = Stage::Training(start(session, self.requests.clone()));
                }
                let Stage::Training(messages) = &*stage else { return Ok(None) };
                let message = messages.recv_timeout(SIGNAL_INTERVAL);
                match &message {
                    Ok(Message::Ended(outcome)) => *stage = Stage::Ended(outcome.as_ref().ok().copied()),
                    Err(RecvTimeoutError::Disconnected) => *stage = Stage::Ended(None),
                    _ => {}
                }
                message.map(Some)
            });
            match received {
                Ok(Some(Message::Report(report))) => return Ok(Some(report)),
                Ok(Some(Message::Ended(Ok(_))) | None) => return Ok(None),
                Ok(Some(Message::Ended(Err(message)))) => return Err(raise(message)),
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err("a bug in folio: the training thread has panicked"));
                }
            }
        }
    }
}

impl Drop for Training {
    /// Training that nobody watches any more saves and stops.
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the training thread.
fn start(session: Box<Session>, requests: Requests) -> Receiver<Message> {
    let (sender, messages) = sync_channel(MOST_WAITING);
    std::thread::spawn(move || {
        // Nobody receives if Python has dropped the object; training then stops at its next step.
        let outcome = session.run(&requests, &mut |event| _ = sender.send(Message::Report(event.into())));
        // Removes a directory in which nothing was saved, before Python learns that training has ended.
        drop(session);
        let _ = sender.send(Message::Ended(outcome));
    });
    messages
}

/// Every argument of a training: name, aliases, help, default and can_vary.
#[pyfunction]
pub(crate) fn arguments(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let arguments = PyList::empty(py);
    for argument in session::arguments() {
        let fields = PyDict::new(py);
        fields.set_item("name", argument.name)?;
        fields.set_item("aliases", argument.aliases)?;
        fields.set_item("help", argument.help)?;
        fields.set_item("default", argument.default)?;
        fields.set_item("can_vary", argument.can_vary)?;
        arguments.append(fields)?;
    }
    Ok(arguments)
}
