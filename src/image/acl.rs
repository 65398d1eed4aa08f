//! POSIX access lists: as archives write them, and as the kernel takes them.
//!
//! GNU tar, star and bsdtar write text: `user::rw-,user:adm:r--:4,group::r--`,
//! with commas or line ends between the entries, names or ids in the second
//! field, and with some of them the id as a fourth. The kernel takes and gives
//! the binary form of the attributes `system.posix_acl_*`.

use super::refusal::{printable, unacceptable};
use crate::fault::Result;

/// The attribute that holds who may do what with a file.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory that new files in it get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Most entries of one list: those of 64 KiB, the most that the kernel takes.
const MOST: usize = 8191;
const VERSION: [u8; 4] = [2, 0, 0, 0];
/// The id in an entry that has none.
const NO_ID: u32 = u32::MAX;

/// An access list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessList(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    who: Who,
    /// Read 4, write 2, execute 1.
    permissions: u16,
}

/// Whom an entry is about, in the order and with the numbers of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwningGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Id(u64),
    Name(Vec<u8>),
}

/// Finds the ids of names.
pub trait Names {
    /// The id of a user.
    fn user(&mut self, name: &[u8]) -> Result<Option<u64>>;
    /// The id of a group.
    fn group(&mut self, name: &[u8]) -> Result<Option<u64>>;
}

impl AccessList {
    /// Reads the text of an archive; `None` when it is no access list.
    pub fn from_text(text: &[u8]) -> Option<AccessList> {
        let lines = text.split(|byte| matches!(byte, b',' | b'\n'));
        let mut entries = Vec::new();
        for line in lines {
            // What the list would effectively allow may follow as a comment.
            let line = line.split(|byte| *byte == b'#').next()?.trim_ascii();
            if line.is_empty() {
                continue;
            }
            if entries.len() == MOST {
                return None;
            }
            entries.push(Entry::from_text(line)?);
        }
        Some(AccessList(entries))
    }

    /// Reads the kernel's form; `None` when it is none.
    pub fn from_kernel(value: &[u8]) -> Option<AccessList> {
        let entries = value.strip_prefix(&VERSION)?;
        if !entries.len().is_multiple_of(8) || entries.len() / 8 > MOST {
            return None;
        }
        entries.chunks_exact(8).map(Entry::from_kernel).collect::<Option<_>>().map(AccessList)
    }

    /// Whether it has no entries, which of a directory's default means that there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has names of which no id is known.
    pub fn has_names(&self) -> bool {
        self.0.iter().any(|entry| matches!(entry.who, Who::Name(_)))
    }

    /// Bytes that it takes in memory, about.
    pub fn weight(&self) -> usize {
        let name = |entry: &Entry| if let Who::Name(name) = &entry.who { name.len() } else { 0 };
        self.0.iter().map(|entry| size_of::<Entry>() + name(entry)).sum()
    }

    /// Replaces names by ids.
    pub fn look_up(&mut self, names: &mut dyn Names) -> Result<()> {
        for entry in &mut self.0 {
            let Who::Name(name) = &entry.who else { continue };
            let (what, file, id) = match entry.tag {
                Tag::User => ("user", "passwd", names.user(name)?),
                _ => ("group", "group", names.group(name)?),
            };
            let Some(id) = id else {
                return Err(unacceptable(format!(
                    "an access list names the {what} {}, of which its /etc/{file} knows no id; \
                     write the archive with `--numeric-owner`",
                    printable(name)
                )));
            };
            entry.who = Who::Id(id);
        }
        Ok(())
    }

