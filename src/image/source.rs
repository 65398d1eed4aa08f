//! Where an image's bytes come from.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Component, Path};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use uuid::Uuid;

use super::sparse::is_hole;
use crate::config;
use crate::fault::{Fault, OrFault, Result};
use crate::openstack::Access;
use crate::openstack::glance::Download;
use crate::types::ImageSource;

/// An image's content, read once from its beginning to its end.
pub enum Source {
    /// A file on this host, and its size when it was opened.
    File(File, u64),
    /// Glance.
    Glance(Box<Download>),
}

impl Source {
    /// Opens a source; errors name the request's field.
    pub fn open(source: &ImageSource, image: Uuid, config: &config::Images) -> Result<Source> {
        match source {
            ImageSource::File { path } => {
                open_file(path, config).map(|(file, size)| Source::File(file, size))
            }
            ImageSource::Glance { endpoint, token, service_token } => {
                let access =
                    glance(endpoint.as_deref(), token.as_deref(), service_token.as_deref());
                Download::new(access, image, config)
                    .map(|download| Source::Glance(Box::new(download)))
            }
        }
    }

    /// Bytes of the whole, when that is known.
    pub fn total(&self) -> Option<u64> {
        match self {
            Source::File(_, size) => Some(*size),
            Source::Glance(download) => download.total(),
        }
    }

    /// What reading is called in an operation's progress.
    pub fn stage(&self) -> &'static str {
        match self {
            Source::File(..) => "reading",
            Source::Glance(_) => "downloading",
        }
    }

    /// Whether there are bytes, or the end, within this time.
    pub fn comes_within(&mut self, limit: Duration) -> bool {
        match self {
            Source::File(..) => true,
            Source::Glance(download) => download.comes_within(limit),
        }
    }

    /// Takes bytes; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Source::File(file, _) => loop {
                match read_sparsely(file, buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    other => return other.or_fault("reading source.path"),
                }
            },
            Source::Glance(download) => download.read(buffer),
        }
    }
}

/// Reads on, without asking the kernel for the zeros of a hole, for which it would take memory.
fn read_sparsely(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let at = file.stream_position()?;
    let left = file.metadata()?.len().saturating_sub(at);
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    let hole = length > 0 && is_hole(&*file, at, length);
    // To look for data is to go there.
    file.seek(SeekFrom::Start(if hole { at + length as u64 } else { at }))?;
    if hole {
        buffer[..length].fill(0);
        return Ok(length);
    }
    file.read(buffer)
}

/// The way to Glance that a request names.
pub fn access(source: &ImageSource) -> Option<Access<'_>> {
    match source {
        ImageSource::File { .. } => None,
        ImageSource::Glance { endpoint, token, service_token } => {
            Some(glance(endpoint.as_deref(), token.as_deref(), service_token.as_deref()))
        }
    }
}

fn glance<'a>(
    endpoint: Option<&'a str>,
    token: Option<&'a str>,
    service_token: Option<&'a str>,
) -> Access<'a> {
    Access { section: "source", endpoint, token, service_token }
}

/// Opens a regular file, below one of `images.file_roots` if there are any.
/// Links are followed as long as they stay below that root.
fn open_file(path: &Path, config: &config::Images) -> Result<(File, u64)> {
    let bad = |why: String| Fault::invalid("source.path", why);
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) {
        return Err(bad("must be an absolute path without '..'".into()));
    }
    let roots = &config.file_roots;
    let anywhere = [Path::new("/")];
    let roots: Vec<&Path> = match roots.is_empty() {
        true => anywhere.to_vec(),
        false => roots.iter().map(AsRef::as_ref).collect(),
    };
    let below = roots.iter().find_map(|root| Some((*root, path.strip_prefix(root).ok()?)));
    let Some((root, rest)) = below else {
        return Err(bad(format!("must lie below one of images.file_roots: {roots:?}")));
    };
    let open = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd = rustix::fs::open(root, flags, Mode::empty())?;
        // Everywhere, an absolute link is fine; below a root it must not lead out.
        let resolve = match config.file_roots.is_empty() {
            true => ResolveFlags::NO_MAGICLINKS,
            false => ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH,
        };
        // Without NONBLOCK a named pipe would hold this thread.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat2(&root_fd, rest, flags, Mode::empty(), resolve)
    };
    let file = open().map(File::from).map_err(|error| {
        bad(format!(
            "cannot open {}: {error}; give a file that the service can read",
            path.display()
        ))
    })?;
    let metadata = file.metadata().or_fault("looking at source.path")?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(bad(format!("{} is no regular file", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    #[test]
    fn only_regular_files_below_the_roots() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(inside.join("image.tar"), b"abc").unwrap();
        fs::write(dir.path().join("outside.tar"), b"abc").unwrap();
        symlink("image.tar", inside.join("link")).unwrap();
        symlink("../outside.tar", inside.join("out")).unwrap();
        symlink(dir.path().join("outside.tar"), inside.join("absolute")).unwrap();
        let pipe = inside.join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let mut config =
            config::Images { file_roots: vec![inside.clone()], ..config::Images::default() };
        assert_eq!(open_file(&inside.join("image.tar"), &config).unwrap().1, 3);
        assert!(open_file(&inside.join("link"), &config).is_ok());
        for bad in [
            inside.join("out"),
            inside.join("absolute"),
            inside.join("absent"),
            inside.join("../outside.tar"),
            dir.path().join("outside.tar"),
            inside.clone(),
            pipe.clone(),
            PathBuf::from("image.tar"),
        ] {
            let fault = open_file(&bad, &config).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("source.path"), "{}", bad.display());
        }
        config.file_roots.clear();
        assert!(open_file(&inside.join("absolute"), &config).is_ok());
        assert!(open_file(Path::new("/dev/null"), &config).is_err());
        assert!(open_file(&pipe, &config).is_err());
    }
}
