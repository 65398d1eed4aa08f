//! Several file systems of one kind as one tree, mounted where a system has them.

use std::collections::HashMap;

use super::file_tree::{About, Attributes, Extent, FileKind, FileTree};
use crate::fault::Result;
use crate::image::init::{CANDIDATES, NAMED};
use crate::image::refusal::unacceptable;

/// Links that one look-up may lead through, as in the kernel.
const MAX_LINKS: usize = 40;
/// Deepest directory that is looked into.
const MAX_DEPTH: usize = 256;
/// Most names of a directory in which one is looked for.
const MAX_NAMES: u64 = 1 << 20;
/// Most file systems of a tree: as many as [`Joined::about`] has numbers for.
const MAX_TREES: usize = 256;
/// Names of the top that a refusal shows.
const SHOWN: usize = 12;

/// A root and what is mounted on it.
pub(super) struct Joined<T> {
    /// The root first.
    trees: Vec<T>,
    /// Which tree is mounted on which directory of another.
    mounts: HashMap<(usize, (u64, u64)), usize>,
}

/// A file of one of the trees.
pub(super) struct Node<N> {
    tree: usize,
    node: N,
}

/// A name in a directory of one of the trees.
pub(super) struct Entry<E> {
    tree: usize,
    entry: E,
}

impl<T: FileTree> Joined<T> {
    /// A root on which nothing is mounted.
    pub fn new(root: T) -> Joined<T> {
        Joined { trees: vec![root], mounts: HashMap::new() }
    }

    /// Mounts a file system on a directory, on what was mounted there before.
    pub fn mount(&mut self, place: &str, tree: T) -> Result<()> {
        let Some(at) = find(self, place)?.filter(|at| self.about(at).kind == FileKind::Directory)
        else {
            return Err(unacceptable(format!(
                "a file system of its own belongs at /{place}, which is no directory of the root; \
                 make it one"
            )));
        };
        if self.trees.len() == MAX_TREES {
            return Err(unacceptable(format!("it has more than {MAX_TREES} file systems")));
        }
        let identity = self.trees[at.tree].about(&at.node).identity;
        self.mounts.insert((at.tree, identity), self.trees.len());
        self.trees.push(tree);
        Ok(())
    }

    /// Whether it is absent, or a directory with nothing in it.
    pub fn is_free(&self, place: &str) -> Result<bool> {
        let Some(at) = find(self, place)? else { return Ok(true) };
        let directory = self.about(&at).kind == FileKind::Directory;
        Ok(directory && self.list(&at, MAX_NAMES)?.iter().all(|e| self.name(e) == b"lost+found"))
    }
}

impl<T: FileTree> FileTree for Joined<T> {
    type Entry = Entry<T::Entry>;
    type Node = Node<T::Node>;

    fn root(&self) -> Result<Self::Node> {
        Ok(Node { tree: 0, node: self.trees[0].root()? })
    }

    fn list(&self, directory: &Self::Node, most: u64) -> Result<Vec<Self::Entry>> {
        let Node { tree, node } = directory;
        let entries = self.trees[*tree].list(node, most)?;
        Ok(entries.into_iter().map(|entry| Entry { tree: *tree, entry }).collect())
    }

