//! The veth pair of one VIF: one end on the host, the other in the instance.
//!
//! The host's end is set up last. So one that is up is complete, and one that
//! is down is done again, which repairs an attachment that was interrupted.

use std::fs::File;
use std::path::Path;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::network::guard;
use crate::network::netlink::{Link, Netlink, OrNetworkFault, Tolerant, Veth};
use crate::network::plan::VifPlan;
use crate::network::wire;
use crate::sys::ethtool::{self, Settings};
use crate::sys::thread::in_netns;

/// What makes a host's end a port of our bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The bridge's index.
    pub bridge: u32,
    /// Whether it hands nothing to other such ports.
    pub isolated: bool,
}

/// What the host has under a VIF's `devname`.
enum Found {
    Nothing,
    /// The wanted veth; its other end bears `inner` as its name by now.
    Right {
        host: Link,
        inner: String,
    },
    /// A veth of this VIF that is not as wanted.
    Wrong(Link),
}

/// Makes what the plan says, if it is not there already.
///
/// The host's end becomes `port` of our bridge, or is left for somebody else's.
/// What this call made is removed again if it fails.
pub fn attach(plan: &VifPlan, net_ns: &Path, port: Option<Port>) -> Result<()> {
    let ns = File::open(net_ns).or_kind(
        FaultKind::NetworkFailed,
        format!("opening the network namespace {}", net_ns.display()),
    )?;
    let mut netlink = open()?;
    match find(&mut netlink, plan, &ns)? {
        Found::Right { host, inner } => repair(&mut netlink, plan, net_ns, port, host, inner),
        Found::Wrong(host) => {
            remove(&mut netlink, &host)?;
            create(&mut netlink, plan, net_ns, &ns, port)
        }
        Found::Nothing => create(&mut netlink, plan, net_ns, &ns, port),
    }
}

/// Hands the instance's end over from the namespace at `from` to the one at `to`, where it is
/// down and bare, if it is still at `from`. False: the pair could not be saved and is removed.
pub fn hand_over(plan: &VifPlan, from: &Path, to: &Path) -> Result<bool> {
    let devname = &plan.devname;
    let doing = || format!("handing {devname} over to the next boot");
    let open_ns = |path: &Path| File::open(path).or_kind(FaultKind::NetworkFailed, doing());
    let (source, target) = (open_ns(from)?, open_ns(to)?);
    let mut netlink = open()?;
    let host = netlink.link(devname).or_network(doing())?;
    let Some(host) = host.filter(|host| host.kind == "veth") else { return Ok(true) };
    let (Some(peer_ns), Some(peer)) = (host.peer_ns, host.peer) else { return Ok(true) };
    if netlink.namespace_id(&source).or_network(doing())? != Some(peer_ns) {
        return Ok(true);
    }
    let wanted = veth(plan, &target, None);
    // A pair's ends are born alike, and only the host changes its own.
    let handed = Settings::of(devname).and_then(|settings| {
        in_netns(from, || {
            let mut netlink = open()?;
            let gone = || Fault::new(FaultKind::NetworkFailed, "it has vanished");
            let inner = netlink.link_by_index(peer).or_network(doing())?.ok_or_else(gone)?;
            netlink.forget_other_names(&inner).or_network(doing())?;
            netlink.hand_over(inner.index, &wanted).or_network(doing())
        })?;
        in_netns(to, || settings.give(&plan.name))
    });
    // Whatever is the matter with it: a new one has nothing of that.
    if let Err(fault) = handed {
        tracing::warn!(fault = %fault.in_full(), "making {devname} anew");
        remove(&mut netlink, &host)?;
        return Ok(false);
    }
    Ok(true)
}

/// Sets the instance's end up, as it was given, in a namespace in which nothing has run.
pub fn configure(plan: &VifPlan, net_ns: &Path) -> Result<()> {
    in_netns(net_ns, || configure_inside(plan, &plan.name))
}

