//! Whether a layer in the store is still what was unpacked.
//!
//! A fingerprint is a hash over names, kinds, owners, modes, sizes and times
//! of all that is in it, the times of change included: the kernel sets those
//! at every write, and no call sets them back. So anything that was written,
//! cut off, added or taken away since shows, without a byte of content being
//! read. What a disk loses without the kernel's knowledge does not.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::digest::{Algorithm, Hasher};
use crate::fault::{OrFault, Result};

/// The fingerprint of the tree below a directory.
pub(super) fn of(root: &Path) -> Result<String> {
    let doing = || format!("looking through the layer {}", root.display());
    let top = rustix::fs::open(root, flags(), Mode::empty()).or_fault(doing())?;
    let mut hasher = Hasher::new(Algorithm::Sha256)?;
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let entries = entries(&top, &path).or_fault(doing())?;
        for (name, stat) in entries {
            let path = match path.as_slice() {
                b"" => name,
                parent => [parent, b"/", &name].concat(),
            };
            hasher.update(&described(&path, &stat))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                todo.push(path);
            }
        }
    }
    hasher.finish().map(|digest| digest.to_string())
}

/// What is in a directory, by name.
fn entries(top: &OwnedFd, path: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Stat)>> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let directory = rustix::fs::openat2(top, path, flags(), Mode::empty(), resolve)?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            let stat = rustix::fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.push((name.to_bytes().to_vec(), stat));
        }
    }
    entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(entries)
}

/// One entry as text; a name may hold any byte but the zero that ends it.
fn described(path: &[u8], stat: &Stat) -> Vec<u8> {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    // A directory's size is the file system's affair.
    let size = if is_directory { 0 } else { stat.st_size };
    let facts = format!(
        "\0{:o} {}:{} {} {} {}.{} {}.{}\n",
        stat.st_mode,
        stat.st_uid,
        stat.st_gid,
        stat.st_rdev,
        size,
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec,
    );
    [path, facts.as_bytes()].concat()
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_change_shows_and_reading_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "content").unwrap();
        fs::write(at("other"), "content").unwrap();
        let mut last = of(dir.path()).unwrap();
        fs::read(at("a/b/file")).unwrap();
        assert_eq!(of(dir.path()).unwrap(), last);
        let mtime = fs::metadata(at("a/b/file")).unwrap().modified().unwrap();
        let changes: [&dyn Fn(); 5] = [
            &|| {
                // The same size and, set back, the same time.
                fs::write(at("a/b/file"), "CONTENT").unwrap();
                let file = fs::File::options().write(true).open(at("a/b/file")).unwrap();
                file.set_modified(mtime).unwrap();
            },
            &|| fs::set_permissions(at("other"), fs::Permissions::from_mode(0o4755)).unwrap(),
            &|| fs::write(at("a/new"), "").unwrap(),
            &|| fs::remove_file(at("other")).unwrap(),
            &|| fs::rename(at("a/b"), at("a/c")).unwrap(),
        ];
        for change in changes {
            // The kernel's clock for files ticks every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            let now = of(dir.path()).unwrap();
            assert_ne!(now, last);
            last = now;
        }
    }
}
