//! Everything durable: where it lies, and how it is written so that a crash
//! at any moment leaves the old or the new, never a half. And files that need not
//! outlive the host's run: [`volatile`].

pub mod atomic;
pub mod layout;
pub mod room;
pub mod volatile;
