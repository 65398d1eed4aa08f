//! An import that is under way, and those who wait for its result.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::progress::{Listener, Progress};
use crate::fault::{Fault, Result};
use crate::types::{Image, ImageImport};

/// One import, shared between the thread that runs it and those that joined.
pub struct Flight {
    request: ImageImport,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    progress: Option<Progress>,
    result: Option<Result<Image>>,
}

impl Flight {
    /// An import that starts.
    pub fn new(request: ImageImport) -> Flight {
        Flight { request, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Whether another request of the same image wants the same content, as far as both say.
    pub fn serves(&self, other: &ImageImport) -> bool {
        agree(&self.request.hash, &other.hash) && agree(&self.request.size, &other.size)
    }

    /// Tells those who wait how far it is.
    pub fn report(&self, progress: Progress) {
        self.lock().progress = Some(progress);
        self.changed.notify_all();
    }

    /// Ends it.
    pub fn land(&self, result: Result<Image>) {
        self.lock().result = Some(result);
        self.changed.notify_all();
    }

    /// Waits for the end, passing progress on.
    pub(super) fn wait(&self, watcher: Listener<'_>) -> Result<Image> {
        // The other one works.
        watcher.idle();
        let mut state = self.lock();
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            if let Some(news) = state.progress.take() {
                // The callback may do anything; it must not stop the import.
                drop(state);
                watcher.progress(news);
                state = self.lock();
                continue;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn agree<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

/// The result of a flight whose thread ended without one.
pub fn crashed() -> Result<Image> {
    Err(Fault::internal("importing the image", "the import ended unexpectedly"))
}
