//! Who an image's process runs as: the config's `User`, looked up in the image.

use std::path::PathBuf;

use super::refusal::unacceptable;
use super::stacked::StackedLayers;
use crate::fault::{Fault, Result};
use crate::types::ProcessUser;

/// Most bytes of `/etc/passwd` and `/etc/group` that are read.
const MAX_FILE: u64 = 4 << 20;

/// Looks `user` (`user`, `uid`, `user:group`, `uid:gid`; empty: root) up in
/// the layers' `/etc/passwd` and `/etc/group`, lowest layer first.
///
/// As Docker does: a number needs no entry; further groups are those of a
/// user that has an entry, unless a group was given.
pub fn resolve_user(layers: &[PathBuf], user: &str, ids: u32) -> Result<ProcessUser> {
    let layers = StackedLayers::new(layers)?;
    let read = |path| -> Result<String> {
        let bytes = layers.read(path, MAX_FILE)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    resolve(&read("/etc/passwd")?, &read("/etc/group")?, user, ids)
}

fn resolve(passwd: &str, group: &str, wanted: &str, ids: u32) -> Result<ProcessUser> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = entries(passwd).find(|fields| fields[0] == user).or_else(|| {
        let uid = number(user)?;
        entries(passwd).find(|fields| field(fields, 2) == Some(uid))
    });
    let uid = entry.as_ref().and_then(|fields| field(fields, 2)).or_else(|| number(user));
    let uid = uid.ok_or_else(|| unknown("user", user, "/etc/passwd"))?;
    let name = entry.as_ref().map(|fields| fields[0]);
    let own_gid = entry.as_ref().and_then(|fields| field(fields, 3)).unwrap_or(0);
    let gid = match wanted_group.filter(|group| !group.is_empty()) {
        None => own_gid,
        Some(wanted) => entries(group)
            .find(|fields| fields[0] == wanted)
            .and_then(|fields| field(&fields, 2))
            .or_else(|| number(wanted))
            .ok_or_else(|| unknown("group", wanted, "/etc/group"))?,
    };
    let additional_gids = match (wanted_group, name) {
        (None, Some(name)) => memberships(group, name, gid),
        _ => Vec::new(),
    };
    for id in additional_gids.iter().chain([&uid, &gid]) {
        if *id >= ids {
            return Err(unacceptable(format!(
                "User {wanted:?} has the id {id}, and an instance the ids 0 to {}; raise \
                 instances.id_map_size and make the instance anew",
                ids - 1
            )));
        }
    }
    let home = entry.and_then(|fields| fields.get(5).copied()).filter(|home| home.starts_with('/'));
    Ok(ProcessUser { uid, gid, additional_gids, home: home.unwrap_or("/").to_owned() })
}

fn memberships(group: &str, name: &str, gid: u32) -> Vec<u32> {
    let mut gids: Vec<u32> = entries(group)
        .filter(|fields| fields.get(3).is_some_and(|list| list.split(',').any(|n| n == name)))
        .filter_map(|fields| field(&fields, 2))
        .filter(|other| *other != gid)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn field(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at).and_then(|text| number(text))
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn unknown(what: &str, name: &str, file: &str) -> Fault {
    unacceptable(format!("its config's User names the {what} {name:?}, which {file} does not have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# c\nweb:x:33:34::/srv:/bin/sh\nbad\n\
                          big:x:70000:1::/:/x\nodd:x:5:6::nohome:/x\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\naudio:x:29:web,root\nvideo:x:44:other,web\n";

    #[test]
    fn as_docker_does() {
        let user = |uid, gid, more: &[u32], home: &str| ProcessUser {
            uid,
            gid,
            additional_gids: more.to_vec(),
            home: home.to_owned(),
        };
        for (wanted, expected) in [
            ("", user(0, 0, &[29], "/root")),
            ("root", user(0, 0, &[29], "/root")),
            ("web", user(33, 34, &[29, 44], "/srv")),
            ("33", user(33, 34, &[29, 44], "/srv")),
            ("web:video", user(33, 44, &[], "/srv")),
            ("web:5", user(33, 5, &[], "/srv")),
            ("1000", user(1000, 0, &[], "/")),
            ("1000:1001", user(1000, 1001, &[], "/")),
            (":29", user(0, 29, &[], "/root")),
            ("odd", user(5, 6, &[], "/")),
        ] {
            assert_eq!(resolve(PASSWD, GROUP, wanted, 65_536).unwrap(), expected, "{wanted:?}");
        }
        for bad in ["nobody", "web:nogroup", "big", "65536", "-1", "+5", "99999999999"] {
            assert!(resolve(PASSWD, GROUP, bad, 65_536).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_image_without_the_files_has_root() {
        let root = tempfile::tempdir().unwrap();
        let user = resolve_user(&[root.path().to_owned()], "", 65_536).unwrap();
        assert_eq!((user.uid, user.home.as_str()), (0, "/"));
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert!(
            resolve_user(&[root.path().to_owned()], "daemon", 65_536).is_err(),
            "the host's was read"
        );
    }
}
