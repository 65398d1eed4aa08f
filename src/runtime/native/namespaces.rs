//! The first stage: from the host into the instance's namespaces.
//!
//! It begins as the host's root in the monitor's namespaces, and what needs that right happens
//! here: the cgroups of version 1, the limits, `oom_score_adj`. Then it is root of the instance,
//! with rights over nothing else, and makes the first process, of which it is no parent.

use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space};

use super::init;
use super::plan::Plan;
use super::rights::{as_root_of_the_host, become_its_root, die_with_the_monitor};
use super::talk::{Line, Message};
use crate::fault::{OrFault, Result};
use crate::sys::child::{self, Birth};

/// The first stage's life; its exit code is of no interest.
pub(super) fn first_stage(plan: &Plan, line: &Line) -> i32 {
    match go(plan, line) {
        Ok(()) => 0,
        Err(fault) => {
            line.fail(&fault);
            1
        }
    }
}

fn go(plan: &Plan, line: &Line) -> Result<()> {
    die_with_the_monitor()?;
    plan.cgroups.enter()?;
    as_root_of_the_host(plan.oom_score_adj, &plan.bundle.config.process.rlimits)?;
    let [users, network] = &plan.joined;
    for (file, kind) in [(users, LinkNameSpaceType::User), (network, LinkNameSpaceType::Network)] {
        move_into_link_name_space(file.as_fd(), Some(kind))
            .or_fault("joining the instance's namespaces")?;
    }
    become_its_root()?;
    // Only now: the kernel notes for the namespaces, and for the message queues' file system,
    // who made them.
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    let birth = Birth { namespaces, of_parent: true, cgroup: None };
    let (pid, _) = child::start(&birth, || init::life(plan, line)).or_fault("making namespaces")?;
    line.say(&Message::Born(pid.as_raw_pid()), None)
}
