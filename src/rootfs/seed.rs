//! What makes one instance of an image differ from the next: its names, its
//! resolver, its machine id, and the files that came with the request.
//!
//! The tree is the image's, and images are hostile: every path is resolved
//! with the tree as root, and files are put in place by a rename, so that no
//! link leads a write out and nothing of the image is opened for writing.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use uuid::Uuid;

use super::written::{SealKey, WrittenFile, decode, field};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::fs::{make_dirs_in_root, open_in_root, replace_file};
use crate::sys::ids::IdBlock;
use crate::sys::thread;
use crate::types::{Dns, InjectedFile};

/// What to write.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Host name, short or with a domain.
    pub hostname: String,
    /// For `/etc/resolv.conf`; without, the image's own stays.
    pub dns: Option<Dns>,
    /// For `/etc/machine-id`.
    pub machine_id: Uuid,
    /// Names of interfaces besides `eth*` for [`NETWORKD_FILE`]; `None` where the
    /// image does not start systemd.
    pub networkd: Option<Vec<String>>,
    /// Files of the request.
    pub files: Vec<InjectedFile>,
    /// Nothing is written at later boots: the instance's owner may have
    /// changed all of it since.
    pub first_boot: bool,
}

/// What `systemd-networkd` in an instance goes by for an interface that no other
/// file there is for. netplan, on Ubuntu's and Debian's images, writes files that
/// match by the permanent MAC address, which a veth has not: without this, such
/// an interface is never "configured" and a boot waits two minutes for it.
/// Last of all names, so that every file of the image's or its owner's goes first.
const NETWORKD_FILE: &str = "/etc/systemd/network/99-berth.network";

/// What cloud-init in an instance goes by unless another file of the image's or its owner's says
/// otherwise: those go before this one. It finds the root mounted from a disk, as on a machine, by
/// an overlay, and would tell a warning of a file system that it cannot grow.
const CLOUD_FILE: &str = "/etc/cloud/cloud.cfg.d/00-berth.cfg";
/// See [`CLOUD_FILE`].
const CLOUD: &str =
    "# Of the host: the root file system has its disk's size.\nresize_rootfs: false\n";

/// What a running instance has mounts of its own on: a file below would never be seen.
const MOUNTED: [&str; 3] = ["dev", "proc", "sys"];

impl Seed {
    /// The files that berth itself wants there: path, content, mode.
    fn own_files(&self) -> Vec<(&'static str, String, u32)> {
        let mut files = vec![
            ("/etc/hostname", format!("{}\n", self.hostname), 0o644),
            ("/etc/hosts", hosts(&self.hostname), 0o644),
            ("/etc/machine-id", format!("{}\n", self.machine_id.simple()), 0o444),
        ];
        if let Some(dns) = &self.dns {
            files.push(("/etc/resolv.conf", resolv_conf(dns), 0o644));
        }
        if let Some(names) = &self.networkd {
            files.push((NETWORKD_FILE, network(names), 0o644));
        }
        files.push((CLOUD_FILE, CLOUD.into(), 0o644));
        files
    }

    /// Paths (without the leading slash) of what is below `upper` still as it
    /// was written, of berth's own files and of the request's: it belongs to the
    /// instance and not to an image of it.
    pub fn untouched(
        &self,
        upper: BorrowedFd<'_>,
        written: &[WrittenFile],
        key: &SealKey,
    ) -> BTreeSet<Vec<u8>> {
        let own = self.own_files().into_iter().filter(|(path, content, _)| {
            open(upper, path).and_then(|file| holds(&file, content.as_bytes())).unwrap_or(false)
        });
        let written = written.iter().filter(|file| {
            open(upper, &file.path).and_then(|found| file.is_in(&found, key)).unwrap_or(false)
        });
        let own = own.map(|(path, ..)| path);
        own.chain(written.map(|file| file.path.as_str()))
            .map(|path| path.trim_start_matches('/').as_bytes().to_vec())
            .collect()
    }
}

