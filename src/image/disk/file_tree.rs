//! What a file system in an image shows of its files, whoever reads it.

use crate::fault::Result;

/// Most pieces of one file.
pub const MAX_PIECES: usize = 1 << 20;

/// A file system, whoever reads it. Nothing that it says is trusted.
pub(super) trait FileTree {
    /// A name in a directory.
    type Entry;
    /// A file.
    type Node;

    /// The root directory.
    fn root(&self) -> Result<Self::Node>;

    /// A directory's names in their order, without `.` and `..`; a fault when
    /// there are more than `most`.
    fn list(&self, directory: &Self::Node, most: u64) -> Result<Vec<Self::Entry>>;

    /// The name itself.
    fn name<'a>(&self, entry: &'a Self::Entry) -> &'a [u8];

    /// What the name means.
    fn file(&self, directory: &Self::Node, entry: &Self::Entry) -> Result<Self::Node>;

    /// Kind, owner and the like.
    fn about(&self, node: &Self::Node) -> About;

    /// Extended attributes of a regular file or directory.
    fn attributes(&self, node: &Self::Node) -> Result<Attributes>;

    /// Target of a symbolic link.
    fn target(&self, node: &Self::Node) -> Result<Vec<u8>>;

    /// The beginning of a file that is all it holds, when no extents hold it.
    fn inline(&self, node: &Self::Node) -> Result<Option<Vec<u8>>>;

    /// The pieces of a regular file that are stored; the rest of it is zeros.
    fn extents(&self, node: &Self::Node) -> Result<Vec<Extent>>;

    /// Reads data at the place that an extent of the file names.
    fn read(&self, node: &Self::Node, place: u64, buffer: &mut [u8]) -> Result<()>;

    /// Most bytes that its files can store without sharing any.
    fn capacity(&self) -> u64;
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    /// The same for all names of one file, and for no other.
    pub identity: (u64, u64),
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// How many names it has.
    pub links: u64,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device 0/0, as which overlayfs keeps a deletion.
    NoDevice,
    /// A socket or another device.
    Other,
}

/// A piece of a file that is stored in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it is in the file, in bytes.
    pub offset: u64,
    /// Where it is in the file system, in bytes.
    pub place: u64,
    /// Bytes.
    pub length: u64,
}

/// Names and values.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;
