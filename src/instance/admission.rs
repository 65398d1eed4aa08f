//! Whether an action is possible on an instance as it is: the table of
//! [`state`](super::state), and what rescue and quiesce say to it.

use super::action::Action;
use super::handle::View;
use super::moved::Departure;
use super::state::{self, Admission};
use crate::fault::{Fault, FaultKind, Result};
use crate::types::MigrationState;

/// Whether `action` is possible on the instance, and whether it has anything to do.
pub fn admit(instance: &View, action: &Action) -> Result<Admission> {
    let (verb, power_state) = (action.verb(), instance.power_state());
    if let Some(departure) = instance.record.departure.as_ref().filter(|gone| gone.is_away()) {
        return admit_away(departure, action);
    }
    let admission = match &instance.record.rescue {
        None => state::admit(verb, power_state)?,
        Some(rescue) => {
            let again =
                matches!(action, Action::Rescue(wanted) if wanted.image_id == rescue.image_id);
            state::admit_rescued(verb, power_state, again)?
        }
    };
    if instance.record.quiesced && verb.is_held_by_quiesce() && admission == Admission::Do {
        return Err(Fault::new(
            FaultKind::InstanceInvalidState,
            format!("{} is not possible while the instance is quiesced", verb.name()),
        ));
    }
    Ok(admission)
}

/// Of one that is another host's, or may be: it is deleted or taken back, and nothing else.
fn admit_away(departure: &Departure, action: &Action) -> Result<Admission> {
    let moved = departure.state == MigrationState::Moved;
    match action {
        Action::Delete | Action::RevertMigration(_) => Ok(Admission::Do),
        Action::Migrate(wanted) if moved && wanted.to == departure.to => Ok(Admission::Nothing),
        // Nothing of it runs.
        Action::Stop(_) => Ok(Admission::Nothing),
        _ => {
            let where_it_is = if moved {
                format!("the instance has moved to {}: ask there", departure.to)
            } else {
                format!(
                    "it is not known yet whether {} has taken the instance: this is found out as \
                     soon as that service answers",
                    departure.to
                )
            };
            Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!(
                    "{} is not possible, {where_it_is}; POST …/migrate/revert takes it back, and \
                     DELETE removes what is kept of it here",
                    action.verb().name()
                ),
            ))
        }
    }
}

