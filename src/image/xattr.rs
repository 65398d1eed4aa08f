//! Which extended attributes of an image are kept, and in which form.

use super::acl::{ACCESS, AccessList, DEFAULT};
use super::refusal::printable;
use super::whiteout;
use crate::fault::{Fault, FaultKind, Result};

/// Whom files of other ids belong to: `nobody` and `nogroup`, as Linux shows an id that a
/// user namespace has not.
pub const NOBODY: u32 = 65_534;

/// The attribute to set for one in the archive; `None` for one that is left out.
///
/// Kept: `user.*`, file capabilities, POSIX access lists, and overlayfs's own, which
/// [`whiteout`] says how to store. Left out, because they belong to the host that
/// wrote them and mean nothing inside a user namespace: labels and hashes of other
/// security modules, `system.*` of other file systems, all else of `trusted.*`.
pub fn kept(name: &[u8], value: &[u8], path: &[u8], ids: u64) -> Result<Option<Vec<u8>>> {
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
        ACCESS | DEFAULT => {
            let list = AccessList::from_kernel(value).ok_or_else(|| refuse("is no access list"))?;
            match list.to_kernel(ids) {
                _ if list.is_empty() => Ok(None),
                Some(value) => Ok(Some(value)),
                None => Err(refuse("is no access list that Linux takes")),
            }
        }
        _ if name.starts_with(whiteout::OWN) => {
            let fits = name.len() > whiteout::OWN.len() && whiteout::as_data(name).len() <= 255;
            Ok(fits.then(|| value.to_vec()))
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

#[cfg(test)]
mod tests {
    const IDS: u64 = 65_536;
    use super::*;

    fn cap(magic: u32, length: usize) -> Vec<u8> {
        let mut value = magic.to_le_bytes().to_vec();
        value.resize(length, 9);
        value
    }

    #[test]
    fn what_is_kept_left_out_and_refused() {
        let keep = |name: &str, value: &[u8]| kept(name.as_bytes(), value, b"f", IDS);
        assert_eq!(keep("user.x", b"1").unwrap(), Some(b"1".to_vec()));
        for left_out in ["security.selinux", "security.ima", "trusted.x", "system.nfs4_acl", "x"] {
            assert_eq!(keep(left_out, b"1").unwrap(), None, "{left_out}");
        }
        for data in ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque"] {
            assert_eq!(keep(data, b"y").unwrap(), Some(b"y".to_vec()), "{data}");
        }
        assert_eq!(keep("trusted.overlay.", b"y").unwrap(), None);
        assert!(keep("user.big", &vec![0; 65_537]).is_err());
    }

    #[test]
    fn capabilities_become_revision_2() {
        let v3 = cap(0x0300_0001, 24);
        let v2 = kept(b"security.capability", &v3, b"f", IDS).unwrap().unwrap();
        assert_eq!((v2.len(), &v2[..4]), (20, &[1, 0, 0, 2][..]));
        assert_eq!(kept(b"security.capability", &v2, b"f", IDS).unwrap().unwrap(), v2);
        for bad in [cap(0x0200_0000, 19), cap(0x0300_0000, 20), cap(0x0400_0000, 20), vec![]] {
            assert!(kept(b"security.capability", &bad, b"f", IDS).is_err());
        }
    }

    #[test]
    fn access_lists_are_whole() {
        let entry = |tag: u8, id: u32| [&[tag, 0, 4, 0][..], &id.to_le_bytes()].concat();
        let list = |named: &[Vec<u8>]| {
            let rest = [0x01, 0x04, 0x10, 0x20].map(|tag| entry(tag, u32::MAX)).concat();
            [&[2, 0, 0, 0][..], &rest, &named.concat()].concat()
        };
        let keep = |value: &[u8]| kept(ACCESS, value, b"f", IDS);
        let plain = list(&[]);
        assert_eq!(keep(&plain).unwrap(), Some(plain.clone()));
        assert_eq!(keep(&list(&[entry(2, 65_535)])).unwrap().map(|value| value.len()), Some(44));
        assert_eq!(keep(&list(&[entry(8, 65_536)])).unwrap(), Some(plain));
        assert_eq!(keep(b"\x02\0\0\0").unwrap(), None);
        assert!(keep(&[&[2, 0, 0, 0][..], &entry(2, 7)].concat()).is_err());
        assert!(keep(b"\x03\0\0\0").is_err());
    }
}
