//! Deletions in a layer: OCI's names, and what overlayfs makes of them.
//!
//! In a layer's archive a deletion is an empty file `.wh.NAME`, and a directory that
//! hides all of what is below it in lower layers holds `.wh..wh..opq`. In an
//! unpacked layer these are a character device 0/0 and the extended attribute
//! `trusted.overlay.opaque`. It is `trusted.`, not `user.`: the overlay is
//! mounted by the host's root in the initial user namespace, without
//! `userxattr`, and nobody inside an instance can set a `trusted.` name.
//!
//! A tree in which Docker or podman kept layers of its own holds such devices
//! and attributes as data. They must not act in the overlay of an instance, so
//! an unpacked layer has them in another form:
//!
//! * `trusted.overlay.NAME` as `trusted.overlay.overlay.NAME`, which is
//!   overlayfs's own way to say so (Linux 6.7 and later show it under its first
//!   name again; earlier kernels hide it);
//! * a device 0/0 as an empty file with [`DEVICE_XATTR`], for no overlay can
//!   show such a device;
//! * `user.overlay.NAME` as it is, for it means nothing without `userxattr`.

/// The attribute that makes a directory hide what is below it.
pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Its value.
pub const OPAQUE_VALUE: &[u8] = b"y";
/// The attribute, empty, that makes overlayfs look for deletions in a directory that no
/// other layer has. Without it, they are listed there.
pub const ORIGIN_XATTR: &str = "trusted.overlay.origin";
/// The attribute of a directory of an upper directory, by which overlayfs has renamed it: it is the
/// name that lower layers have for it in the same directory, or its path there, with a slash first.
pub const REDIRECT_XATTR: &str = "trusted.overlay.redirect";
/// What the names of overlayfs's own attributes begin with.
pub const OWN: &[u8] = b"trusted.overlay.";
/// The same of those that are data.
const DATA: &[u8] = b"trusted.overlay.overlay.";
/// The name, as data's is, of the attribute of an empty file that stands for a character device 0/0.
pub const DEVICE_MARK: &str = "trusted.overlay.whiteout";
/// The same as an unpacked layer has it ([`as_data`]).
pub const DEVICE_XATTR: &str = "trusted.overlay.overlay.whiteout";
/// Its value.
pub const DEVICE_VALUE: &[u8] = b"0/0";

/// The name under which an unpacked layer has one of overlayfs's own attributes as data.
pub fn as_data(name: &[u8]) -> Vec<u8> {
    [DATA, name.strip_prefix(OWN).unwrap_or(name)].concat()
}

/// The attribute that this name in an unpacked layer stands for, if it is data.
pub fn from_data(name: &[u8]) -> Option<Vec<u8>> {
    name.strip_prefix(DATA).map(|rest| [OWN, rest].concat())
}

/// What a file name means in a layer's archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// Just a name.
    Plain,
    /// The name deletes this entry of lower layers.
    Whiteout(&'a [u8]),
    /// The directory hides all of lower layers.
    Opaque,
    /// A book-keeping file of the aufs storage driver; of no meaning here.
    Bookkeeping,
    /// A deletion of nothing, `.` or `..`.
    Invalid,
}

/// Reads a file name.
pub fn meaning(name: &[u8]) -> Meaning<'_> {
    match name.strip_prefix(b".wh.") {
        None => Meaning::Plain,
        Some(b".wh..opq") => Meaning::Opaque,
        Some(b"" | b"." | b"..") => Meaning::Invalid,
        Some(rest) if rest.starts_with(b".wh.") => Meaning::Bookkeeping,
        Some(rest) => Meaning::Whiteout(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            (&b"file"[..], Meaning::Plain),
            (b"wh.file", Meaning::Plain),
            (b".wh.file", Meaning::Whiteout(b"file")),
            (b".wh..hidden", Meaning::Whiteout(b".hidden")),
            (b".wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.plnk", Meaning::Bookkeeping),
            (b".wh.", Meaning::Invalid),
            (b".wh..", Meaning::Invalid),
            (b".wh...", Meaning::Invalid),
        ] {
            assert_eq!(meaning(name), expected, "{}", name.escape_ascii());
        }
    }
}
