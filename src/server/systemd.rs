//! What systemd is told: ready, alive, stopping. Without systemd, nothing.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

use crate::instance::backend::Backend;

/// Tells systemd a state.
pub(super) fn notify(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!(error = %e, "systemd could not be told");
    }
}

/// Tells systemd about twice in every watchdog interval that the service lives, as
/// long as the instance manager answers. Stops when dropped.
pub(super) struct Watchdog(Option<JoinHandle<()>>);

impl Watchdog {
    pub fn start(backend: Arc<dyn Backend>) -> Watchdog {
        Watchdog(sd_notify::watchdog_enabled().map(|interval| {
            actix_web::rt::spawn(async move {
                loop {
                    if answers(backend.clone(), interval / 3).await {
                        notify(NotifyState::Watchdog);
                    }
                    tokio::time::sleep(interval / 3).await;
                }
            })
        }))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Whether the instance manager answers: a deadlock in it must not look healthy.
async fn answers(backend: Arc<dyn Backend>, patience: Duration) -> bool {
    let asked = tokio::task::spawn_blocking(move || backend.operations().len());
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(_)) => true,
        _ => {
            tracing::error!("the instance manager does not answer");
            false
        }
    }
}