    /// The kernel's form. Entries for ids from `ids` on, which no instance has, are left out:
    /// nobody there is meant by them. `None` for a list that the kernel would not take.
    pub fn to_kernel(&self, ids: u64) -> Option<Vec<u8>> {
        let mut entries = Vec::new();
        for entry in &self.0 {
            match entry.who {
                Who::Nobody => entries.push((entry.tag, NO_ID, entry.permissions)),
                Who::Id(id) if id >= ids || u32::try_from(id).is_err() => {}
                Who::Id(id) => entries.push((entry.tag, id as u32, entry.permissions)),
                Who::Name(_) => return None,
            }
        }
        entries.sort_unstable_by_key(|(tag, id, _)| (*tag, *id));
        let twice = entries.windows(2).any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
        let has = |tag| entries.iter().any(|(other, ..)| *other == tag);
        let named = has(Tag::User) || has(Tag::Group);
        let whole = has(Tag::Owner) && has(Tag::OwningGroup) && has(Tag::Other);
        if twice || !whole || named && !has(Tag::Mask) {
            return None;
        }
        let mut value = VERSION.to_vec();
        for (tag, id, permissions) in entries {
            value.extend((tag as u16).to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        Some(value)
    }

    /// The text that GNU tar and bsdtar read, with ids for names.
    pub fn to_text(&self) -> Vec<u8> {
        let mut entries: Vec<_> = self.0.iter().collect();
        entries.sort_by_key(|entry| entry.tag);
        let entries: Vec<_> = entries.into_iter().map(Entry::to_text).collect();
        entries.join(&b',')
    }
}

impl Entry {
    fn from_text(line: &[u8]) -> Option<Entry> {
        let fields: Vec<_> = line.split(|byte| *byte == b':').map(<[u8]>::trim_ascii).collect();
        let (tag, name, permissions, id) = match fields.as_slice() {
            // acl(5) lets these two go without the empty field.
            [tag @ (b"mask" | b"m" | b"other" | b"o"), permissions] => {
                (*tag, &b""[..], *permissions, None)
            }
            [tag, name, permissions] => (*tag, *name, *permissions, None),
            [tag, name, permissions, id] => (*tag, *name, *permissions, Some(*id)),
            _ => return None,
        };
        let id = id.filter(|id| !id.is_empty()).map(number);
        let who = match (name, id) {
            (_, Some(None)) => return None,
            (b"", None) => Who::Nobody,
            (_, Some(Some(id))) => Who::Id(id),
            (name, None) => number(name).map_or_else(|| Who::Name(name.to_vec()), Who::Id),
        };
        let tag = match (tag, who == Who::Nobody) {
            (b"user" | b"u", true) => Tag::Owner,
            (b"user" | b"u", false) => Tag::User,
            (b"group" | b"g", true) => Tag::OwningGroup,
            (b"group" | b"g", false) => Tag::Group,
            (b"mask" | b"m", true) => Tag::Mask,
            (b"other" | b"o", true) => Tag::Other,
            _ => return None,
        };
        let mut bits = 0;
        for letter in permissions {
            bits |= match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return None,
            };
        }
        Some(Entry { tag, who, permissions: bits })
    }

    fn from_kernel(entry: &[u8]) -> Option<Entry> {
        let tag = match u16::from_le_bytes([entry[0], entry[1]]) {
            0x01 => Tag::Owner,
            0x02 => Tag::User,
            0x04 => Tag::OwningGroup,
            0x08 => Tag::Group,
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return None,
        };
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let named = matches!(tag, Tag::User | Tag::Group);
        let who = if named { Who::Id(id.into()) } else { Who::Nobody };
        (permissions <= 7).then_some(Entry { tag, who, permissions })
    }

    fn to_text(&self) -> Vec<u8> {
        let tag = match self.tag {
            Tag::Owner | Tag::User => "user",
            Tag::OwningGroup | Tag::Group => "group",
            Tag::Mask => "mask",
            Tag::Other => "other",
        };
        let who = match &self.who {
            Who::Nobody => Vec::new(),
            Who::Id(id) => id.to_string().into_bytes(),
            Who::Name(name) => name.clone(),
        };
        let letter = |bit, letter| if self.permissions & bit == 0 { b'-' } else { letter };
        let permissions = [letter(4, b'r'), letter(2, b'w'), letter(1, b'x')];
        [tag.as_bytes(), b":", &who, b":", &permissions].concat()
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    const IDS: u64 = 65_536;
    use super::*;

    struct Known;

    impl Names for Known {
        fn user(&mut self, name: &[u8]) -> Result<Option<u64>> {
            Ok((name == b"games").then_some(5))
        }
        fn group(&mut self, name: &[u8]) -> Result<Option<u64>> {
            Ok((name == b"adm").then_some(4))
        }
    }

    fn kernel(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |(tag, bits, id): &(u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [VERSION.to_vec(), entries.iter().flat_map(entry).collect()].concat()
    }

    const NONE: u32 = u32::MAX;

    #[test]
    fn the_texts_of_three_tars_are_one_list() {
        let wanted = kernel(&[
            (1, 6, NONE),
            (2, 4, 5),
            (4, 5, NONE),
            (8, 4, 4),
            (0x10, 5, NONE),
            (0x20, 0, NONE),
        ]);
        for text in [
            // GNU tar, GNU tar with `--numeric-owner`, bsdtar, and what a person writes.
            &b"user::rw-\nuser:games:r--\ngroup::r-x\ngroup:adm:r--\nmask::r-x\nother::---\n"[..],
            b"user::rw-\nuser:5:r--\ngroup::r-x\ngroup:4:r--\nmask::r-x\nother::---\n",
            b"user::rw-,group::r-x,other::---,user:games:r--:5,group:adm:r--:4,mask::r-x",
            b"u::rw-, user:games:r--\t#effective:r--, g::r-x, g:adm:r--, m:r-x, o:---",
        ] {
            let mut list = AccessList::from_text(text).unwrap();
            list.look_up(&mut Known).unwrap();
            assert_eq!(list.to_kernel(IDS).unwrap(), wanted, "{}", text.escape_ascii());
            let again = AccessList::from_kernel(&wanted).unwrap();
            let text = again.to_text();
            assert_eq!(AccessList::from_text(&text).unwrap().to_kernel(IDS).unwrap(), wanted);
        }
        let mut unknown = AccessList::from_text(b"user:absent:rwx").unwrap();
        let fault = unknown.look_up(&mut Known).unwrap_err();
        assert!(fault.detail.contains("absent") && fault.detail.contains("passwd"), "{fault}");
    }

    #[test]
    fn what_is_no_list_is_told() {
        for bad in [
            &b"user"[..],
            b"user::rwz",
            b"nobody::rwx",
            b"mask:x:rwx",
            b"user:a:rwx:b",
            b"user:a:rwx:1:2",
        ] {
            assert!(AccessList::from_text(bad).is_none(), "{}", bad.escape_ascii());
        }
        for bad in [&b"user::rwx"[..], b"u::r--,g::r--,o::r--,u:7:r--", b"u::r,u::r,g::r,o::r"] {
            let list = AccessList::from_text(bad).unwrap();
            assert!(list.to_kernel(IDS).is_none(), "{}", bad.escape_ascii());
        }
        for bad in [kernel(&[(3, 7, 0)]), kernel(&[(1, 8, 0)]), vec![2, 0, 0, 0, 1], vec![]] {
            assert!(AccessList::from_kernel(&bad).is_none());
        }
    }

    #[test]
    fn entries_for_ids_that_no_instance_has_are_left_out() {
        let rest = [(1, 6, NONE), (4, 5, NONE), (0x10, 5, NONE), (0x20, 0, NONE)];
        let list = kernel(&[rest[0], (2, 4, 70_000), rest[1], rest[2], rest[3]]);
        let kept = AccessList::from_kernel(&list).unwrap().to_kernel(IDS).unwrap();
        assert_eq!(kept, kernel(&rest));
    }
}
