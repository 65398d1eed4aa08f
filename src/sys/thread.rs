//! Work on a thread of its own, because what it changes belongs to the thread.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::fault::{OrFault, Result};

/// Runs `f` inside the network namespace pinned at `net_ns`.
///
/// On a dedicated thread that ends with `f`: a pooled one would carry the
/// namespace into unrelated work. A panic of `f` goes on in the caller.
pub fn in_netns<T: Send>(net_ns: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let doing = || format!("entering the network namespace {}", net_ns.display());
    let ns = File::open(net_ns).or_fault(doing())?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(&ns, CloneFlags::CLONE_NEWNET).or_fault(doing())?;
            f()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
