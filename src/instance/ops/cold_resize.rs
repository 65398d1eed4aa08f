//! A resize that can be undone: a stopped instance's disks are copied before
//! they change, and the copies kept until the resize is confirmed (they are
//! removed) or reverted (they are put back, and all that was written since is
//! gone with the disks they replace).
//!
//! What was cut short is undone by [`finish_interrupted`]. The record says in every moment
//! which disks count:
//!
//! ```text
//! record.resize   a copy that lies there    the disks
//! None            is rubbish                count
//! Undoing         counts                    are what it is put back over
//! Unconfirmed     is the revert's           count
//! ```

use chrono::Utc;

use super::flavor_change::{self, FlavorChange};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::{KeptResize, Record};
use crate::instance::state::Admission;
use crate::instance::teardown::undone;
use crate::rootfs::DiskBackup;
use crate::types::Flavor;

/// Whether `flavor` can be had, before anything is done for it.
pub fn check(parts: &HostParts, record: &Record, flavor: Flavor) -> Result<Admission> {
    if is_done(record, &flavor) {
        return Ok(Admission::Nothing);
    }
    refuse_unconfirmed(record)?;
    FlavorChange::plan(parts, record, flavor, false).map(|_| Admission::Do)
}

/// Whether this is the request that made it what it is, repeated. Once it was
/// started there is something to lose, and the same flavor is another request.
fn is_done(record: &Record, flavor: &Flavor) -> bool {
    match &record.resize {
        Some(KeptResize::Unconfirmed { since, .. }) => {
            record.definition.flavor == *flavor && record.started_at.is_none_or(|at| at < *since)
        }
        _ => false,
    }
}

/// One resize after the other.
fn refuse_unconfirmed(record: &Record) -> Result<()> {
    match &record.resize {
        Some(KeptResize::Unconfirmed { flavor, .. }) => Err(Fault::new(
            FaultKind::InstanceInvalidState,
            format!("a resize from flavor {:?} awaits: confirm or revert it first", flavor.name),
        )),
        _ => Ok(()),
    }
}

/// Finishes what is to be undone, and refuses if a resize awaits confirmation.
pub fn make_free(parts: &HostParts, record: &mut Record) -> Result<()> {
    refuse_unconfirmed(record)?;
    if record.resize.is_some() { finish_interrupted(parts, record) } else { Ok(()) }
}

/// Gives a stopped instance another flavor and keeps what it was. `progress`
/// is told of the bytes copied and those in all, and says whether to go on.
pub fn resize_and_keep(
    parts: &HostParts,
    record: &mut Record,
    flavor: Flavor,
    progress: &dyn Fn(u64, u64) -> bool,
) -> Result<()> {
    make_free(parts, record)?;
    let kept = (|| {
        parts.disks.back_up(&disks(parts, record), progress)?;
        change(parts, record, flavor)
    })();
    kept.map_err(|fault| undone(fault, "putting its disks back", finish_interrupted(parts, record)))
}

fn change(parts: &HostParts, record: &mut Record, flavor: Flavor) -> Result<()> {
    save(parts, record, Some(KeptResize::Undoing))?;
    let mut wanted = FlavorChange::plan(parts, record, flavor, false)?;
    wanted.new.resize = Some(KeptResize::Unconfirmed {
        flavor: record.definition.flavor.clone(),
        root_bytes: record.root_bytes,
        ephemeral_bytes: record.ephemeral_bytes,
        since: Utc::now(),
    });
    *record = wanted.carry_out(parts, record, false)?;
    Ok(())
}

/// Drops what was kept; nothing kept is success.
pub fn confirm(parts: &HostParts, record: &mut Record) -> Result<()> {
    if let Some(KeptResize::Unconfirmed { .. }) = record.resize {
        // The record first: half of what was kept is nothing to go back to.
        save(parts, record, None)?;
    }
    finish_interrupted(parts, record)
}