/// A regular file below `root`, no link on the way.
fn open(root: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = path.trim_start_matches('/');
    let file = File::from(openat2(root, path, flags, Mode::empty(), resolve)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Whether the file has this content and no other.
fn holds(mut file: &File, content: &[u8]) -> io::Result<bool> {
    if file.metadata()?.len() != content.len() as u64 {
        return Ok(false);
    }
    let mut found = vec![0; content.len()];
    file.read_exact(&mut found)?;
    Ok(found == content)
}

/// Checks the files of a request before anything is made: paths, modes,
/// content, and that together they fit into a disk of `limit` bytes.
pub fn check_files(files: &[InjectedFile], limit: u64) -> Result<()> {
    let mut seen = HashSet::new();
    let mut total = 0;
    for (index, file) in files.iter().enumerate() {
        check_path(index, &file.path)?;
        if !seen.insert(&file.path) {
            return Err(Fault::invalid(field(index, "path"), "is given twice; leave one out"));
        }
        if file.mode > 0o7777 {
            return Err(Fault::invalid(field(index, "mode"), "must be at most 4095 (0o7777)"));
        }
        total += decode(index, file)?.len() as u64;
        if total > limit {
            return Err(Fault::invalid(
                field(index, "content"),
                format!("the files together have more than the disk's {limit} bytes"),
            ));
        }
    }
    Ok(())
}

fn check_path(index: usize, path: &str) -> Result<()> {
    let bad = |detail: &str| Err(Fault::invalid(field(index, "path"), detail));
    let Some(names) = path.strip_prefix('/') else {
        return bad("must be absolute, e.g. /etc/motd");
    };
    if path.len() > 4095 || names.split('/').any(|name| name.len() > 255) {
        return bad("must have at most 4,095 bytes, and each name in it at most 255");
    }
    if names.split('/').any(|name| matches!(name, "" | "." | "..")) || path.contains('\0') {
        return bad("must name a file, without empty names, \".\", \"..\" or NUL in it");
    }
    if names.split('/').next().is_some_and(|first| MOUNTED.contains(&first)) {
        return bad("must not be in /dev, /proc or /sys, which the kernel fills");
    }
    Ok(())
}

/// Writes `seed` into the tree mounted at `root`, as the root of `block`.
pub(super) fn write(seed: &Seed, root: &Path, block: IdBlock) -> Result<()> {
    if !seed.first_boot {
        return Ok(());
    }
    check_hostname(&seed.hostname)?;
    check_files(&seed.files, u64::MAX)?;
    let tree = Tree {
        root: File::open(root).or_fault(format_args!("opening {}", root.display()))?,
        owner: (block.first, block.first),
    };
    thread::as_ids(block, || {
        for (path, content, mode) in seed.own_files() {
            if path != CLOUD_FILE || tree.has_place_for(path) {
                tree.put_own(path, content.as_bytes(), mode)?;
            }
        }
        for (index, file) in seed.files.iter().enumerate() {
            let content = decode(index, file)?;
            tree.put(&file.path, &content, file.mode).map_err(|e| injected_fault(index, e))?;
        }
        Ok(())
    })
}

/// The manager checks names; here only what would break the files' syntax.
fn check_hostname(name: &str) -> Result<()> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(Fault::invalid("hostname", "must be a host name such as web-1.example.org"));
    }
    Ok(())
}

struct Tree {
    root: File,
    owner: (u32, u32),
}

impl Tree {
    fn put(&self, path: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = make_dirs_in_root(self.root.as_fd(), parent, self.owner)?;
        replace_file(parent.as_fd(), name, content, self.owner, mode)
    }

    /// Whether its directory is there.
    fn has_place_for(&self, path: &str) -> bool {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        open_in_root(self.root.as_fd(), parent, flags, Mode::empty()).is_ok()
    }

    /// A file that berth itself wants there.
    fn put_own(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        self.put(path, content, mode).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => disk_full(path),
            Some(libc::EEXIST | libc::EISDIR | libc::ELOOP | libc::ENOENT | libc::ENOTDIR) => {
                Fault::new(
                    FaultKind::ImageUnacceptable,
                    format!("the image has something in the place of {path}: {e}"),
                )
            }
            _ => Fault::internal(format_args!("writing {path} inside the instance"), e),
        })
    }
}

