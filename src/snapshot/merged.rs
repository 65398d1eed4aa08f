//! Trees that lie on each other, as an instance sees them: what a tree hides
//! of those below it is not there, and neither are the marks that hide it.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::vec;

use super::tree::{Here, Node, NodeKind, Tree, too_long};
use crate::fault::Result;

/// A directory on the way: its path, the names in it that are still to come,
/// and the trees that make it up, highest first.
struct Open<'a> {
    path: Vec<u8>,
    names: vec::IntoIter<Vec<u8>>,
    trees: Vec<&'a Tree>,
}

/// Shows each file with its content, the directory before what is in it, as
/// [`Tree::walk`] does. `trees` are the lowest first.
pub(super) fn walk(
    trees: &[Tree],
    visit: &mut dyn FnMut(&Node, Option<&File>) -> Result<()>,
) -> Result<()> {
    let mut links = HashMap::new();
    let Some(root) = open(trees.iter().rev(), Vec::new(), &mut links, visit)? else {
        return Ok(());
    };
    let mut way = vec![root];
    while let Some(directory) = way.last_mut() {
        let Some(name) = directory.names.next() else {
            way.pop();
            continue;
        };
        let path = match directory.path.as_slice() {
            b"" => name,
            parent => [parent, b"/", &name].concat(),
        };
        too_long(&path)?;
        let trees = directory.trees.clone();
        if let Some(next) = open(trees.into_iter(), path, &mut links, visit)? {
            way.push(next);
        }
    }
    Ok(())
}

/// Shows what the highest tree that knows the path has there; the directory, if that is one.
fn open<'a>(
    trees: impl Iterator<Item = &'a Tree>,
    path: Vec<u8>,
    links: &mut HashMap<(u64, u64), Vec<u8>>,
    visit: &mut dyn FnMut(&Node, Option<&File>) -> Result<()>,
) -> Result<Option<Open<'a>>> {
    let mut parts = Vec::new();
    for tree in trees {
        match tree.here(&path)? {
            Here::Nothing => {}
            Here::Whiteout => break,
            Here::File if parts.is_empty() => {
                tree.file(&path, links, visit)?;
                return Ok(None);
            }
            Here::File => break,
            Here::Directory { opaque } => {
                parts.push(tree);
                if opaque {
                    break;
                }
            }
        }
    }
    let Some(highest) = parts.first() else { return Ok(None) };
    let (_, names) = highest.directory(path.clone(), &mut |node, file| {
        let kind = NodeKind::Directory { opaque: false };
        visit(&Node { kind, ..node.clone() }, file)
    })?;
    let mut names: BTreeSet<Vec<u8>> = names.collect();
    for tree in &parts[1..] {
        names.extend(tree.directory(path.clone(), &mut |_, _| Ok(()))?.1);
    }
    let names = names.into_iter().collect::<Vec<_>>().into_iter();
    Ok(Some(Open { path, names, trees: parts }))
}
