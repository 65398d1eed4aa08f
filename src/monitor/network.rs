//! The network of a boot that the instance asked for: made by a child, with which goes the memory
//! that it took. A monitor is to stay as small as it began.

use std::io::{Read, Write, pipe};

use rustix::process::{
    Signal, WaitOptions, getpid, getppid, set_parent_process_death_signal, waitpid,
};

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::network::fresh::Turn;
use crate::store::layout::InstanceLayout;
use crate::sys::child::{self, Birth};

use super::log::log;

/// [`Turn::boot_again`]. The calling process must have a single thread.
pub(super) fn boot_again(layout: &InstanceLayout) -> Result<()> {
    let doing = "making the network of the next boot";
    let (mut said, mut says) = pipe().or_fault(doing)?;
    let monitor = getpid();
    let boot = || {
        // Nobody is to go on with it when the instance is taken off the host.
        set_parent_process_death_signal(Some(Signal::KILL)).or_fault(doing)?;
        if getppid() != Some(monitor) {
            return Err(Fault::internal(doing, "the monitor has ended"));
        }
        Turn::begin(layout)?.boot_again()
    };
    let life = || match boot() {
        Ok(known) => {
            if !known {
                log("nothing says what the instance was given: its network stays as it was");
            }
            0
        }
        Err(fault) => {
            let _ = says.write_all(fault.in_full().as_bytes());
            1
        }
    };
    let started = child::start(&Birth::default(), life);
    drop(says);
    let (pid, _) = started.or_fault(doing)?;
    let mut words = String::new();
    let read = said.read_to_string(&mut words);
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .or_fault(doing)?
        .ok_or_else(|| Fault::internal(doing, "its process is lost"))?;
    read.or_fault(doing)?;
    if status.exit_status() == Some(0) {
        return Ok(());
    }
    Err(Fault::new(FaultKind::NetworkFailed, format!("{doing}: {words}")))
}