/// Makes a host's end a port of somebody's bridge again. That one gone, the end is left for a
/// plugger.
pub fn plug(netlink: &mut Netlink, host: &Link, bridge: &str) -> Result<()> {
    let doing = || format!("attaching {} to the bridge {bridge} again", host.name);
    match netlink.link(bridge).or_network(doing())? {
        Some(bridge) if bridge.is_bridge() => {
            netlink.set_controller(host.index, bridge.index).or_network(doing())
        }
        _ => Ok(()),
    }
}

/// Removes the pair of a VIF, which bears its `alias`. Absence is success, and so is
/// a device that is not of this VIF: another's name may have been asked for.
pub fn detach(netlink: &mut Netlink, devname: &str, alias: &str) -> Result<()> {
    let link = netlink.link(devname).or_network(format!("looking for {devname}"))?;
    // One whose making was interrupted has no alias yet, and is not up.
    let half_made = |link: &Link| link.peer_ns.is_some() && link.alias.is_empty() && !link.up;
    let of_this = |link: &Link| link.kind == "veth" && (link.alias == alias || half_made(link));
    match link.filter(of_this) {
        Some(link) => remove(netlink, &link),
        None => Ok(()),
    }
}

/// A veth to another namespace, or one that berth made.
pub fn is_instances(link: &Link) -> bool {
    link.kind == "veth" && (link.peer_ns.is_some() || link.alias.starts_with("berth:"))
}

/// A netlink socket of the calling thread's namespace.
pub fn open() -> Result<Netlink> {
    Netlink::open().or_network("opening a netlink socket")
}

fn find(netlink: &mut Netlink, plan: &VifPlan, ns: &File) -> Result<Found> {
    let devname = &plan.devname;
    let doing = || format!("looking at {devname}");
    let Some(host) = netlink.link(devname).or_network(doing())? else {
        return Ok(Found::Nothing);
    };
    if host.kind != "veth" {
        return Err(name_in_use(devname, "it is no veth"));
    }
    let ns_id = netlink.namespace_id(ns).or_network(doing())?;
    match (host.peer_ns, host.peer) {
        (Some(peer_ns), Some(peer)) if ns_id == Some(peer_ns) => {
            let inner = netlink.link_elsewhere(peer_ns, peer).or_network(doing())?;
            // Root inside may give its interface another name and address, which must not cost
            // it the connection at the next call: the next boot has it as it was given.
            let complete = host.up && host.alias == plan.alias;
            Ok(match inner.filter(|inner| complete || inner.mac == plan.mac) {
                Some(inner) => Found::Right { host, inner: inner.name },
                None => Found::Wrong(host),
            })
        }
        // Of this VIF, but in a namespace that the instance had before.
        _ if host.alias == plan.alias => Ok(Found::Wrong(host)),
        _ => Err(name_in_use(devname, "its other end is not in this instance")),
    }
}

fn name_in_use(devname: &str, why: &str) -> Fault {
    Fault::new(
        FaultKind::InterfaceExists,
        format!(
            "the host has a device {devname} already and {why}; remove it or take another devname"
        ),
    )
}

fn create(
    netlink: &mut Netlink,
    plan: &VifPlan,
    net_ns: &Path,
    ns: &File,
    port: Option<Port>,
) -> Result<()> {
    let devname = &plan.devname;
    let made = netlink
        .create_veth(&veth(plan, ns, port))
        .unless(&[libc::EEXIST])
        .or_network(format!("making the veth pair {devname}"))?;
    if made.is_none() {
        return Err(Fault::new(
            FaultKind::InterfaceExists,
            format!(
                "the name {devname} on the host or {} inside is taken; take another",
                plan.name
            ),
        ));
    }
    let set_up = set_up_both_ends(netlink, plan, net_ns, port, &plan.name);
    if set_up.is_err() {
        // Best effort: the fault that led here is the one to report.
        let _ = detach(netlink, devname, &plan.alias);
    }
    set_up
}

