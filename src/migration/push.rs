//! The source's side of a move.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use uuid::Uuid;

use super::chunks::{self, Hash, Known, Step};
use super::layer::Sender;
use super::peer::{Content, Line, Peer};
use super::throttle::Throttle;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::{Incoming, IncomingEnd, IncomingFile, IncomingInstance, IncomingOutcome};

/// Connections over which a file goes.
const LINES: usize = 3;
/// How long a chunk is sent anew when the line breaks.
const RETRY: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the other side may take to make disks whole and durable.
const COMMIT: Duration = Duration::from_secs(900);

/// An instance on its way.
pub struct Push {
    peer: Peer,
    id: Uuid,
    request_id: String,
    throttle: Throttle,
    /// What the other side has of each file.
    known: BTreeMap<IncomingFile, Known>,
    total: u64,
    processed: AtomicU64,
}

/// Who wants to know how far it is, and may end it.
pub struct Watch<'a> {
    /// Is told of the bytes in all, and of those that are done.
    pub report: &'a (dyn Fn(u64, u64) + Sync),
    /// Says whether to go on.
    pub go_on: &'a (dyn Fn() -> bool + Sync),
}

impl Watch<'_> {
    fn check(&self) -> Result<()> {
        if (self.go_on)() {
            return Ok(());
        }
        Err(Fault::new(FaultKind::InstanceInvalidState, "the move to the other host was aborted"))
    }
}

/// A chunk to look at.
struct Piece<'a> {
    file: IncomingFile,
    from: &'a File,
    size: u64,
    number: u64,
    known: Option<Hash>,
}

impl Push {
    /// Announces an instance: the other side makes ready for it, or says why it cannot.
    /// `rate`: bytes a second, 0 for no limit.
    pub fn begin(
        peer: Peer,
        id: Uuid,
        request_id: &str,
        rate: u64,
        instance: &IncomingInstance,
    ) -> Result<(Push, Incoming)> {
        let push = Push {
            peer,
            id,
            request_id: request_id.to_owned(),
            throttle: Throttle::new(rate),
            known: BTreeMap::new(),
            total: 0,
            processed: AtomicU64::new(0),
        };
        let body = serde_json::to_vec(instance).or_fault("describing an instance")?;
        let incoming = push.line()?.request(Method::PUT, &push.path(""), Content::Json(body))?;
        Ok((push, incoming))
    }

    /// Sends a layer that the other side lacks; `write` gives its archive.
    pub fn layer(
        &self,
        digest: &str,
        watch: &Watch<'_>,
        write: impl FnOnce(&mut dyn Write) -> Result<u64>,
    ) -> Result<()> {
        watch.check()?;
        let line = &mut self.line()?;
        line.set_patience(COMMIT);
        line.stream(Method::PUT, &self.path(&format!("/layers/{digest}")), |body| {
            let mut sender = Sender::new(Limited { to: body, throttle: &self.throttle });
            write(&mut sender)?;
            sender.finish().or_kind(FaultKind::PeerUnavailable, "sending a layer")
        })
    }

