//! Connections of FUSE file systems to the programs that serve them, as fusectl has them.
//!
//! A request that a server has taken is waited for even by who was killed: a server that waits
//! for itself is never gone, until its connection is ended.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::ids::IdBlock;
use super::mount::{self, Attributes};
use crate::fault::{OrFault, Result};

/// Ends the connections of all file systems that were mounted as one of these ids, and how many
/// those were: whoever waits for one of them gets an error. A kernel without FUSE has none.
pub fn abort(ids: IdBlock) -> Result<usize> {
    let doing = "ending connections of FUSE file systems";
    let control = match mount::create("fusectl", &[], Attributes::empty()) {
        Err(error) if error.errno == Errno::NODEV => return Ok(0),
        made => made.or_fault(doing)?,
    };
    let root = mount::root_of(control.as_fd())?;
    let mut ended = 0;
    for entry in Dir::read_from(&root).or_fault(doing)? {
        let entry = entry.or_fault(doing)?;
        let name = entry.file_name();
        // One that ends by itself meanwhile is all that is wanted.
        let Ok(found) = statat(&root, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if name.to_bytes().starts_with(b".") || !ids.contains(found.st_uid) {
            continue;
        }
        let file = Path::new(name.to_str().unwrap_or_default()).join("abort");
        match openat(&root, &file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => {}
            file => {
                std::fs::File::from(file.or_fault(doing)?).write_all(b"1").or_fault(doing)?;
                ended += 1;
            }
        }
    }
    Ok(ended)
}
