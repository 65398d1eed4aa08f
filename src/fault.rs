//! The closed set of faults: what can go wrong, as a client sees it.
//!
//! Every fault has a stable code, an HTTP status and a sentence for the
//! operator. Nova's driver maps each code to exactly one exception, which
//! decides whether Nova aborts, reschedules or sets ERROR: so a new kind of
//! failure gets a new [`FaultKind`], never a reused one with another meaning.
//!
//! This file is the only table from fault to HTTP.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! fault_kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $title:literal;)*) => {
        /// What kind of failure a [`Fault`] is. The code is the API's promise.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum FaultKind {
            $($(#[$doc])* #[serde(rename = $code)] $name,)*
        }

        impl FaultKind {
            /// Every kind, in the order of the API guide.
            pub const ALL: &'static [FaultKind] = &[$(FaultKind::$name),*];

            /// The stable code: part of the API, never changed.
            pub const fn code(self) -> &'static str {
                match self { $(FaultKind::$name => $code),* }
            }

            /// The HTTP status it is answered with.
            pub const fn status(self) -> u16 {
                match self { $(FaultKind::$name => $status),* }
            }

            /// A short, constant summary (RFC 9457 `title`).
            pub const fn title(self) -> &'static str {
                match self { $(FaultKind::$name => $title),* }
            }
        }
    };
}

fault_kinds! {
    /// A field of the request is not acceptable; nothing was changed.
    InvalidInput = "invalid-input", 400, "The request is not valid";
    /// The peer may not use this service.
    Forbidden = "forbidden", 403, "This client may not use the service";
    /// No such path or resource.
    NotFound = "not-found", 404, "There is no such resource";
    /// No such instance on this host.
    InstanceNotFound = "instance-not-found", 404, "There is no such instance on this host";
    /// No such image in this host's store.
    ImageNotFound = "image-not-found", 404, "There is no such image on this host";
    /// No such interface on the instance.
    InterfaceNotFound = "interface-not-found", 404, "The instance has no such interface";
    /// No such volume on the instance.
    VolumeNotFound = "volume-not-found", 404, "The instance has no such volume";
    /// No such operation, or it ended too long ago.
    OperationNotFound = "operation-not-found", 404, "There is no such operation";
    /// The path exists, the method does not.
    MethodNotAllowed = "method-not-allowed", 405, "The resource has no such method";
    /// The instance exists and was created from another request.
    InstanceExists = "instance-exists", 409, "The instance exists with another definition";
    /// The operation is not possible in the instance's present state.
    InstanceInvalidState = "instance-invalid-state", 409, "The instance's state does not allow this";
    /// The image is the base of an instance, or is being imported.
    ImageInUse = "image-in-use", 409, "The image is in use";
    /// The image exists with other content.
    ImageExists = "image-exists", 409, "The image exists with other content";
    /// The device name, address or port is taken.
    InterfaceExists = "interface-exists", 409, "The interface exists";
    /// The volume is attached in another way, or is another instance's.
    VolumeExists = "volume-exists", 409, "The volume is attached otherwise";
    /// Programs have the volume open.
    VolumeBusy = "volume-busy", 409, "The volume is in use";
    /// The events asked for are no longer kept.
    EventsGone = "events-gone", 410, "The events asked for are no longer kept";
    /// The body is larger than this endpoint takes.
    PayloadTooLarge = "payload-too-large", 413, "The request body is too large";
    /// The body's type is not what this endpoint takes.
    UnsupportedMediaType = "unsupported-media-type", 415, "The request body has the wrong type";
    /// The content is no image berth can boot, or one that tries to reach outside itself.
    ImageUnacceptable = "image-unacceptable", 422, "The image cannot be used";
    /// The content does not match its declared hash or size.
    ImageCorrupt = "image-corrupt", 422, "The image's content does not match its hash";
    /// The image does not fit into the flavor's `root_gb`.
    FlavorDiskTooSmall = "flavor-disk-too-small", 422, "The flavor's disk is too small for the image";
    /// The flavor's `memory_mb` is below what an instance needs.
    FlavorMemoryTooSmall = "flavor-memory-too-small", 422, "The flavor's memory is too small";
    /// What runs inside the instance lacks what this takes, or does not do it.
    InstanceUnsupported = "instance-unsupported", 422, "The instance cannot do that";
    /// This host cannot do it: kernel, runtime or configuration lack a feature.
    HostUnsupported = "host-unsupported", 501, "This host cannot do that";
    /// Glance did not answer, or not as expected; worth trying again.
    GlanceUnavailable = "glance-unavailable", 502, "The image service did not deliver";
    /// Glance refused the token or the image is not visible with it.
    GlanceForbidden = "glance-forbidden", 502, "The image service refused access";
    /// The service of the other host of a move cannot be reached, or is not who it should be.
    PeerUnavailable = "peer-unavailable", 502, "The other host's service did not answer";
    /// The OCI runtime program failed.
    RuntimeFailed = "runtime-failed", 500, "The container runtime failed";
    /// The host's network could not be set up as asked.
    NetworkFailed = "network-failed", 500, "The instance's network could not be set up";
    /// The service is stopping or starting.
    ServiceUnavailable = "service-unavailable", 503, "The service is not ready";
    /// Memory, CPUs, disk space, ids or devices of the host ran out.
    ResourcesExhausted = "resources-exhausted", 507, "The host has run out of a resource";
    /// The deadline passed; the operation may still finish.
    Timeout = "timeout", 504, "The operation did not finish in time";
    /// A defect of berth or an unexpected answer of the kernel.
    Internal = "internal", 500, "The service met an unexpected condition";
}