    fn name<'a>(&self, entry: &'a Self::Entry) -> &'a [u8] {
        self.trees[entry.tree].name(&entry.entry)
    }

    fn file(&self, directory: &Self::Node, entry: &Self::Entry) -> Result<Self::Node> {
        let tree = directory.tree;
        let node = self.trees[tree].file(&directory.node, &entry.entry)?;
        let about = self.trees[tree].about(&node);
        match self.mounts.get(&(tree, about.identity)) {
            Some(&tree) if about.kind == FileKind::Directory => {
                Ok(Node { tree, node: self.trees[tree].root()? })
            }
            _ => Ok(Node { tree, node }),
        }
    }

    fn about(&self, node: &Self::Node) -> About {
        let about = self.trees[node.tree].about(&node.node);
        // Those of all trees are of the same kind: these bits are free in each.
        let tree = (node.tree as u64) << 56;
        About { identity: (about.identity.0 ^ tree, about.identity.1), ..about }
    }

    fn attributes(&self, node: &Self::Node) -> Result<Attributes> {
        self.trees[node.tree].attributes(&node.node)
    }

    fn target(&self, node: &Self::Node) -> Result<Vec<u8>> {
        self.trees[node.tree].target(&node.node)
    }

    fn inline(&self, node: &Self::Node) -> Result<Option<Vec<u8>>> {
        self.trees[node.tree].inline(&node.node)
    }

    fn extents(&self, node: &Self::Node) -> Result<Vec<Extent>> {
        self.trees[node.tree].extents(&node.node)
    }

    fn read(&self, node: &Self::Node, place: u64, buffer: &mut [u8]) -> Result<()> {
        self.trees[node.tree].read(&node.node, place, buffer)
    }

    fn capacity(&self) -> u64 {
        self.trees.iter().fold(0, |sum, tree| sum.saturating_add(tree.capacity()))
    }
}

/// What a path leads to, through links that stay in the tree.
pub(super) fn find<T: FileTree>(tree: &T, path: &str) -> Result<Option<T::Node>> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.map(<[u8]>::to_vec).rev().collect()
    };
    let (mut todo, mut here, mut links) = (parts(path.as_bytes()), vec![tree.root()?], 0);
    while let Some(part) = todo.pop() {
        let (Some(directory), true) = (here.last(), here.len() < MAX_DEPTH) else {
            return Ok(None);
        };
        if tree.about(directory).kind != FileKind::Directory {
            return Ok(None);
        }
        match &part[..] {
            b"." => continue,
            b".." => {
                here.truncate((here.len() - 1).max(1));
                continue;
            }
            _ => {}
        }
        let entries = tree.list(directory, MAX_NAMES)?;
        let Some(entry) = entries.iter().find(|entry| tree.name(entry) == part) else {
            return Ok(None);
        };
        let node = tree.file(directory, entry)?;
        if tree.about(&node).kind != FileKind::Symlink {
            here.push(node);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Ok(None);
        }
        let target = tree.target(&node)?;
        if target.starts_with(b"/") {
            here.truncate(1);
        }
        todo.extend(parts(&target));
    }
    Ok(here.pop())
}

/// Whether a path leads to a program.
fn is_program(tree: &impl FileTree, path: &str) -> Result<bool> {
    let found = find(tree, path)?.map(|node| tree.about(&node));
    Ok(found.is_some_and(|about| about.kind == FileKind::Regular && about.mode & 0o111 != 0))
}

/// Whether a program is where inits are.
pub(super) fn has_init(tree: &impl FileTree) -> Result<bool> {
    for path in CANDIDATES.iter().chain(NAMED) {
        if is_program(tree, path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a tree that cannot be a system, for what is in it; `what` says which it is.
pub(super) fn check_system(tree: &impl FileTree, what: &str) -> Result<()> {
    if has_init(tree)? {
        return Ok(());
    }
    let top = tree.list(&tree.root()?, MAX_NAMES)?;
    let names = top.iter().map(|entry| String::from_utf8_lossy(tree.name(entry)).into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "lost+found").collect();
    let seen = if names.iter().any(|name| name == "ostree") {
        "it is an OSTree repository, whose system lies in ostree/deploy".to_owned()
    } else if names.is_empty() {
        "it is empty".to_owned()
    } else {
        let usr = find(tree, "usr")?
            .map_or(Ok(0), |node| tree.list(&node, MAX_NAMES).map(|entries| entries.len()));
        let usr = if matches!(usr, Ok(0)) { ", and nothing in usr" } else { "" };
        names.truncate(SHOWN);
        format!("it holds {}{usr}", names.join(", "))
    };
    Err(unacceptable(format!(
        "{what} has no init (/sbin/init, systemd, /init) and is no system: {seen}; give an image \
         of a whole system, or its root file system as a tar archive"
    )))
}
