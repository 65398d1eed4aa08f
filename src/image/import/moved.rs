//! A layer that another host's store sends.

use std::io::Read;
use std::sync::Arc;

use super::assembly::{Assembly, Means};
use crate::fault::{FaultKind, OrFault, Result};
use crate::image::digest::Digest;
use crate::image::space::Space;
use crate::image::unpack::TreeKind;

/// Unpacks its archive and puts it in its place. `opaque`: it hides all below it.
pub(in crate::image) fn receive_layer(
    means: Means<'_>,
    digest: &Digest,
    opaque: bool,
    archive: &mut dyn Read,
) -> Result<()> {
    let space = Arc::new(Space::new(means.room)?);
    let mut assembly = Assembly::new(means, space)?;
    let doing = "receiving a layer";
    let read = |buffer: &mut [u8]| archive.read(buffer).or_kind(FaultKind::ImageCorrupt, doing);
    let (unpacked, _) = assembly.unpack(TreeKind::Layer, read)?;
    let sealed = assembly.seal_one(unpacked, digest.clone(), opaque)?;
    assembly.put_in_place(&[sealed])
}