/// Sequences of what is asked of an instance and of what happens to it. The
/// host is a model; admission, power state and record are the real ones.
#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::instance::record::tests::record;
    use crate::instance::record::{self, Desired, Frozen, KeptResize, Record};
    use crate::sys::process::ProcessId;
    use crate::types::{
        ExitStatus, Migrate, PowerState, Reboot, RebootType, Rescue, Resize, RevertMigration,
        SetPassword, Stop,
    };

    /// What comes next.
    #[derive(Clone, Debug)]
    enum Step {
        /// Somebody asks for something.
        Asked(Action),
        /// The first process ends by itself, with this status.
        Ends(i32),
        /// The monitor is killed.
        MonitorLost,
        /// The service is started anew, and knows what the record says.
        Restart,
    }

    #[derive(Debug)]
    struct Machine {
        view: View,
        gone: bool,
    }

    fn exit(code: i32) -> Option<ExitStatus> {
        Some(ExitStatus {
            code: Some(code),
            signal: None,
            oom_killed: false,
            at: chrono::Utc::now(),
        })
    }

    impl Machine {
        fn new() -> Machine {
            Machine { view: View { record: record(), init: None, task_state: None }, gone: false }
        }

        fn change(&mut self, change: impl FnOnce(Record) -> Record) {
            self.view.record = change(self.view.record.clone());
        }

        fn start(&mut self) {
            self.change(|record| record.started("a boot"));
            self.view.init = Some(ProcessId { pid: 1, start_time: 1 });
        }

        fn power_off(&mut self) {
            self.change(Record::powered_off);
            self.view.init = None;
        }

        fn stop(&mut self) {
            self.power_off();
            self.change(|record| Record { desired: Desired::Stopped, exit: exit(0), ..record });
        }

        /// Does what the actor does; whether it was admitted, and as what.
        fn ask(&mut self, action: &Action) -> Option<Admission> {
            if self.gone {
                return None;
            }
            let admission = admit(&self.view, action).ok()?;
            match (admission, action) {
                (Admission::Nothing, Action::Start) => {
                    self.view.record.desired = Desired::Running;
                }
                (Admission::Nothing, Action::Stop(_)) => {
                    self.view.record.desired = Desired::Stopped;
                }
                (Admission::Nothing, _) => {}
                (Admission::Do, action) => self.act(action),
            }
            Some(admission)
        }

        fn act(&mut self, action: &Action) {
            let freeze = |frozen| move |record| Record { frozen, ..record };
            let quiesce = |quiesced| move |record| Record { quiesced, ..record };
            match action {
                Action::Start => self.start(),
                Action::Stop(_) => self.stop(),
                Action::Reboot(_) => {
                    self.power_off();
                    self.start();
                }
                Action::Pause => self.change(freeze(Some(Frozen::Paused))),
                Action::Suspend => self.change(freeze(Some(Frozen::Suspended))),
                Action::Unpause | Action::Resume => self.change(freeze(None)),
                Action::Quiesce => self.change(quiesce(true)),
                Action::Unquiesce => self.change(quiesce(false)),
                Action::Resize(wanted) if wanted.keep => {
                    self.stop();
                    self.change(|record| {
                        let resize = Some(KeptResize::Unconfirmed {
                            flavor: record.definition.flavor.clone(),
                            root_bytes: record.root_bytes,
                            ephemeral_bytes: record.ephemeral_bytes,
                            since: chrono::Utc::now(),
                        });
                        Record { resize, ..record }
                    });
                }
                Action::RevertResize => {
                    if self.view.record.resize.is_some() && self.view.init.is_some() {
                        self.stop();
                    }
                    self.change(|record| Record { resize: None, ..record });
                }
                Action::ConfirmResize => self.change(|record| Record { resize: None, ..record }),
                Action::Rescue(wanted) => {
                    let rescue = record::Rescue {
                        image_id: wanted.image_id,
                        layers: Vec::new(),
                        image_config: Default::default(),
                        disk_bytes: 1 << 30,
                        environment: Default::default(),
                    };
                    self.change(|record| Record { rescue: Some(rescue), ..record });
                    self.start();
                }
                Action::Unrescue => {
                    self.power_off();
                    self.change(|record| Record { rescue: None, ..record });
                    self.start();
                }
                Action::Delete => {
                    self.power_off();
                    self.view.record.desired = Desired::Deleted;
                    self.gone = true;
                }
                Action::Resize(_)
                | Action::AttachInterface(_)
                | Action::DetachInterface(_)
                | Action::AttachVolume(..)
                | Action::DetachVolume { .. }
                | Action::ExtendVolume(_)
                | Action::SetPassword(_)
                | Action::Migrate(_)
                | Action::RevertMigration(_)
                | Action::Dump
                | Action::Snapshot(_) => {}
            }
        }

        fn happen(&mut self, step: &Step) {
            match step {
                Step::Asked(action) => {
                    self.ask(action);
                }
                Step::Ends(code) if self.view.init.is_some() => {
                    self.stop();
                    self.view.record.exit = exit(*code);
                }
                Step::MonitorLost if self.view.init.is_some() => {
                    self.power_off();
                    if self.view.record.desired == Desired::Running {
                        self.start();
                    }
                }
                Step::Ends(_) | Step::MonitorLost => {}
                Step::Restart => self.view.record = read_back(&self.view.record),
            }
        }

        /// All that an observer or another request can tell.
        fn seen(&self) -> impl PartialEq + std::fmt::Debug + use<> {
            let Record { desired, frozen, quiesced, rescue, resize, .. } = self.view.record.clone();
            let rescued = rescue.map(|rescue| rescue.image_id);
            let power_state = self.view.power_state();
            (power_state, desired, frozen, quiesced, rescued, resize.is_some(), self.gone)
        }
    }

    /// The record as the next service reads it.
    fn read_back(record: &Record) -> Record {
        serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap()
    }

    #[test]
    fn what_has_moved_is_deleted_or_taken_back_and_nothing_else() {
        let migrate =
            |to: &str| Action::Migrate(Migrate { to: to.to_owned(), flavor: None, timeout: None });
        for state in [MigrationState::Committing, MigrationState::Moved] {
            let mut machine = Machine::new();
            machine.view.record.departure = Some(Departure {
                move_id: Uuid::nil(),
                to: "https://b:1".into(),
                state,
                ran: true,
                since: chrono::Utc::now(),
            });
            let admitted = |action: &Action| admit(&machine.view, action).ok();
            let moved = state == MigrationState::Moved;
            assert_eq!(admitted(&migrate("https://b:1")), moved.then_some(Admission::Nothing));
            assert_eq!(admitted(&migrate("https://c:1")), None);
            let revert = Action::RevertMigration(RevertMigration::default());
            assert_eq!(admitted(&revert), Some(Admission::Do));
            for action in actions() {
                let expected = match action {
                    Action::Delete => Some(Admission::Do),
                    Action::Stop(_) => Some(Admission::Nothing),
                    _ => None,
                };
                assert_eq!(admitted(&action), expected, "{action:?}");
            }
        }
    }

    fn actions() -> Vec<Action> {
        let rescue = |n| {
            Action::Rescue(Rescue { image_id: Uuid::from_u128(n), environment: None, files: None })
        };
        let resize = |keep| {
            Action::Resize(Resize { flavor: record().definition.flavor, keep, timeout: None })
        };
        let reboot = |reboot_type| Action::Reboot(Reboot { reboot_type, timeout: None });
        vec![
            Action::Start,
            Action::Stop(Stop::default()),
            reboot(RebootType::Soft),
            reboot(RebootType::Hard),
            Action::Pause,
            Action::Unpause,
            Action::Suspend,
            Action::Resume,
            resize(false),
            resize(true),
            Action::ConfirmResize,
            Action::RevertResize,
            Action::DetachInterface(Uuid::nil()),
            Action::SetPassword(SetPassword { user: "root".into(), password: "secret".into() }),
            Action::Dump,
            Action::Quiesce,
            Action::Unquiesce,
            rescue(1),
            rescue(2),
            Action::Unrescue,
            Action::Delete,
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let alive: Vec<Action> =
            actions().into_iter().filter(|action| !matches!(action, Action::Delete)).collect();
        let step = prop_oneof![
            20 => proptest::sample::select(alive).prop_map(Step::Asked),
            2 => (0..3).prop_map(Step::Ends),
            1 => Just(Step::MonitorLost),
            2 => Just(Step::Restart),
        ];
        proptest::collection::vec(step, 0..24)
    }

    /// Whether Nova, which repeats what it got no answer to, must find the
    /// repetition fulfilled.
    fn is_repeated(action: &Action) -> bool {
        let once = matches!(action, Action::Reboot(_) | Action::Resize(Resize { keep: true, .. }));
        !once
    }

    proptest! {
        #[test]
        fn an_instance_is_sound_whatever_is_asked_and_happens(steps in steps()) {
            let mut machine = Machine::new();
            for step in &steps {
                machine.happen(step);
                let View { record, init, .. } = &machine.view;
                let state = machine.view.power_state();
                // What is off is neither frozen nor held, and is not meant to run.
                prop_assert_eq!(init.is_some(), record.desired == Desired::Running, "{:?}", step);
                prop_assert!(init.is_some() || record.frozen.is_none(), "{:?}", step);
                prop_assert!(init.is_some() || !record.quiesced, "{:?}", step);
                let on = matches!(
                    state,
                    PowerState::Running | PowerState::Paused | PowerState::Suspended
                );
                prop_assert_eq!(on, init.is_some());
                prop_assert_eq!(state == PowerState::Running, on && record.frozen.is_none());
                // The next service finds the same instance, and decides the same.
                let read = View { record: read_back(record), ..machine.view.clone() };
                prop_assert_eq!(read.power_state(), state);
                for action in actions() {
                    let (here, there) = (admit(&machine.view, &action), admit(&read, &action));
                    prop_assert_eq!(here.ok(), there.ok(), "{:?}", action);
                }
            }
        }

        #[test]
        fn a_request_that_is_repeated_is_fulfilled(steps in steps()) {
            for action in actions().iter().filter(|action| is_repeated(action)) {
                let mut machine = Machine::new();
                steps.iter().for_each(|step| machine.happen(step));
                let Some(_) = machine.ask(action) else { continue };
                let once = machine.seen();
                let again = machine.ask(action);
                prop_assert!(again.is_some() || machine.gone, "{:?} is refused again", action);
                prop_assert_eq!(once, machine.seen(), "{:?}", action);
            }
        }

        #[test]
        fn what_is_refused_or_fulfilled_changes_nothing_but_the_wish(steps in steps()) {
            for action in actions() {
                let mut machine = Machine::new();
                steps.iter().for_each(|step| machine.happen(step));
                let before = machine.seen();
                if machine.ask(&action) != Some(Admission::Do) {
                    prop_assert_eq!(before, machine.seen(), "{:?}", action);
                }
            }
        }

        #[test]
        fn there_is_always_a_cure_and_an_end(steps in steps()) {
            let mut machine = Machine::new();
            steps.iter().for_each(|step| machine.happen(step));
            let hard = Reboot { reboot_type: RebootType::Hard, timeout: None };
            prop_assert_eq!(machine.ask(&Action::Reboot(hard)), Some(Admission::Do));
            prop_assert_eq!(machine.view.power_state(), PowerState::Running);
            prop_assert!(!machine.view.record.quiesced);
            steps.iter().for_each(|step| machine.happen(step));
            prop_assert_eq!(machine.ask(&Action::Delete), Some(Admission::Do));
            for action in actions() {
                prop_assert_eq!(machine.ask(&action), None, "{:?}", action);
            }
        }

        #[test]
        fn disks_that_are_held_or_not_its_own_are_left_alone(steps in steps()) {
            let mut machine = Machine::new();
            for step in &steps {
                machine.happen(step);
                let does = |action: &Action| admit(&machine.view, action).ok() == Some(Admission::Do);
                for action in actions().iter().filter(|action| does(action)) {
                    let record = &machine.view.record;
                    let on_its_disks = matches!(action, Action::Resize(_));
                    prop_assert!(!(record.quiesced && on_its_disks), "{:?}", action);
                    let on_its_own =
                        on_its_disks || matches!(action, Action::Quiesce | Action::RevertResize);
                    prop_assert!(!(record.rescue.is_some() && on_its_own), "{:?}", action);
                    let inside = matches!(action, Action::SetPassword(_));
                    let frozen = record.frozen.is_some() || record.quiesced;
                    prop_assert!(!(frozen && inside), "{:?}", action);
                }
            }
        }
    }
}
