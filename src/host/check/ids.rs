//! The ids that instances get: nobody else may have them.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::outcome::{failed, ok, warning};
use crate::config::Config;
use crate::types::Check;

const NAME: &str = "instance ids";

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let first = u64::from(config.instances.id_map_first);
    let ids = first..first + config.instances.ids();
    let text = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    vec![
        mapped(&ids, &text("/proc/self/uid_map")),
        accounts(&ids, &text("/etc/passwd"), &text("/etc/group")),
        jail(&text("/etc/passwd"), &text("/etc/group")),
        subordinate(&ids, &text("/etc/subuid"), &text("/etc/subgid")),
    ]
}

/// berth in a user namespace of its own can give only what it was given.
fn mapped(ids: &Range<u64>, uid_map: &str) -> Check {
    let name = "instance ids can be mapped";
    let holds = uid_map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
        matches!(numbers[..], [first, _, size] if first <= ids.start && first + size >= ids.end)
    });
    match holds {
        true => ok(name, show(ids)),
        false => failed(
            name,
            format!("{} lies outside this user namespace", show(ids)),
            "set instances.id_map_first and id_map_blocks to ids in /proc/self/uid_map",
        ),
    }
}

fn account(ids: &Range<u64>, passwd: &str, group: &str) -> Option<String> {
    [("user", passwd), ("group", group)].into_iter().find_map(|(kind, text)| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let account = fields.next()?;
            let id: u64 = fields.nth(1)?.parse().ok()?;
            ids.contains(&id).then(|| format!("{kind} {account} has id {id}"))
        })
    })
}

/// Processes of an account with the id of the image jail could trace it.
fn jail(passwd: &str, group: &str) -> Check {
    let (name, id) = ("the image jail's id", u64::from(crate::image::jail::USER));
    match account(&(id..id + 1), passwd, group) {
        None => ok(name, format!("no account has {id}")),
        Some(found) => warning(name, found, "give that account another id: this one is berth's"),
    }
}

/// An account of the host with an id of an instance would own the instance's files.
fn accounts(ids: &Range<u64>, passwd: &str, group: &str) -> Check {
    let name = format!("{NAME}: accounts");
    match account(ids, passwd, group) {
        None => ok(&name, format!("none in {}", show(ids))),
        Some(found) => failed(
            &name,
            found,
            "set instances.id_map_first to a range without accounts, or give that account another id",
        ),
    }
}

/// Other container programs would use the same ids.
fn subordinate(ids: &Range<u64>, subuid: &str, subgid: &str) -> Check {
    let name = format!("{NAME}: other containers");
    let clash =
        [("/etc/subuid", subuid), ("/etc/subgid", subgid)].into_iter().find_map(|(file, text)| {
            text.lines().find_map(|line| {
                let mut fields = line.split(':');
                let owner = fields.next()?;
                let first: u64 = fields.next()?.trim().parse().ok()?;
                let size: u64 = fields.next()?.trim().parse().ok()?;
                let overlaps = first < ids.end && ids.start < first.saturating_add(size);
                overlaps.then(|| format!("{file} gives {owner} {first} to {}", first + size - 1))
            })
        });
    match clash {
        None => ok(&name, "no overlap with /etc/subuid and /etc/subgid"),
        Some(found) => warning(
            &name,
            found,
            format!("give it ids outside {}, or change instances.id_map_first", show(ids)),
        ),
    }
}

fn show(ids: &Range<u64>) -> String {
    format!("{} to {}", ids.start, ids.end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CheckStatus::{Failed, Ok, Warning};

    const IDS: Range<u64> = 1_000_000..2_000_000;

    #[test]
    fn mapping() {
        assert_eq!(mapped(&IDS, "         0          0 4294967295\n").status, Ok);
        assert_eq!(mapped(&IDS, "0 100000 65536\n").status, Failed);
        assert_eq!(mapped(&IDS, "").status, Failed);
    }

    #[test]
    fn account_clashes_are_named() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000005:100::/:/bin/sh\n";
        let check = accounts(&IDS, passwd, "");
        assert_eq!(check.status, Failed);
        assert_eq!(check.found, "user ann has id 1000005");
        assert_eq!(accounts(&IDS, "root:x:0:0::/:\n", "g:x:1999999:\n").status, Failed);
        assert_eq!(accounts(&IDS, "root:x:0:0::/:\nb:x:2000000:1::/:\n+\n", "").status, Ok);
    }

    #[test]
    fn the_jails_id_is_nobodys() {
        assert_eq!(jail("nobody:x:65534:65534::/:\n", "nogroup:x:65534:\n").status, Ok);
        assert_eq!(jail("", "g:x:65529:\n").found, "group g has id 65529");
        assert_eq!(jail("a:x:65529:1::/:\n", "").status, Warning);
    }

    #[test]
    fn subordinate_clashes() {
        let status = |line: &str| subordinate(&IDS, line, "").status;
        assert_eq!(status("ann:100000:65536\n"), Ok);
        assert_eq!(status("ann:999999:2\n"), Warning);
        assert_eq!(status("ann:999999:1\n"), Ok);
        assert_eq!(status("ann:500000:5000000\n"), Warning);
        assert_eq!(subordinate(&IDS, "", "ann:1999999:1\n").status, Warning);
        assert_eq!(status("ann:2000000:5\nnonsense\n"), Ok);
    }
}
