//! Images: recognised by content, unpacked into content-addressed layers.
//!
//! ```text
//! source ─ bytes, hashed ─► tmp ─► recognise ─► jail: take the archive apart
//!                                                  │ manifest (pure)
//!                                                  ▼
//!            each layer: jail: decompress ─► hash ─► jail: unpack ─► layers/sha256/HEX
//! ```
//!
//! Images are hostile. Their bytes are hashed before they are looked at,
//! parsed only inside [`jail`], and what the jail says is checked where it
//! matters: the address of a layer is a hash that this process computed.
//! [`ImageStore`] is the door; everything behind it is synchronous.

pub mod digest;
mod fingerprint;
mod flight;
#[cfg(test)]
mod fuzz_seeds;
pub mod helper;
mod import;
pub mod init;
pub mod jail;
pub mod layer;
pub mod manifest;
pub mod merged;
pub mod recognise;
mod source;
pub mod stage;
mod store;
pub mod tar_reader;
#[cfg(test)]
pub(crate) mod testing;
mod user;
pub mod whiteout;
pub mod xattr;

pub use flight::Progress;
pub use store::ImageStore;
pub use user::{ProcessUser, resolve_user};
