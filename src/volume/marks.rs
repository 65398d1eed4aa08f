//! By what the loop devices of volumes are known.

use uuid::Uuid;

/// What each mark begins with.
pub(super) const MARKS: &str = "berth:";

/// Characters of a volume's id in its mark.
const ID: usize = 20;

/// What all marks of an instance begin with.
pub fn marks(instance: Uuid) -> String {
    format!("{MARKS}{}.", instance.simple())
}

/// The mark of an instance's volume: [`MARK`](crate::sys::loopdev::MARK) bytes at most.
pub fn mark(instance: Uuid, volume: Uuid) -> String {
    let id = volume.simple().to_string();
    format!("{}{}", marks(instance), &id[..ID])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::loopdev;

    #[test]
    fn marks_fit_and_tell_instances_apart() {
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        let mark = mark(one, Uuid::new_v4());
        assert!(mark.len() <= loopdev::MARK && mark.starts_with(&marks(one)));
        assert!(!mark.starts_with(&marks(two)));
    }
}