/// A failure: its kind, what happened in words, and the field at fault if one is.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which of the closed set.
    pub kind: FaultKind,
    /// What happened and what to do, one or two sentences. Never a secret.
    pub detail: String,
    /// Path of the request field at fault, e.g. `flavor.memory_mb`.
    pub field: Option<String>,
    /// What brought it about; its text is in the detail, those of its own causes need not be.
    pub cause: Option<Arc<Cause>>,
}

/// Any error, or what is known of one: a text.
pub type Cause = dyn Error + Send + Sync;

/// The usual result of berth's modules.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// A fault of `kind` with its detail.
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Fault { kind, detail: detail.into(), field: None, cause: None }
    }

    /// [`FaultKind::InvalidInput`], naming the field and the remedy.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Fault { field: Some(field.into()), ..Fault::new(FaultKind::InvalidInput, detail) }
    }

    /// [`FaultKind::Internal`]: `doing` is what was attempted ("mounting the overlay").
    pub fn internal(doing: impl fmt::Display, error: impl Into<Box<Cause>>) -> Self {
        Fault::caused(FaultKind::Internal, doing, error.into())
    }

    fn caused(kind: FaultKind, doing: impl fmt::Display, cause: Box<Cause>) -> Self {
        let fault = Fault::new(kind, format!("{doing}: {cause}"));
        Fault { cause: Some(cause.into()), ..fault }
    }

    /// The same fault, its detail prefixed with what was being done.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.detail = format!("{doing}: {}", self.detail);
        self
    }

    /// The fault as a log has it: with the causes of its cause, so far as their texts are not
    /// there already. A client is told the detail alone.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let said = error.to_string();
            let said = harmless(&said);
            if !text.contains(said.as_ref()) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = harmless(&self.detail);
        match &self.field {
            Some(field) => write!(f, "{} ({}): {detail}", self.kind.code(), harmless(field)),
            None => write!(f, "{}: {detail}", self.kind.code()),
        }
    }
}

/// A text in which names that a tenant chose may stand, for a log or a terminal: it begins
/// no line and tells the terminal nothing.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_harmless(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    Cow::Owned(shown)
}

