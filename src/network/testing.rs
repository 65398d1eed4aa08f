//! For the tests of this folder: namespaces of their own, never the host's.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use uuid::Uuid;

use super::netlink::Netlink;
use crate::sys::thread::in_netns;
use crate::types::Vif;

/// A fresh network namespace with its loopback up; it ends with this value.
pub struct TestNs(File);

impl TestNs {
    pub fn new() -> TestNs {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests named root_ need root");
            let mut netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").unwrap().unwrap();
            netlink.set_up(lo.index).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        TestNs(made.join().unwrap())
    }

    /// A path by which it can be entered.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Runs something inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.path(), || Ok(f())).unwrap()
    }
}

/// A valid VIF; each number makes another one.
pub fn vif(number: u8) -> Vif {
    Vif {
        id: Uuid::from_u128(0x1a2b_3c4d_0000 + u128::from(number)),
        devname: format!("tap1a2b3c4d-{number:02x}"),
        address: format!("fa:16:3e:00:00:{number:02x}"),
        name: None,
        mtu: 1500,
        checksum_offload: true,
        addresses: Vec::new(),
        routes: Vec::new(),
        bridge: false,
    }
}