fn injected_fault(index: usize, error: io::Error) -> Fault {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => disk_full(&field(index, "content")),
        Some(libc::EISDIR) => {
            Fault::invalid(field(index, "path"), "is a directory in the image; name a file")
        }
        Some(libc::EEXIST | libc::ELOOP | libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG) => {
            let detail = format!("cannot be made in this image: {error}; choose another path");
            Fault::invalid(field(index, "path"), detail)
        }
        _ => Fault::internal(format_args!("writing {}", field(index, "path")), error),
    }
}

fn disk_full(what: &str) -> Fault {
    let detail = format!("the disk is full at {what}; take a flavor with a larger root_gb");
    Fault::new(FaultKind::FlavorDiskTooSmall, detail)
}

fn hosts(hostname: &str) -> String {
    let own = match hostname.split_once('.') {
        Some((short, _)) => format!("{hostname} {short}"),
        None => hostname.to_owned(),
    };
    format!(
        "127.0.0.1 localhost\n\
         127.0.1.1 {own}\n\
         \n\
         ::1 localhost ip6-localhost ip6-loopback\n\
         ff02::1 ip6-allnodes\n\
         ff02::2 ip6-allrouters\n"
    )
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    for server in &dns.nameservers {
        // Writing to a String does not fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    text
}

/// Addresses and routes are set before the init starts, and stay.
fn network(names: &[String]) -> String {
    let own = names.iter().filter(|name| !name.starts_with("eth"));
    let names: String = own.map(|name| format!(" {name}")).collect();
    format!(
        "# Of the host: for interfaces that no other file here is for. Addresses are set.\n\
         [Match]\n\
         Name=eth*{names}\n\
         Kind=veth\n\
         \n\
         [Network]\n\
         KeepConfiguration=yes\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> InjectedFile {
        InjectedFile { path: path.into(), content: "aGk=".into(), mode: 0o644 }
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        for path in
            ["etc/x", "", "/", "/etc/", "/etc//x", "/../x", "/a/../x", "/a/./x", "/a/..", "/a\0b"]
        {
            let fault = check_files(&[file("/ok"), file(path)], 100).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("files[1].path"), "{path:?}");
        }
        let long = format!("/{}", "x".repeat(256));
        assert!(check_files(&[file(&long)], 100).is_err());
        let twice = check_files(&[file("/a"), file("/a")], 100).unwrap_err();
        assert_eq!(twice.field.as_deref(), Some("files[1].path"));
        let mode = InjectedFile { mode: 0o10000, ..file("/a") };
        assert_eq!(check_files(&[mode], 9).unwrap_err().field.as_deref(), Some("files[0].mode"));
        let content = InjectedFile { content: "no base64".into(), ..file("/a") };
        let fault = check_files(&[content], 9).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("files[0].content"));
    }

    #[test]
    fn files_must_fit_together() {
        check_files(&[file("/a"), file("/b")], 4).unwrap();
        let fault = check_files(&[file("/a"), file("/b")], 3).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("files[1].content"));
    }

    #[test]
    fn host_names_cannot_add_lines() {
        for bad in ["", "a b", "a\nb", "a#"] {
            assert!(check_hostname(bad).is_err(), "{bad:?}");
        }
        assert!(hosts("a.b.c").contains("127.0.1.1 a.b.c a\n"));
        assert!(hosts("a").contains("127.0.1.1 a\n"));
    }

    #[test]
    fn network_text() {
        let text = network(&["eth0".into(), "storage0".into()]);
        assert!(text.contains("\nName=eth* storage0\nKind=veth\n"), "{text}");
    }

    #[test]
    fn resolver_text() {
        let dns = Dns {
            nameservers: vec!["10.0.0.1".into(), "fd00::1".into()],
            search: vec!["a.org".into(), "b.org".into()],
        };
        let text = resolv_conf(&dns);
        assert_eq!(text, "nameserver 10.0.0.1\nnameserver fd00::1\nsearch a.org b.org\n");
    }
}
