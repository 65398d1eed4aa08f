//! Images: recognised by content, unpacked into content-addressed layers.
//!
//! ```text
//! source ─► hash ─► jail: decompress ─► recognise
//!   a root file system ─────────────────────► hash ─► jail: unpack ─► layers/sha256/HEX
//!   an image archive ─► tmp ─► jail: take it apart
//!                                │ manifest (pure)
//!                                ▼
//!          each layer ─► jail: decompress ──► hash ─► jail: unpack ─► layers/sha256/HEX
//!   a disk ─► tmp ─► jail: read as archive ─► hash ─► jail: unpack ─► layers/sha256/HEX
//!     and what is outside its root file system is kept ([`disk::frame`])
//! ```
//!
//! Images are hostile. Their bytes are parsed only inside [`jail`], and what
//! the jail says is checked where it matters: the address of a layer is a hash
//! that this process computed. What they become lies aside until all of them
//! came with the hash that was asked for.
//! [`ImageStore`] is the door; everything behind it is synchronous.

pub(crate) mod acl;
#[cfg(feature = "service")]
mod arrival;
#[cfg(feature = "service")]
mod catalogue;
pub mod digest;
pub mod disk;
#[cfg(feature = "service")]
mod files;
#[cfg(feature = "service")]
mod fingerprint;
#[cfg(feature = "service")]
mod flight;
#[cfg(test)]
mod fuzz_seeds;
#[cfg(feature = "service")]
mod import;
pub mod init;
pub mod jail;
#[cfg(feature = "service")]
mod kept_disk;
#[cfg(feature = "service")]
mod layers;
#[cfg(feature = "service")]
mod machine;
pub mod manifest;
mod pax;
#[cfg(feature = "service")]
mod progress;
pub mod recognise;
#[cfg(feature = "service")]
mod records;
pub mod refusal;
#[cfg(feature = "service")]
mod source;
#[cfg(feature = "service")]
mod space;
pub(crate) mod sparse;
pub mod stacked;
pub mod stage;
#[cfg(feature = "service")]
mod store;
#[cfg(feature = "service")]
mod supply;
pub mod tar_reader;
pub mod tar_writer;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "service")]
mod transfer;
pub mod unpack;
#[cfg(feature = "service")]
mod user;
pub mod whiteout;
#[cfg(feature = "service")]
mod workspace;
pub mod xattr;

#[cfg(feature = "service")]
pub use kept_disk::KeptDisk;
#[cfg(feature = "service")]
pub use progress::{Progress, Watcher};
#[cfg(feature = "service")]
pub use store::ImageStore;
#[cfg(feature = "service")]
pub use transfer::{ImageExport, Kept, Lacking};
#[cfg(feature = "service")]
pub use user::resolve_user;
#[cfg(feature = "service")]
pub use workspace::Workspace;