/// Whether a character is seen as what it is: not a control (C0, DEL and C1), no end of a
/// line or paragraph, and nothing that turns the direction of the text around it.
pub fn is_harmless(c: char) -> bool {
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2066}'..='\u{2069}');
    !(c.is_control() || matches!(c, '\u{2028}'..='\u{202e}') || turns(c))
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Turns the errors of the kernel and of libraries into faults, with what was being done.
pub trait OrFault<T> {
    /// [`FaultKind::Internal`], except `ENOSPC`, `EDQUOT`, `ENOMEM`, `EMFILE`
    /// and `ENFILE`, which are [`FaultKind::ResourcesExhausted`].
    fn or_fault(self, doing: impl fmt::Display) -> Result<T>;

    /// A fault of the given kind whatever the error.
    fn or_kind(self, kind: FaultKind, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Box<Cause>>> OrFault<T> for std::result::Result<T, E> {
    fn or_fault(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let cause = error.into();
            let kind = match errno_of(cause.as_ref()) {
                Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
                    FaultKind::ResourcesExhausted
                }
                _ => FaultKind::Internal,
            };
            Fault::caused(kind, doing, cause)
        })
    }

    fn or_kind(self, kind: FaultKind, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Fault::caused(kind, doing, error.into()))
    }
}

fn errno_of(error: &Cause) -> Option<i32> {
    if let Some(e) = error.downcast_ref::<std::io::Error>() {
        return e.raw_os_error();
    }
    if let Some(e) = error.downcast_ref::<nix::errno::Errno>() {
        return Some(*e as i32);
    }
    error.downcast_ref::<rustix::io::Errno>().map(|e| e.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_statuses_are_errors() {
        let codes: HashSet<_> = FaultKind::ALL.iter().map(|k| k.code()).collect();
        assert_eq!(codes.len(), FaultKind::ALL.len());
        for kind in FaultKind::ALL {
            assert!((400..600).contains(&kind.status()), "{}", kind.code());
        }
    }

    #[test]
    fn a_full_disk_is_an_exhausted_resource() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let fault = Err::<(), _>(full).or_fault("writing the record").unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted);
        let fault = Err::<(), _>(nix::errno::Errno::EPERM).or_fault("mounting").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Internal);
    }

    #[test]
    fn a_name_forges_no_line_and_tells_a_terminal_nothing() {
        let name = "x\n2026-01-01 INFO forged\u{1b}[2J\r\u{9b}31m größe";
        let fault = Fault::new(FaultKind::RuntimeFailed, name);
        let shown = "runtime-failed: x\\n2026-01-01 INFO forged\\u{1b}[2J\\r\\u{9b}31m größe";
        assert_eq!(fault.to_string(), shown);
        assert_eq!(Fault::internal("running", name).in_full().lines().count(), 1);
        assert_eq!(harmless("größe"), "größe");
        assert_eq!(harmless("a\u{202e}gpj.exe\u{2069}"), "a\\u{202e}gpj.exe\\u{2069}");
    }

    #[test]
    fn a_log_shows_the_whole_chain_and_nothing_twice() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the connection broke")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let outer = Outer(std::io::Error::from_raw_os_error(libc::ECONNRESET));
        let fault = Err::<(), _>(outer).or_fault("reading").unwrap_err().context("importing");
        assert_eq!(fault.detail, "importing: reading: the connection broke");
        let full = "internal: importing: reading: the connection broke: \
                    Connection reset by peer (os error 104)";
        assert_eq!(fault.clone().in_full(), full);
        assert!(fault.source().unwrap().downcast_ref::<Outer>().is_some());

        let flat = Fault::internal("looking", "it is not there");
        assert_eq!(flat.in_full(), "internal: looking: it is not there");
        let bare = Fault::invalid("name", "must not be empty");
        assert_eq!(bare.in_full(), "invalid-input (name): must not be empty");
        assert!(bare.source().is_none());
    }
}
