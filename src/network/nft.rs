//! Rules of nftables: set by its program, looked for without.

use std::process::Command;

use crate::fault::{Fault, FaultKind, Result};
use crate::network::netlink::{self, Netlink, OrNetworkFault, Tolerant};
use crate::sys::process::feed;

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`.
const GET_TABLE: u16 = (10 << 8) | 1;
const NFTA_TABLE_NAME: u16 = 1;

/// Runs `nft` over a ruleset: all of it is put in force, or nothing.
pub fn apply(ruleset: &str) -> Result<()> {
    let failed = |why: String| {
        Fault::new(FaultKind::NetworkFailed, format!("setting nftables rules with `nft`: {why}"))
    };
    match feed(Command::new("nft").args(["-f", "-"]), ruleset.as_bytes()) {
        Ok(done) => done.map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Fault::new(
            FaultKind::HostUnsupported,
            "keeping instances out of the host's own network needs the program nft; install nftables",
        )),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Whether there is a table of this name in all of these families (`NFPROTO_…`).
pub fn has_table(name: &str, families: &[u8]) -> Result<bool> {
    let doing = || format!("looking for the nftables table {name}");
    let mut netlink = Netlink::open_netfilter().or_network(doing())?;
    for family in families {
        if ask(&mut netlink, name, *family).unless(&[libc::ENOENT]).or_network(doing())?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ask(netlink: &mut Netlink, name: &str, family: u8) -> netlink::Result<()> {
    let length = 4 + name.len() + 1;
    // `struct nfgenmsg`, then the name, which ends with a zero.
    let mut body = vec![family, 0, 0, 0];
    body.extend((length as u16).to_ne_bytes());
    body.extend(NFTA_TABLE_NAME.to_ne_bytes());
    body.extend(name.as_bytes());
    body.resize(4 + length.next_multiple_of(4), 0);
    netlink.request(GET_TABLE, 0, &body)
}
