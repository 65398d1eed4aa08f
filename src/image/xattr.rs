//! Which extended attributes of an image are kept, and in which form.

use super::tar_reader::printable;
use crate::fault::{Fault, FaultKind, Result};

/// Ids that an instance has; an image may not name others.
pub const IDS: u64 = 65_536;

/// The attribute to set for one in the archive; `None` for one that is left out.
///
/// Kept: `user.*`, file capabilities and POSIX access lists. Left out, because
/// they belong to the host that wrote them and mean nothing inside a user
/// namespace: labels and hashes of other security modules, `system.*` of other
/// file systems, `trusted.*`. Refused: overlayfs's own, which would change
/// how the layers are stacked.
pub fn kept(name: &[u8], value: &[u8], path: &[u8]) -> Result<Option<Vec<u8>>> {
    let refuse = |why: &str| {
        Fault::new(
            FaultKind::ImageUnacceptable,
            format!("{}: the extended attribute {} {why}", printable(path), printable(name)),
        )
    };
    if name.contains(&0) || name.len() > 255 || value.len() > 65_536 {
        return Err(refuse("is longer than Linux takes"));
    }
    match name {
        b"security.capability" => {
            capability(value).map(Some).ok_or_else(|| refuse("is no file capability"))
        }
        b"system.posix_acl_access" | b"system.posix_acl_default" => {
            if acl_is_good(value) {
                Ok(Some(value.to_vec()))
            } else {
                Err(refuse("is no access list with ids below 65536"))
            }
        }
        _ if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") => {
            Err(refuse("is overlayfs's own and may not come from an image"))
        }
        _ if name.starts_with(b"user.") && name.len() > 5 => Ok(Some(value.to_vec())),
        _ => Ok(None),
    }
}

/// A file capability in revision 2, the form that holds in whatever user
/// namespace the layer is mapped to. Revision 3 differs by the id of the
/// namespace's root where the image was made, which is nobody here.
fn capability(value: &[u8]) -> Option<Vec<u8>> {
    const REVISION_MASK: u32 = 0xff00_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    let magic = u32::from_le_bytes(*value.first_chunk()?);
    match (magic & REVISION_MASK, value.len()) {
        (REVISION_2, 20) => Some(value.to_vec()),
        (REVISION_3, 24) => {
            let magic = magic & !REVISION_MASK | REVISION_2;
            Some([&magic.to_le_bytes(), &value[4..20]].concat())
        }
        _ => None,
    }
}

/// Whether an access list in the kernel's form names only ids of an instance.
fn acl_is_good(value: &[u8]) -> bool {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let Some(entries) = value.strip_prefix(&VERSION) else { return false };
    entries.len().is_multiple_of(8)
        && entries.chunks_exact(8).all(|entry| {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            !matches!(tag, USER | GROUP) || u64::from(id) < IDS
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(magic: u32, length: usize) -> Vec<u8> {
        let mut value = magic.to_le_bytes().to_vec();
        value.resize(length, 9);
        value
    }

    fn acl(tag: u16, id: u32) -> Vec<u8> {
        [&[2, 0, 0, 0][..], &tag.to_le_bytes(), &[4, 0], &id.to_le_bytes()].concat()
    }

    #[test]
    fn what_is_kept_left_out_and_refused() {
        let keep = |name: &str, value: &[u8]| kept(name.as_bytes(), value, b"f");
        assert_eq!(keep("user.x", b"1").unwrap(), Some(b"1".to_vec()));
        for left_out in ["security.selinux", "security.ima", "trusted.x", "system.nfs4_acl", "x"] {
            assert_eq!(keep(left_out, b"1").unwrap(), None, "{left_out}");
        }
        for refused in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque"]
        {
            assert!(keep(refused, b"y").is_err(), "{refused}");
        }
        assert!(keep("user.big", &vec![0; 65_537]).is_err());
    }

    #[test]
    fn capabilities_become_revision_2() {
        let v3 = cap(0x0300_0001, 24);
        let v2 = kept(b"security.capability", &v3, b"f").unwrap().unwrap();
        assert_eq!((v2.len(), &v2[..4]), (20, &[1, 0, 0, 2][..]));
        assert_eq!(kept(b"security.capability", &v2, b"f").unwrap().unwrap(), v2);
        for bad in [cap(0x0200_0000, 19), cap(0x0300_0000, 20), cap(0x0400_0000, 20), vec![]] {
            assert!(kept(b"security.capability", &bad, b"f").is_err());
        }
    }

    #[test]
    fn access_lists_name_only_an_instances_ids() {
        let name = b"system.posix_acl_access";
        assert!(kept(name, &acl(0x02, 65_535), b"f").is_ok());
        assert!(kept(name, &acl(0x02, 65_536), b"f").is_err());
        assert!(kept(name, &acl(0x08, 70_000), b"f").is_err());
        assert!(kept(name, &acl(0x20, u32::MAX), b"f").is_ok(), "other has no id");
        assert!(kept(name, b"\x03\0\0\0", b"f").is_err());
    }
}
