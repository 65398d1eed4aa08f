//! What a network device does on behalf of the network stack, and with how many queues: what
//! ethtool(8) shows and root of a network namespace may change.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::fault::{Fault, FaultKind, OrFault, Result};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
const SET_TX_CHECKSUM: u32 = 0x17;
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;
/// More than any kernel has; each is of 32 features.
const BLOCKS: usize = 4;

/// `struct ethtool_gfeatures`, each block `struct ethtool_get_features_block`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GetFeatures {
    command: u32,
    /// Blocks that there are.
    size: u32,
    /// What can be changed, is wished for, is so, and can never be changed.
    blocks: [[u32; 4]; BLOCKS],
}

/// `struct ethtool_sfeatures`, each block `struct ethtool_set_features_block`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SetFeatures {
    command: u32,
    size: u32,
    /// What is to change, and to what.
    blocks: [[u32; 2]; BLOCKS],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Channels {
    command: u32,
    /// Most for receiving, sending, else, both.
    most: [u32; 4],
    /// The same now.
    now: [u32; 4],
}

/// A device's settings.
#[derive(Clone, Copy)]
pub struct Settings {
    features: GetFeatures,
    channels: Channels,
}

impl Settings {
    /// Those of a device in the calling thread's network namespace.
    pub fn of(device: &str) -> Result<Settings> {
        let mut features =
            GetFeatures { command: GET_FEATURES, size: BLOCKS as u32, ..Default::default() };
        ask(device, &mut features)?;
        let mut channels = Channels { command: GET_CHANNELS, ..Default::default() };
        ask(device, &mut channels)?;
        Ok(Settings { features, channels })
    }

    /// Gives them to another device of the same kind, in the calling thread's network namespace.
    pub fn give(&self, device: &str) -> Result<()> {
        let blocks = self.features.blocks.map(|[changeable, wished, ..]| [changeable, wished]);
        ask(device, &mut SetFeatures { command: SET_FEATURES, size: self.features.size, blocks })?;
        ask(device, &mut Channels { command: SET_CHANNELS, ..self.channels })
    }
}

/// Has a device in the calling thread's network namespace hand over packets with their checksums
/// filled in, which rules out handing over segments to be cut, too.
pub fn fill_in_checksums(device: &str) -> Result<()> {
    // `struct ethtool_value`.
    ask(device, &mut [SET_TX_CHECKSUM, 0])
}

/// One request, which the kernel reads and answers in place.
fn ask<T: Copy>(device: &str, request: &mut T) -> Result<()> {
    let doing = || format!("asking for what {device} does for the network stack");
    let socket = UdpSocket::bind("0.0.0.0:0").or_fault(doing())?;
    // SAFETY: an all-zero ifreq is valid: integers, bytes and null pointers.
    let mut named: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = device.as_bytes();
    let room = named.ifr_name.len() - 1;
    if name.len() > room {
        return Err(Fault::new(FaultKind::NetworkFailed, format!("{device} is too long a name")));
    }
    for (to, from) in named.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    named.ifr_ifru.ifru_data = (request as *mut T).cast();
    // SAFETY: the request begins with its command, by which the kernel knows its size, and that it
    // was told of the blocks' number; both live through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut named) };
    // Setting features gives bits that say what of it was not done at once.
    if done >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).or_kind(FaultKind::NetworkFailed, doing())
    }
}
