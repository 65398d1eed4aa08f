//! Deletions in a layer: OCI's names, and what overlayfs makes of them.
//!
//! In an archive a deletion is an empty file `.wh.NAME`, and a directory that
//! hides all of what is below it in lower layers holds `.wh..wh..opq`. In an
//! unpacked layer these are a character device 0/0 and the extended attribute
//! `trusted.overlay.opaque`. It is `trusted.`, not `user.`: the overlay is
//! mounted by the host's root in the initial user namespace, without
//! `userxattr`, and an image's own files can never carry a `trusted.` name
//! that someone inside an instance could have set.

/// The attribute that makes a directory hide what is below it.
pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Its value.
pub const OPAQUE_VALUE: &[u8] = b"y";

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
