//! Trees that lie on each other: as an instance sees them, or the highest of them as a layer.
//!
//! As an instance sees them, what a tree hides of those below it is not there, and neither are the
//! marks that hide it. As a layer, the highest tree is shown with its marks; but no image's layer
//! can say that a directory of a lower one was renamed, so such a directory is there with all
//! that is in it, and hides what was at its place.

use std::collections::VecDeque;

use super::links::Links;
use super::names::{Names, Unsorted};
use super::scratch::Scratch;
use super::tree::{Here, Tree, Visit, too_long};
use crate::fault::Result;

/// What a tree, the number of which this is, has at a path of its own.
#[derive(Clone)]
struct Part {
    number: usize,
    at: Vec<u8>,
}

/// A directory on the way: its path, the names in it that are still to come,
/// and the parts that make it up, highest first.
struct Open<'a> {
    path: Vec<u8>,
    names: Names<'a>,
    parts: Vec<Part>,
    /// Whether it is shown as an instance sees it.
    whole: bool,
}

struct Walk<'a, 'v, 'o> {
    trees: &'a [Tree],
    scratch: &'a Scratch,
    links: Links<'a>,
    visit: &'v mut Visit<'o>,
}

/// Shows each file that an instance sees with its content, the directory before what is in it,
/// names in the order of their bytes: always the same. `trees` are the lowest first.
pub(super) fn merged(trees: &[Tree], visit: &mut Visit<'_>) -> Result<()> {
    let parts = (0..trees.len()).rev().map(|number| Part { number, at: Vec::new() });
    walk(trees, parts.collect(), true, visit)
}

/// The same of the highest tree as a layer on the others.
pub(super) fn layer(trees: &[Tree], visit: &mut Visit<'_>) -> Result<()> {
    let highest = trees.len().checked_sub(1);
    let parts = highest.map(|number| Part { number, at: Vec::new() });
    walk(trees, parts.into_iter().collect(), false, visit)
}

fn walk(trees: &[Tree], parts: VecDeque<Part>, whole: bool, visit: &mut Visit<'_>) -> Result<()> {
    let Some(tree) = trees.first() else { return Ok(()) };
    let scratch = tree.scratch();
    let mut walk = Walk { trees, scratch: &scratch, links: Links::new(&scratch), visit };
    let mut way: Vec<Open<'_>> = walk.open(parts, Vec::new(), whole)?.into_iter().collect();
    while let Some(directory) = way.last_mut() {
        let Some(name) = directory.names.next()? else {
            way.pop();
            continue;
        };
        let path = join(&directory.path, &name);
        too_long(&path)?;
        let parts = directory.parts.iter().map(|part| part.at(&name)).collect();
        let whole = directory.whole;
        way.extend(walk.open(parts, path, whole)?);
    }
    Ok(())
}

impl<'a> Walk<'a, '_, '_> {
    /// Shows what the highest part that there is has; the directory, if that is one.
    fn open(
        &mut self,
        mut candidates: VecDeque<Part>,
        path: Vec<u8>,
        mut whole: bool,
    ) -> Result<Option<Open<'a>>> {
        let mut parts = Vec::new();
        let mut hides = false;
        while let Some(part) = candidates.pop_front() {
            let tree = &self.trees[part.number];
            match tree.here(&part.at)? {
                Here::Nothing => {}
                Here::Whiteout if whole || !parts.is_empty() => break,
                Here::Whiteout | Here::File if parts.is_empty() => {
                    tree.file(&part.at, &path, &mut self.links, self.visit)?;
                    return Ok(None);
                }
                Here::Whiteout | Here::File => break,
                Here::Directory { opaque: true, .. } => {
                    hides |= !whole;
                    parts.push(part);
                    break;
                }
                Here::Directory { renamed: None, .. } => parts.push(part),
                Here::Directory { renamed: Some(to), .. } => {
                    candidates = self.before_renaming(&part, &to, whole.then_some(&candidates))?;
                    hides |= !whole;
                    whole = true;
                    parts.push(part);
                }
            }
        }
        let Some(highest) = parts.first() else { return Ok(None) };
        let node = self.trees[highest.number].directory(&highest.at, &path, hides)?;
        (self.visit)(&node, None)?;
        let mut names = Unsorted::new(self.scratch);
        for part in &parts {
            self.trees[part.number].names(&part.at, &mut names)?;
        }
        let names = names.sorted()?;
        Ok(Some(Open { path, names, parts, whole }))
    }

    /// What lower trees have of a directory that was renamed. `beside` is what those that are shown
    /// have under its name of now; none: its parent is not renamed, and no lower tree is shown.
    fn before_renaming(
        &self,
        part: &Part,
        to: &[u8],
        beside: Option<&VecDeque<Part>>,
    ) -> Result<VecDeque<Part>> {
        if let Some(path) = to.strip_prefix(b"/") {
            return self.lower(part.number, path);
        }
        let renamed = |path: &[u8]| join(parent(path), to);
        let Some(beside) = beside else {
            return self.lower(part.number, &renamed(&part.at));
        };
        let renamed = beside.iter().map(|part| Part { at: renamed(&part.at), ..*part });
        Ok(renamed.collect())
    }

    /// Where the trees below one may have something at a path.
    fn lower(&self, below: usize, path: &[u8]) -> Result<VecDeque<Part>> {
        let mut parts: VecDeque<Part> =
            (0..below).rev().map(|number| Part { number, at: Vec::new() }).collect();
        let mut names = path.split(|byte| *byte == b'/').peekable();
        while let Some(name) = names.next() {
            parts = parts.iter().map(|part| part.at(name)).collect();
            if names.peek().is_some() {
                parts = self.directories(parts)?;
            }
        }
        Ok(parts)
    }

    /// Those that make up one directory.
    fn directories(&self, candidates: VecDeque<Part>) -> Result<VecDeque<Part>> {
        let mut parts = VecDeque::new();
        for part in candidates {
            match self.trees[part.number].here(&part.at)? {
                Here::Nothing => {}
                Here::Whiteout | Here::File => break,
                Here::Directory { opaque, .. } => {
                    parts.push_back(part);
                    if opaque {
                        break;
                    }
                }
            }
        }
        Ok(parts)
    }
}

impl Part {
    /// The same tree's at a name in this directory.
    fn at(&self, name: &[u8]) -> Part {
        Part { at: join(&self.at, name), ..*self }
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}