/// Makes a stopped instance what it was; nothing kept is success.
pub fn revert(parts: &HostParts, record: &mut Record) -> Result<()> {
    if let Some(KeptResize::Unconfirmed { flavor, root_bytes, ephemeral_bytes, .. }) =
        record.resize.clone()
    {
        let mut old = Record { root_bytes, ephemeral_bytes, ..record.clone() };
        old.definition.flavor = flavor;
        for disk in disks(parts, &old) {
            // One that somebody took away is found before anything changes.
            let what = format!("looking for {}", disk.copy.display());
            std::fs::metadata(&disk.copy).or_fault(what)?;
        }
        save(parts, &mut old, Some(KeptResize::Undoing))?;
        *record = old;
    }
    finish_interrupted(parts, record)?;
    flavor_change::restore(parts, record, false)
}

/// Finishes what was cut short, on an instance that does not run.
pub fn finish_interrupted(parts: &HostParts, record: &mut Record) -> Result<()> {
    match record.resize {
        Some(KeptResize::Unconfirmed { .. }) => return Ok(()),
        Some(KeptResize::Undoing) => {
            put_back(parts, record)?;
            save(parts, record, None)?;
        }
        None => {}
    }
    remove_copies(parts, record)
}

fn put_back(parts: &HostParts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    parts.unmount(&paths)?;
    disks(parts, record).iter().try_for_each(|disk| parts.disks.put_back(disk))?;
    if record.ephemeral_bytes == 0 {
        parts.disks.remove(&paths.ephemeral_disk())?;
    }
    Ok(())
}

/// Removes the copies of an instance that keeps none.
pub fn remove_copies(parts: &HostParts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    parts.disks.remove(&paths.root_disk_kept())?;
    parts.disks.remove(&paths.ephemeral_disk_kept())
}

/// The disks that it has, and where a copy of each is kept.
fn disks(parts: &HostParts, record: &Record) -> Vec<DiskBackup> {
    let paths = parts.paths(record);
    let mut disks = vec![DiskBackup { file: paths.root_disk(), copy: paths.root_disk_kept() }];
    if record.ephemeral_bytes > 0 {
        disks.push(DiskBackup { file: paths.ephemeral_disk(), copy: paths.ephemeral_disk_kept() });
    }
    disks
}

fn save(parts: &HostParts, record: &mut Record, resize: Option<KeptResize>) -> Result<()> {
    let before = std::mem::replace(&mut record.resize, resize);
    let saved = record.save(&parts.paths(record));
    if saved.is_err() {
        record.resize = before;
    }
    saved
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::instance::record::tests::record;

    fn unconfirmed(since: chrono::DateTime<Utc>) -> Record {
        let flavor = Flavor { name: "before".into(), ..record().definition.flavor };
        let resize =
            KeptResize::Unconfirmed { flavor, root_bytes: 1 << 30, ephemeral_bytes: 0, since };
        Record { resize: Some(resize), ..record() }
    }

    #[test]
    fn a_request_is_done_once_and_until_the_instance_is_started() {
        let now = Utc::now();
        let flavor = record().definition.flavor;
        let other = Flavor { vcpus: 9, ..flavor.clone() };
        let earlier = Some(now - TimeDelta::seconds(1));
        let later = Some(now + TimeDelta::seconds(1));
        for (started_at, wanted, done) in [
            (None, &flavor, true),
            (earlier, &flavor, true),
            (later, &flavor, false),
            (earlier, &other, false),
        ] {
            let record = Record { started_at, ..unconfirmed(now) };
            assert_eq!(is_done(&record, wanted), done, "{started_at:?} {}", wanted.vcpus);
        }
        assert!(!is_done(&record(), &flavor));
        assert!(!is_done(&Record { resize: Some(KeptResize::Undoing), ..record() }, &flavor));
    }

    #[test]
    fn only_what_awaits_confirmation_is_in_the_way() {
        let fault = refuse_unconfirmed(&unconfirmed(Utc::now())).unwrap_err();
        assert_eq!(fault.kind, FaultKind::InstanceInvalidState);
        assert!(fault.detail.contains("\"before\""), "{fault}");
        for resize in [None, Some(KeptResize::Undoing)] {
            refuse_unconfirmed(&Record { resize, ..record() }).unwrap();
        }
    }
}
