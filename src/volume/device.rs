//! Taking the loop device of a volume away.

use std::io;
use std::time::{Duration, Instant};

use crate::sys::loopdev::{self, LoopDevice};

/// How long a device that is to be free may take: programs of the host look at each for a moment.
const FREE: Duration = Duration::from_secs(5);

/// Takes the blocks away from whoever has it open: whether that was possible.
pub(super) fn empty(device: &LoopDevice) -> io::Result<bool> {
    const TRIES: u32 = 20;
    for _ in 0..TRIES {
        match device.empty() {
            // Older kernels: somebody has it mapped, or has just read of it.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => pause(),
            other => return other.map(|()| true),
        }
    }
    Ok(false)
}

/// Frees a device: whether it is free.
pub(super) fn clear(device: LoopDevice, mark: &str, keep: bool) -> io::Result<bool> {
    let (number, deadline) = (device.number, Instant::now() + FREE);
    match device.sync() {
        // Blocks that are gone take no more; whoever wrote has been told, or will be.
        Err(e) if keep => return Err(e),
        _ => {}
    }
    device.clear()?;
    drop(device);
    loop {
        // To look is to be a user for a moment, of which the last ends the device.
        let found = loopdev::open_marked(number)?.filter(|(_, of)| of == mark);
        let Some((device, _)) = found else { return Ok(true) };
        if Instant::now() > deadline {
            if keep {
                device.keep()?;
            }
            return Ok(false);
        }
        drop(device);
        pause();
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
