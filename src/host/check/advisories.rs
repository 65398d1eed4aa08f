//! Runtime programs with known ways out of a container.
//!
//! From the security advisories that the projects publish
//! (`github.com/{opencontainers/runc,containers/crun,youki-dev/youki}/security/advisories`):
//! those by which an image or a process inside reaches the host. Not here is
//! what berth never asks a program for: CVE-2025-24965 is of crun's handler
//! `krun`. How the table is kept: `docs/security.md`.

/// Three numbers, and that of a candidate for release, which comes before the release.
type Version = [u64; 4];

/// Instead of a candidate's number.
const RELEASE: u64 = u64::MAX;

const fn release(major: u64, minor: u64, patch: u64) -> Version {
    [major, minor, patch, RELEASE]
}

/// An advisory: the program, what it is known by, and the first mended
/// version of each line of releases, the oldest line first.
struct Advisory {
    program: &'static str,
    names: &'static [&'static str],
    mended: &'static [Version],
}

const ADVISORIES: [Advisory; 10] = [
    Advisory { program: "runc", names: &["CVE-2019-5736"], mended: &[[1, 0, 0, 7]] },
    Advisory { program: "runc", names: &["CVE-2019-19921"], mended: &[[1, 0, 0, 10]] },
    Advisory { program: "runc", names: &["CVE-2021-30465"], mended: &[[1, 0, 0, 95]] },
    Advisory { program: "runc", names: &["CVE-2024-21626"], mended: &[release(1, 1, 12)] },
    Advisory {
        program: "runc",
        names: &["CVE-2024-45310"],
        mended: &[release(1, 1, 14), [1, 2, 0, 3]],
    },
    Advisory {
        program: "runc",
        names: &["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"],
        mended: &[release(1, 2, 8), release(1, 3, 3), [1, 4, 0, 3]],
    },
    // A write through /proc that a link leads elsewhere; 1.0.0 brought it back.
    Advisory {
        program: "runc",
        names: &["CVE-2023-27561", "CVE-2023-28642"],
        mended: &[release(1, 1, 5)],
    },
    Advisory { program: "crun", names: &["CVE-2019-18837"], mended: &[release(0, 10, 5)] },
    Advisory { program: "youki", names: &["CVE-2025-54867"], mended: &[release(0, 5, 5)] },
    Advisory {
        program: "youki",
        names: &["CVE-2025-62161", "CVE-2025-62596"],
        mended: &[release(0, 5, 7)],
    },
];

/// What is known of a program that says this of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The advisories.
    pub names: Vec<&'static str>,
    /// The first version of its line, or of a later one, with none of them.
    pub mended: String,
}

/// The advisories for the version that `said`, the first line of a program's
/// `--version`, names; `None` when there are none or it names no version.
pub(super) fn known(said: &str) -> Option<Known> {
    let mut words = said.split_whitespace();
    let program = words.next()?;
    let version = words.find_map(version)?;
    let open = ADVISORIES.iter().filter(|advisory| {
        advisory.program == program && version < first_mended(advisory, version)
    });
    let open: Vec<&Advisory> = open.collect();
    let mended = open.iter().map(|advisory| first_mended(advisory, version)).max()?;
    Some(Known {
        names: open.iter().flat_map(|advisory| advisory.names).copied().collect(),
        mended: shown(mended),
    })
}

/// The version of `version`'s own line, or of the next one that was mended.
fn first_mended(advisory: &Advisory, version: Version) -> Version {
    let line = |version: Version| [version[0], version[1]];
    let mended = advisory.mended.iter().find(|mended| line(**mended) >= line(version));
    // Later lines began with it.
    mended.copied().unwrap_or_default()
}

fn shown(version: Version) -> String {
    let [major, minor, patch, candidate] = version;
    match candidate {
        RELEASE => format!("{major}.{minor}.{patch}"),
        candidate => format!("{major}.{minor}.{patch}-rc.{candidate}"),
    }
}

/// `1.1.5+ds1`, `v1.2.8`, `1.21`, `1.4.0-rc.2` or `1.0.0~rc93` as numbers.
fn version(word: &str) -> Option<Version> {
    let word = word.strip_prefix('v').unwrap_or(word);
    let (plain, rest) = word.split_once(['-', '+', '~']).unwrap_or((word, ""));
    let mut numbers = plain.split('.').map(str::parse);
    let mut next = || numbers.next().transpose().ok();
    let (major, minor, patch) = (next()??, next()??, next()?.unwrap_or_default());
    let candidate = rest.strip_prefix("rc").map(|rest| rest.trim_start_matches('.'));
    let digits = candidate.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    Some([major, minor, patch, digits.and_then(|text| text.parse().ok()).unwrap_or(RELEASE)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_known_and_mended_ones_are_not() {
        for (said, names, mended) in [
            ("runc version 1.0.0-rc6", 10, "1.2.8"),
            ("runc version 1.0.0~rc93+ds1", 8, "1.2.8"),
            ("runc version 1.0.0-rc95", 7, "1.2.8"),
            ("runc version 0.1.1", 10, "1.2.8"),
            ("runc version 1.1.4", 7, "1.2.8"),
            ("runc version 1.1.5+ds1", 5, "1.2.8"),
            ("runc version 1.1.12", 4, "1.2.8"),
            ("runc version 1.1.15-0ubuntu1", 3, "1.2.8"),
            ("runc version 1.2.7", 3, "1.2.8"),
            ("runc version 1.2.0-rc.2", 4, "1.2.8"),
            ("runc version 1.3.0", 3, "1.3.3"),
            ("runc version 1.4.0-rc.2", 3, "1.4.0-rc.3"),
            ("crun version 0.10.4", 1, "0.10.5"),
            ("youki version 0.5.4", 3, "0.5.7"),
        ] {
            let known = known(said).unwrap_or_else(|| panic!("{said}"));
            assert_eq!((known.names.len(), known.mended.as_str()), (names, mended), "{said}");
        }
        for said in [
            "runc version 1.2.8",
            "runc version 1.3.3+ds1",
            "runc version 1.4.0-rc.3",
            "runc version 1.4.0",
            "runc version 1.5.1",
            "runc version 2.0.0",
            "crun version 1.8.1",
            "crun version 1.21",
            "youki version 0.5.7",
            "another version 0.1.0",
            "runc",
            "",
        ] {
            assert_eq!(known(said), None, "{said}");
        }
    }

    #[test]
    fn each_advisory_is_written_in_order() {
        for advisory in &ADVISORIES {
            assert!(advisory.mended.is_sorted(), "{:?}", advisory.names);
            assert!(!advisory.names.is_empty() && !advisory.mended.is_empty());
        }
    }
}