fn veth<'a>(plan: &'a VifPlan, peer_ns: &'a File, port: Option<Port>) -> Veth<'a> {
    Veth {
        name: &plan.devname,
        mtu: plan.mtu,
        group: wire::GROUP,
        controller: port.map(|port| port.bridge),
        peer_ns,
        peer_name: &plan.name,
        peer_mac: plan.mac,
    }
}

/// Configures the inner end, then the host's end, and sets the latter up.
fn set_up_both_ends(
    netlink: &mut Netlink,
    plan: &VifPlan,
    net_ns: &Path,
    port: Option<Port>,
    inner: &str,
) -> Result<()> {
    in_netns(net_ns, || configure_inside(plan, inner))?;
    let devname = &plan.devname;
    let doing = || format!("setting {devname} up");
    let gone = || Fault::new(FaultKind::NetworkFailed, format!("{devname} has vanished"));
    let host = netlink.link(devname).or_network(doing())?.ok_or_else(gone)?;
    wall(netlink, plan, &host, port)?;
    netlink.set_up(host.index).or_network(doing())?;
    match netlink.link(devname).or_network(doing())?.ok_or_else(gone)? {
        host if host.up => Ok(()),
        _ => Err(Fault::new(FaultKind::NetworkFailed, format!("{devname} does not stay up"))),
    }
}

/// Sets the inner end up, with its addresses and routes. Those that are there stay.
fn configure_inside(plan: &VifPlan, inner: &str) -> Result<()> {
    let mut netlink = open()?;
    let doing = || format!("configuring {inner} in the instance");
    let link = netlink.link(inner).or_network(doing())?.ok_or_else(|| {
        Fault::new(FaultKind::NetworkFailed, format!("{inner} has vanished from the instance"))
    })?;
    if !plan.checksum_offload {
        ethtool::fill_in_checksums(inner)?;
    }
    netlink.set_up(link.index).or_network(doing())?;
    for (address, prefix) in &plan.addresses {
        netlink
            .add_address(link.index, *address, *prefix)
            .unless(&[libc::EEXIST])
            .or_network(format!("adding {address}/{prefix} to {inner} in the instance"))?;
    }
    for route in &plan.routes {
        netlink.add_route(link.index, route).unless(&[libc::EEXIST]).or_network(format!(
            "adding the route to {}/{} in the instance",
            route.destination, route.prefix
        ))?;
    }
    Ok(())
}

fn repair(
    netlink: &mut Netlink,
    plan: &VifPlan,
    net_ns: &Path,
    port: Option<Port>,
    host: Link,
    inner: String,
) -> Result<()> {
    let bridge = port.map(|port| port.bridge);
    if let Some(bridge) = bridge.filter(|_| host.controller != bridge) {
        netlink
            .set_controller(host.index, bridge)
            .or_network(format!("attaching {} to the bridge", host.name))?;
    }
    if host.up {
        // One that an earlier version made may lack them.
        wall(netlink, plan, &host, port)
    } else {
        set_up_both_ends(netlink, plan, net_ns, port, &inner)
    }
}

/// What stands between the instance and the host's stack, and on our bridge
/// between it and its neighbours. On others the ports' owner sees to that.
fn wall(netlink: &mut Netlink, plan: &VifPlan, host: &Link, port: Option<Port>) -> Result<()> {
    wire::make(netlink, host.index, &host.name, &plan.alias)?;
    let Some(port) = port else { return Ok(()) };
    guard::set(netlink, host, plan)?;
    netlink
        .set_isolated(host.index, port.isolated)
        .or_network(format!("isolating {} on the bridge", host.name))
}

fn remove(netlink: &mut Netlink, link: &Link) -> Result<()> {
    netlink
        .delete_link(link.index)
        .unless(&[libc::ENODEV])
        .or_network(format!("removing {}", link.name))
        .map(drop)
}
