//! From an image's bytes to those of the disk in it.

use std::fs::File;
use std::rc::Rc;

use super::blocks::{Blocks, FileBytes};
use super::qcow2::Qcow2;
use crate::fault::Result;
use crate::image::recognise::{self, Content, DiskFormat};

/// The bytes of an image that is a file.
pub(super) fn raw(file: File) -> Result<Rc<dyn Blocks>> {
    Ok(Rc::new(FileBytes::new(file)?))
}

/// The bytes of the disk that an image's bytes describe.
pub fn open(image: Rc<dyn Blocks>) -> Result<Rc<dyn Blocks>> {
    match content(&*image)? {
        Content::Disk(DiskFormat::Qcow2) => Ok(Rc::new(Qcow2::open(image)?)),
        _ => Ok(image),
    }
}

/// What the first bytes say.
pub(super) fn content(blocks: &dyn Blocks) -> Result<Content> {
    let mut head =
        vec![0; recognise::HEAD.min(usize::try_from(blocks.size()).unwrap_or(usize::MAX))];
    blocks.read_at(0, &mut head)?;
    Ok(recognise::content(&head))
}
