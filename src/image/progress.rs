//! How far an import is.

/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 1 << 20;

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `waiting`, `downloading`, `reading`, `recognising`, `decompressing`,
    /// `converting`, `extracting` or `unpacking`.
    pub stage: &'static str,
    /// Bytes that this stage has done.
    pub done: u64,
    /// Bytes that it will do, when that is known.
    pub total: Option<u64>,
}

/// Whoever looks on while an import goes on.
pub trait Watcher: Sync {
    /// How far it is.
    fn progress(&self, progress: Progress);
    /// Its content keeps it waiting: until [`Watcher::busy`] it does no work.
    fn idle(&self) {}
    /// It goes on, once this returns.
    fn busy(&self) {}
}

impl<F: Fn(Progress) + Sync> Watcher for F {
    fn progress(&self, progress: Progress) {
        self(progress);
    }
}

/// Where progress goes.
pub(super) type Listener<'a> = &'a dyn Watcher;

/// Reports progress, not too often.
pub(super) struct Meter<'a> {
    report: Listener<'a>,
    stage: &'static str,
    total: Option<u64>,
    before: u64,
    next: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(report: Listener<'a>, stage: &'static str) -> Meter<'a> {
        Meter { report, stage, total: None, before: 0, next: 0 }
    }

    pub(super) fn whole(self, total: u64) -> Meter<'a> {
        Meter { total: Some(total), ..self }
    }

    pub(super) fn from(self, before: u64) -> Meter<'a> {
        Meter { before, ..self }
    }

    pub(super) fn at(&mut self, done: u64, total: Option<u64>) {
        if done >= self.next {
            self.next = done + REPORT_EVERY;
            let total = self.total.or(total);
            self.report.progress(Progress { stage: self.stage, done: self.before + done, total });
        }
    }
}