    /// Sends what the other side does not have yet of files.
    pub fn pass(&mut self, files: &[(IncomingFile, File)], watch: &Watch<'_>) -> Result<()> {
        let doing = "reading a disk to send it";
        let mut pieces = Vec::new();
        for (file, from) in files {
            let known = self.known.entry(*file).or_default();
            let size = from.metadata().or_fault(doing)?.len();
            let (numbers, bytes) = chunks::plan(from, known).or_fault(doing)?;
            self.total += bytes;
            pieces.extend(numbers.into_iter().map(|number| Piece {
                file: *file,
                from,
                size,
                number,
                known: known.get(&number).copied(),
            }));
        }
        let next = Mutex::new(pieces.into_iter());
        let (done, failed) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let this = &*self;
        let work = || {
            let mut line = None;
            while let Some(piece) = next.lock().unwrap_or_else(PoisonError::into_inner).next() {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let sent = this.piece(&piece, &mut line, watch);
                failed.fetch_or(sent.is_err(), Ordering::Relaxed);
                let hash = sent?;
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push((piece.file, piece.number, hash));
            }
            Ok(())
        };
        let outcome: Result<()> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..LINES).map(|_| scope.spawn(work)).collect();
            others.into_iter().fold(work(), |first, other| {
                let theirs = other.join();
                first.and(theirs.unwrap_or_else(|_| Err(Fault::internal(doing, "a defect"))))
            })
        });
        for (file, number, hash) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let known = self.known.entry(file).or_default();
            match hash {
                Some(hash) => drop(known.insert(number, hash)),
                None => drop(known.remove(&number)),
            }
        }
        outcome
    }

    /// Has the other side have a chunk; its hash, unless it is all zeros.
    fn piece(
        &self,
        piece: &Piece<'_>,
        line: &mut Option<Line>,
        watch: &Watch<'_>,
    ) -> Result<Option<Hash>> {
        watch.check()?;
        let Piece { file, from, size, number, known } = piece;
        let length = chunks::length(*size, *number);
        let step = chunks::step(from, *size, *number, known.as_ref());
        let place = format!("/files/{}?offset={}", file.name(), number * chunks::CHUNK);
        let hash = match step.or_fault("reading a disk to send it")? {
            Step::Nothing => *known,
            Step::Clear(length) => {
                self.put(line, &format!("{place}&zeros={length}"), Bytes::new(), watch)?;
                None
            }
            Step::Send(bytes, hash) => {
                self.throttle.wait(bytes.len() as u64);
                let path = format!("{place}&sha256={}", hex::encode(hash));
                self.put(line, &path, bytes.into(), watch)?;
                Some(hash)
            }
        };
        let processed = self.processed.fetch_add(length, Ordering::Relaxed) + length;
        (watch.report)(self.total, processed);
        Ok(hash)
    }

    /// Sends a chunk until the other side has it.
    fn put(
        &self,
        line: &mut Option<Line>,
        path: &str,
        bytes: Bytes,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let deadline = Instant::now() + RETRY;
        let path = self.path(path);
        loop {
            let content = Content::Bytes(bytes.clone());
            let sent = match line {
                Some(line) => line.request(Method::PUT, &path, content),
                None => self
                    .line()
                    .and_then(|new| line.insert(new).request(Method::PUT, &path, content)),
            };
            match sent {
                Err(fault)
                    if fault.kind == FaultKind::PeerUnavailable && Instant::now() < deadline =>
                {
                    *line = None;
                    watch.check()?;
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Tells the other side to take the instance. A fault does not say that it did not.
    pub fn commit(&self) -> Result<()> {
        let mut line = self.line()?;
        line.set_patience(COMMIT);
        line.request(Method::POST, &self.path("/commit"), Content::Nothing)
    }

    /// Ends the move, if it was not committed.
    pub fn end(&self) -> Result<IncomingOutcome> {
        end(&self.peer, self.id, &self.request_id, false)
    }

    /// Tells the other side that it is known here whose the instance is.
    pub fn acknowledge(&self) -> Result<()> {
        acknowledge(&self.peer, self.id, &self.request_id)
    }

    fn line(&self) -> Result<Line> {
        self.peer.connect(&self.request_id)
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/incoming/{}{rest}", self.id)
    }
}

/// Ends a move, if it was not committed: whose the instance is. With `revert`, one that was
/// committed and never started is given back.
pub fn end(peer: &Peer, id: Uuid, request_id: &str, revert: bool) -> Result<IncomingOutcome> {
    let mut line = peer.connect(request_id)?;
    // It may be at work on the commit.
    line.set_patience(COMMIT);
    let query = if revert { "?revert=true" } else { "" };
    let path = format!("/v1/incoming/{id}{query}");
    let end: IncomingEnd = line.request(Method::DELETE, &path, Content::Nothing)?;
    Ok(end.outcome)
}

/// Tells the other side that it is known here whose the instance is.
pub fn acknowledge(peer: &Peer, id: Uuid, request_id: &str) -> Result<()> {
    let mut line = peer.connect(request_id)?;
    line.request(Method::POST, &format!("/v1/incoming/{id}/acknowledge"), Content::Nothing)
}

/// Holds what is written to the rate of the move.
struct Limited<'a> {
    to: &'a mut dyn Write,
    throttle: &'a Throttle,
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.throttle.wait(bytes.len() as u64);
        self.to.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}
