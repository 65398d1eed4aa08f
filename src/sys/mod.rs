//! The kernel's interfaces that no library wraps well, and the only `unsafe`.

pub mod copy;
pub mod fs;
pub mod ids;
pub mod loopdev;
pub mod mount;
pub mod ns;
pub mod process;
pub mod pty;
pub mod scm;
pub mod thread;
