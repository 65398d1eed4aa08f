//! Rules of nftables: set by its program, looked for without.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::fault::{Fault, FaultKind, Result};
use crate::network::netlink::{self, Netlink, OrNetworkFault, Tolerant};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`.
const GET_TABLE: u16 = (10 << 8) | 1;
const NFTA_TABLE_NAME: u16 = 1;

/// Runs `nft` over a ruleset: all of it is put in force, or nothing.
pub fn apply(ruleset: &str) -> Result<()> {
    let failed = |why: String| {
        Fault::new(FaultKind::NetworkFailed, format!("setting nftables rules with `nft`: {why}"))
    };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Fault::new(
                FaultKind::HostUnsupported,
                "keeping instances out of the host's own network needs the program nft; install nftables",
            ),
            _ => failed(error.to_string()),
        })?;
    // Dropped at once, which is nft's end of file. If it ended before reading
    // all, what it said is of more use than the broken pipe.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(ruleset.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    written.unwrap_or(Ok(())).map_err(|error| failed(error.to_string()))
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
