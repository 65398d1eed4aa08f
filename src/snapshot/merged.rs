//! Trees that lie on each other, as an instance sees them: what a tree hides
//! of those below it is not there, and neither are the marks that hide it.

use super::links::Links;
use super::names::{Names, Unsorted};
use super::scratch::Scratch;
use super::tree::{Here, Node, NodeKind, Tree, Visit, too_long};
use crate::fault::Result;

/// A directory on the way: its path, the names in it that are still to come,
/// and the trees that make it up, highest first.
struct Open<'a> {
    path: Vec<u8>,
    names: Names<'a>,
    trees: Vec<&'a Tree>,
}

/// Shows each file with its content, the directory before what is in it, as
/// [`Tree::walk`] does. `trees` are the lowest first.
pub(super) fn walk(trees: &[Tree], visit: &mut Visit<'_>) -> Result<()> {
    let Some(lowest) = trees.first() else { return Ok(()) };
    let scratch = lowest.scratch();
    let mut links = Links::new(&scratch);
    let Some(root) = open(trees.iter().rev(), Vec::new(), &scratch, &mut links, visit)? else {
        return Ok(());
    };
    let mut way = vec![root];
    while let Some(directory) = way.last_mut() {
        let Some(name) = directory.names.next()? else {
            way.pop();
            continue;
        };
        let path = match directory.path.as_slice() {
            b"" => name,
            parent => [parent, b"/", &name].concat(),
        };
        too_long(&path)?;
        let trees = directory.trees.clone();
        if let Some(next) = open(trees.into_iter(), path, &scratch, &mut links, visit)? {
            way.push(next);
        }
    }
    Ok(())
}

/// Shows what the highest tree that knows the path has there; the directory, if that is one.
fn open<'a>(
    trees: impl Iterator<Item = &'a Tree>,
    path: Vec<u8>,
    scratch: &'a Scratch,
    links: &mut Links<'_>,
    visit: &mut Visit<'_>,
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
    let mut names = Unsorted::new(scratch);
    highest.directory(&path, &mut names, &mut |node, file| {
        let kind = NodeKind::Directory { opaque: false };
        visit(&Node { kind, ..node.clone() }, file)
    })?;
    for tree in &parts[1..] {
        tree.directory(&path, &mut names, &mut |_, _| Ok(()))?;
    }
    let names = names.sorted()?;
    Ok(Some(Open { path, names, trees: parts }))
}
