//! Rates in force: a token bucket in each direction of a VIF's host end.
//!
//! What the host's end sends is inbound to the instance and is shaped there.
//! What arrives at it comes from the instance; Linux queues nothing on
//! arrival, so it is led through an IFB device of the VIF's own and shaped as
//! that device's traffic. Both are out of reach of root in the instance.

use sha2::{Digest, Sha256};

use crate::fault::{Fault, FaultKind, Result};
use crate::network::netlink::{self, InfoKindName, Link, Netlink, OrNetworkFault, Tolerant};
use crate::network::rates::{Rate, Rates};
use crate::network::tc;

/// How the kernel says that there is no such queueing discipline on a link.
const NOT_THERE: [i32; 2] = [libc::ENOENT, libc::EINVAL];
/// Begin of the note beside an IFB of ours; the host end's name follows.
const NOTE: &str = "berth: sent by ";

/// Name of the IFB device through which packets arriving at `devname` are led.
pub fn ifb_name(devname: &str) -> String {
    let digest = Sha256::digest(devname.as_bytes());
    format!("ifb{}", hex::encode(&digest[..6]))
}

/// Puts the rates in force on a host end, instead of those before.
///
/// `guarded`: what arrives passes a [`super::guard`] first, which stays.
pub fn apply(netlink: &mut Netlink, host: &Link, rates: &Rates, guarded: bool) -> Result<()> {
    match &rates.inbound {
        Some(rate) => tc::shape(netlink, host.index, rate).map_err(|e| refused(&host.name, e))?,
        None => unshape(netlink, host)?,
    }
    match &rates.outbound {
        Some(rate) => limit_outbound(netlink, host, rate, guarded),
        None => free_outbound(netlink, Some((host, guarded)), &host.name),
    }
}

/// Lets nothing through to the instance until [`apply`]. What it sends needs
/// no care: a frozen process sends nothing, and the kernel only answers.
pub fn silence(netlink: &mut Netlink, host: &Link) -> Result<()> {
    tc::mute(netlink, host.index).or_network(format!("silencing {}", host.name))
}

/// Removes what [`apply`] made beside a host end that may be gone already.
pub fn clear(netlink: &mut Netlink, devname: &str) -> Result<()> {
    free_outbound(netlink, None, devname)
}

/// Removes IFB devices whose host end is gone; gives their number.
pub fn sweep(netlink: &mut Netlink) -> Result<usize> {
    let doing = "looking for IFB devices without use";
    let mut swept = 0;
    for ifb in netlink.links_of_kind(InfoKindName::Ifb).or_network(doing)? {
        let Some(devname) = ifb.alias.strip_prefix(NOTE) else { continue };
        if netlink.link(devname).or_network(doing)?.is_none() {
            delete(netlink, &ifb)?;
            swept += 1;
        }
    }
    Ok(swept)
}

fn unshape(netlink: &mut Netlink, host: &Link) -> Result<()> {
    for undo in [tc::unshape, tc::unmute] {
        undo(netlink, host.index)
            .unless(&NOT_THERE)
            .or_network(format!("freeing {} of its rate", host.name))?;
    }
    Ok(())
}

fn limit_outbound(netlink: &mut Netlink, host: &Link, rate: &Rate, guarded: bool) -> Result<()> {
    let name = ifb_name(&host.name);
    let made = netlink
        .create_link(&name, InfoKindName::Ifb, None)
        .unless(&[libc::EEXIST])
        .map_err(|error| refused(&host.name, error))?;
    let limited = lead_through(netlink, host, &name, rate, guarded);
    if limited.is_err() && made.is_some() {
        // Best effort: the fault that led here is the one to report.
        let _ = free_outbound(netlink, Some((host, guarded)), &host.name);
    }
    limited
}

/// The IFB is ready before the first packet is led to it.
fn lead_through(
    netlink: &mut Netlink,
    host: &Link,
    ifb: &str,
    rate: &Rate,
    guarded: bool,
) -> Result<()> {
    let doing = || format!("limiting what {} takes from the instance", host.name);
    let ifb = netlink.link(ifb).or_network(doing())?;
    let ifb = ifb.filter(|ifb| ifb.kind == InfoKindName::Ifb.name()).ok_or_else(|| {
        Fault::new(FaultKind::NetworkFailed, format!("{}: the IFB device is missing", doing()))
    })?;
    netlink.set_alias(ifb.index, &format!("{NOTE}{}", host.name)).or_network(doing())?;
    tc::shape(netlink, ifb.index, rate).map_err(|error| refused(&host.name, error))?;
    netlink.set_up(ifb.index).or_network(doing())?;
    tc::open_ingress(netlink, host.index)
        .unless(&[libc::EEXIST])
        .map_err(|error| refused(&host.name, error))?;
    tc::redirect(netlink, host.index, ifb.index, guarded)
        .map_err(|error| refused(&host.name, error))
}

/// The redirection goes before its target, or packets would be lost between.
/// An ingress discipline without an IFB of ours is someone else's, and stays.
fn free_outbound(netlink: &mut Netlink, host: Option<(&Link, bool)>, devname: &str) -> Result<()> {
    let doing = || format!("freeing what {devname} takes from the instance");
    let Some(ifb) = netlink.link(&ifb_name(devname)).or_network(doing())? else { return Ok(()) };
    if let Some((host, guarded)) = host {
        let undo = if guarded { tc::unredirect } else { tc::close_ingress };
        undo(netlink, host.index).unless(&NOT_THERE).or_network(doing())?;
    }
    if ifb.kind == InfoKindName::Ifb.name() { delete(netlink, &ifb) } else { Ok(()) }
}

fn delete(netlink: &mut Netlink, ifb: &Link) -> Result<()> {
    netlink
        .delete_link(ifb.index)
        .unless(&[libc::ENODEV])
        .or_network(format!("removing {}", ifb.name))
        .map(drop)
}

/// A kernel that lacks a part says so with one of two errors.
fn refused(devname: &str, error: netlink::Error) -> Fault {
    let doing = format!("limiting the rate of {devname}");
    if matches!(error.errno(), libc::ENOENT | libc::EOPNOTSUPP) {
        return Fault::new(
            FaultKind::HostUnsupported,
            format!(
                "{doing}: {error}; the kernel needs sch_tbf, sch_ingress, cls_u32, act_mirred and ifb"
            ),
        );
    }
    Err::<(), _>(error).or_network(doing).expect_err("it was made from an error")
}
