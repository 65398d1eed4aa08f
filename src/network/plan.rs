//! From a VIF as it was asked for to what the kernel is told; all of it pure.
//!
//! [`validate`] checks the interfaces of one instance and its resolver, naming
//! the field; [`VifPlan::new`] parses one of them. What a plan holds the kernel
//! takes as it is.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::config::parse_cidr;
use crate::fault::{Fault, Result};
use crate::network::netlink::Route;
use crate::types::{Dns, Vif};

/// Longest name of a network device, bytes.
const NAME_MAX: usize = 15;
/// Most name servers and most search domains that are taken.
const RESOLVER_MAX: usize = 32;
/// The kernel switches IPv6 off on a link whose MTU is less.
const IPV6_MIN_MTU: u32 = 1280;
/// Metric of an IPv6 route when none is given.
const IPV6_METRIC: u32 = 1024;

/// What the kernel is told to make one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifPlan {
    /// Name of the host's end.
    pub devname: String,
    /// Note beside the host's end: whose it is.
    pub alias: String,
    /// Name of the instance's end.
    pub name: String,
    /// MAC address of the instance's end.
    pub mac: [u8; 6],
    /// Maximum transmission unit of both ends, bytes.
    pub mtu: u32,
    /// Whether the instance's end leaves checksums to whatever takes its packets.
    pub checksum_offload: bool,
    /// Static addresses with prefix length; empty when the instance's DHCP client is to act.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes to set with them.
    pub routes: Vec<Route>,
}

impl VifPlan {
    /// The plan of the VIF at `index` of an instance's list.
    ///
    /// Routes of a later VIF get a higher metric, so that two with the same
    /// destination do not clash and the first VIF is preferred.
    pub fn new(vif: &Vif, index: usize) -> Result<VifPlan> {
        let field = |name: &str| format!("vifs[{index}].{name}");
        let name = vif.name.clone().unwrap_or_else(|| format!("eth{index}"));
        check_device_name(&field("devname"), &vif.devname)?;
        check_device_name(&field("name"), &name)?;
        if name == "lo" {
            return Err(Fault::invalid(field("name"), "\"lo\" is the loopback's; take another"));
        }
        if !(68..=65_535).contains(&vif.mtu) {
            return Err(Fault::invalid(field("mtu"), "must be 68 to 65535"));
        }
        let mac = parse_mac(&field("address"), &vif.address)?;
        let addresses = addresses(vif, &field)?;
        let routes = routes(vif, index, &addresses, &field)?;
        let alias = alias(vif);
        Ok(VifPlan {
            devname: vif.devname.clone(),
            alias,
            name,
            mac,
            mtu: vif.mtu,
            checksum_offload: vif.checksum_offload,
            addresses,
            routes,
        })
    }
}

/// What the host's end of a VIF is marked with.
pub fn alias(vif: &Vif) -> String {
    format!("berth:{}", vif.id)
}

/// Gives every VIF without a name the first free of `eth0`, `eth1`, …
///
/// Names once given are kept, so the list can grow and shrink later.
pub fn assign_names(vifs: &mut [Vif]) {
    let mut taken: HashSet<String> = vifs.iter().filter_map(|vif| vif.name.clone()).collect();
    let mut free = (0..).map(|number| format!("eth{number}"));
    for vif in vifs.iter_mut().filter(|vif| vif.name.is_none()) {
        vif.name = free.find(|name| !taken.contains(name));
        taken.extend(vif.name.clone());
    }
}

/// Checks all interfaces of an instance, and its resolver configuration.
pub fn validate(vifs: &[Vif], dns: Option<&Dns>) -> Result<()> {
    let mut seen = Seen::default();
    let mut named = vifs.to_vec();
    assign_names(&mut named);
    for (index, vif) in named.iter().enumerate() {
        let plan = VifPlan::new(vif, index)?;
        seen.check(vif, &plan, index)?;
    }
    dns.map_or(Ok(()), validate_dns)
}

/// What must be unique within an instance.
#[derive(Default)]
struct Seen {
    ids: HashSet<uuid::Uuid>,
    devnames: HashSet<String>,
    names: HashSet<String>,
    macs: HashSet<[u8; 6]>,
    addresses: HashSet<IpAddr>,
}

impl Seen {
    fn check(&mut self, vif: &Vif, plan: &VifPlan, index: usize) -> Result<()> {
        let unique = |is_new: bool, field: String| {
            if is_new {
                return Ok(());
            }
            Err(Fault::invalid(field, "is used twice in this instance; each must be unique"))
        };
        unique(self.ids.insert(vif.id), format!("vifs[{index}].id"))?;
        unique(self.devnames.insert(plan.devname.clone()), format!("vifs[{index}].devname"))?;
        unique(self.names.insert(plan.name.clone()), format!("vifs[{index}].name"))?;
        unique(self.macs.insert(plan.mac), format!("vifs[{index}].address"))?;
        for (at, (address, _)) in plan.addresses.iter().enumerate() {
            unique(self.addresses.insert(*address), format!("vifs[{index}].addresses[{at}]"))?;
        }
        Ok(())
    }
}

/// Checks that a name can be one of a network device.
///
/// Stricter than the kernel: `%` makes it count, `all` and `default` are
/// directories beside the devices' own in `/proc/sys/net`.
pub fn check_device_name(field: &str, name: &str) -> Result<()> {
    let remedy = if name.is_empty() || name.len() > NAME_MAX {
        "must have 1 to 15 characters"
    } else if !name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%\"'\\".contains(&b)) {
        "must consist of visible ASCII characters other than / : % \\ and quotes"
    } else if matches!(name, "." | ".." | "all" | "default") {
        "is a name that no network device can have; take another"
    } else {
        return Ok(());
    };
    Err(Fault::invalid(field, format!("{name:?} {remedy}")))
}

/// Parses a unicast MAC address.
fn parse_mac(field: &str, text: &str) -> Result<[u8; 6]> {
    let parts: Vec<_> = text
        .split(':')
        .map(|part| {
            let is_hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        })
        .collect::<Option<_>>()
        .unwrap_or_default();
    let mac: [u8; 6] = parts.try_into().map_err(|_| {
        Fault::invalid(field, format!("{text:?} is no MAC address such as \"fa:16:3e:00:00:01\""))
    })?;
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(Fault::invalid(field, format!("{text:?} must be a unicast address, not zero")));
    }
    Ok(mac)
}

fn addresses(vif: &Vif, field: &impl Fn(&str) -> String) -> Result<Vec<(IpAddr, u8)>> {
    let mut addresses = Vec::new();
    for (at, text) in vif.addresses.iter().enumerate() {
        let field = field(&format!("addresses[{at}]"));
        let (address, prefix) = parse_cidr(&field, text)?;
        if !is_host_address(address, prefix) {
            return Err(Fault::invalid(
                field,
                format!("{text:?} is no address that a host can have in its network"),
            ));
        }
        if address.is_ipv6() && vif.mtu < IPV6_MIN_MTU {
            return Err(Fault::invalid(
                field,
                format!("IPv6 needs an MTU of {IPV6_MIN_MTU} or more; this VIF's is {}", vif.mtu),
            ));
        }
        addresses.push((address, prefix));
    }
    Ok(addresses)
}

fn is_host_address(address: IpAddr, prefix: u8) -> bool {
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || prefix == 0 {
        return false;
    }
    match address {
        // RFC 3021: a /31 has two hosts; a /32 is one.
        IpAddr::V4(address) if prefix <= 30 => {
            let host = u32::from(address) & (u32::MAX >> prefix);
            host != 0 && host != u32::MAX >> prefix
        }
        IpAddr::V4(address) => address != Ipv4Addr::BROADCAST,
        IpAddr::V6(_) => true,
    }
}

fn routes(
    vif: &Vif,
    index: usize,
    addresses: &[(IpAddr, u8)],
    field: &impl Fn(&str) -> String,
) -> Result<Vec<Route>> {
    if !vif.routes.is_empty() && addresses.is_empty() && !vif.bridge {
        return Err(Fault::invalid(
            field("routes"),
            "routes are set with static addresses only; give addresses or leave routes to DHCP",
        ));
    }
    let mut routes: Vec<Route> = Vec::new();
    for (at, route) in vif.routes.iter().enumerate() {
        let destination_field = field(&format!("routes[{at}].destination"));
        let (destination, prefix) = parse_cidr(&destination_field, &route.destination)?;
        check_destination(&destination_field, destination, prefix)?;
        if routes.iter().any(|known| (known.destination, known.prefix) == (destination, prefix)) {
            return Err(Fault::invalid(destination_field, "is given twice; keep one"));
        }
        let gateway_field = field(&format!("routes[{at}].gateway"));
        let gateway =
            route.gateway.as_deref().map(|text| parse_gateway(&gateway_field, text, destination));
        let gateway = gateway.transpose()?;
        let step = u32::try_from(index).unwrap_or(u32::MAX - IPV6_METRIC);
        routes.push(Route {
            destination,
            prefix,
            gateway,
            onlink: gateway.is_some_and(|gateway| !is_reachable(gateway, addresses)),
            metric: if destination.is_ipv4() { step } else { IPV6_METRIC + step },
        });
    }
    Ok(routes)
}

fn check_destination(field: &str, destination: IpAddr, prefix: u8) -> Result<()> {
    let network = network(destination, prefix);
    if network != destination {
        return Err(Fault::invalid(
            field,
            format!("is no network; did you mean {network}/{prefix}?"),
        ));
    }
    if destination.is_multicast() {
        return Err(Fault::invalid(field, "must be a unicast network"));
    }
    Ok(())
}

fn parse_gateway(field: &str, text: &str, destination: IpAddr) -> Result<IpAddr> {
    let gateway: IpAddr = text
        .parse()
        .map_err(|_| Fault::invalid(field, format!("{text:?} is no IPv4 or IPv6 address")))?;
    if gateway.is_ipv4() != destination.is_ipv4() {
        return Err(Fault::invalid(field, "must be of the same family as the destination"));
    }
    if gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback() {
        return Err(Fault::invalid(field, format!("{text:?} is no address of a next hop")));
    }
    Ok(gateway)
}

/// Whether the addresses alone tell the kernel that `gateway` is on the link.
fn is_reachable(gateway: IpAddr, addresses: &[(IpAddr, u8)]) -> bool {
    let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
    link_local
        || addresses.iter().any(|(address, prefix)| {
            address.is_ipv4() == gateway.is_ipv4()
                && network(*address, *prefix) == network(gateway, *prefix)
        })
}

/// The network that an address with this prefix length is in.
pub fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            (u32::from(v4) & mask).to_be_bytes().into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            (u128::from(v6) & mask).to_be_bytes().into()
        }
    }
}

fn validate_dns(dns: &Dns) -> Result<()> {
    for (field, length) in [("nameservers", dns.nameservers.len()), ("search", dns.search.len())] {
        if length > RESOLVER_MAX {
            return Err(Fault::invalid(
                format!("dns.{field}"),
                format!("has {length} entries; at most {RESOLVER_MAX} are taken"),
            ));
        }
    }
    for (at, server) in dns.nameservers.iter().enumerate() {
        let address = server.parse::<IpAddr>().ok();
        if address.is_none_or(|a| a.is_unspecified() || a.is_multicast()) {
            return Err(Fault::invalid(
                format!("dns.nameservers[{at}]"),
                format!("{server:?} is no address of a name server"),
            ));
        }
    }
    for (at, domain) in dns.search.iter().enumerate() {
        if !is_domain(domain) {
            return Err(Fault::invalid(
                format!("dns.search[{at}]"),
                format!(
                    "{domain:?} is no domain name: labels of 1 to 63 letters, digits, '-' and '_', 253 characters in all"
                ),
            ));
        }
    }
    Ok(())
}

fn is_domain(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::vif;
    use crate::types;

    fn with(change: impl FnOnce(&mut Vif)) -> Vif {
        let mut vif = vif(1);
        change(&mut vif);
        vif
    }

    fn route(destination: &str, gateway: &str) -> types::Route {
        let gateway = (!gateway.is_empty()).then(|| gateway.to_owned());
        types::Route { destination: destination.into(), gateway }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn at_fault(vif: Vif) -> String {
        let fault = validate(&[vif], None).unwrap_err();
        fault.field.unwrap_or_default()
    }

    #[test]
    fn a_vif_becomes_a_plan() {
        let vif = with(|v| {
            v.addresses = texts(&["10.0.0.5/24", "fd00::5/64"]);
            v.routes = vec![
                route("0.0.0.0/0", "10.0.0.1"),
                route("192.168.0.0/16", "172.16.0.1"),
                route("10.1.0.0/16", ""),
                route("::/0", "fe80::1"),
                route("fd01::/64", "fd02::1"),
            ];
        });
        let plan = VifPlan::new(&vif, 2).unwrap();
        assert_eq!(plan.mac, [0xfa, 0x16, 0x3e, 0, 0, 1]);
        assert_eq!(plan.name, "eth2");
        assert_eq!(plan.addresses[1], ("fd00::5".parse().unwrap(), 64));
        let onlink: Vec<bool> = plan.routes.iter().map(|route| route.onlink).collect();
        assert_eq!(onlink, [false, true, false, false, true]);
        let metrics: Vec<u32> = plan.routes.iter().map(|route| route.metric).collect();
        assert_eq!(metrics, [2, 2, 2, 1026, 1026]);
    }

    #[test]
    fn names_fill_the_gaps() {
        let mut vifs = [vif(1), vif(2), vif(3)];
        vifs[1].name = Some("eth0".into());
        assign_names(&mut vifs);
        let names: Vec<_> = vifs.iter().filter_map(|vif| vif.name.as_deref()).collect();
        assert_eq!(names, ["eth1", "eth0", "eth2"]);
        validate(&vifs, None).unwrap();
    }

    #[test]
    fn bad_names() {
        for bad in ["", "0123456789abcdef", "a b", "a/b", ".", "..", "a\nb", "é", "tap%d", "all"] {
            assert_eq!(at_fault(with(|v| v.devname = bad.into())), "vifs[0].devname", "{bad:?}");
            assert_eq!(at_fault(with(|v| v.name = Some(bad.into()))), "vifs[0].name", "{bad:?}");
        }
        assert_eq!(at_fault(with(|v| v.name = Some("lo".into()))), "vifs[0].name");
        validate(&[with(|v| v.devname = "tap1a2b3c4d-5e_".into())], None).unwrap();
    }

    #[test]
    fn bad_mac_addresses() {
        for bad in [
            "",
            "fa:16:3e:00:00",
            "fa:16:3e:00:00:01:02",
            "fa-16-3e-00-00-01",
            "fa:16:3e:0:00:01",
            "fa:16:3e:00:00:0g",
            "fa:16:3e:00:00:+1",
            "01:16:3e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(at_fault(with(|v| v.address = bad.into())), "vifs[0].address", "{bad:?}");
        }
    }

    #[test]
    fn bad_mtus_and_addresses() {
        for bad in [0, 67, 65_536, u32::MAX] {
            assert_eq!(at_fault(with(|v| v.mtu = bad)), "vifs[0].mtu");
        }
        for bad in [
            "10.0.0.5",
            "10.0.0.5/33",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "0.0.0.0/0",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "255.255.255.255/32",
            "::1/128",
            "ff02::1/64",
            "fd00::1/129",
        ] {
            let field = at_fault(with(|v| v.addresses = texts(&["10.9.0.5/24", bad])));
            assert_eq!(field, "vifs[0].addresses[1]", "{bad:?}");
        }
        let small = with(|v| {
            v.mtu = 1279;
            v.addresses = texts(&["fd00::5/64"]);
        });
        assert_eq!(at_fault(small), "vifs[0].addresses[0]");
        let fine = texts(&["10.0.0.0/31", "10.0.0.255/32", "fe80::5/64", "10.0.1.255/16"]);
        validate(&[with(|v| v.addresses = fine)], None).unwrap();
    }

    #[test]
    fn bad_routes() {
        let routed = |routes: Vec<types::Route>| {
            at_fault(with(|v| {
                v.addresses = texts(&["10.0.0.5/24", "fd00::5/64"]);
                v.routes = routes;
            }))
        };
        assert_eq!(routed(vec![route("10.0.0.5/24", "")]), "vifs[0].routes[0].destination");
        assert_eq!(routed(vec![route("x", "")]), "vifs[0].routes[0].destination");
        assert_eq!(routed(vec![route("224.0.0.0/4", "")]), "vifs[0].routes[0].destination");
        let twice = vec![route("0.0.0.0/0", "10.0.0.1"), route("0.0.0.0/0", "10.0.0.2")];
        assert_eq!(routed(twice), "vifs[0].routes[1].destination");
        for bad in ["fd00::1", "10.0.0.0/24", "0.0.0.0", "224.0.0.1", "127.0.0.1", "gw"] {
            let field = routed(vec![route("0.0.0.0/0", bad)]);
            assert_eq!(field, "vifs[0].routes[0].gateway", "{bad}");
        }
        let without = with(|v| v.routes = vec![route("0.0.0.0/0", "10.0.0.1")]);
        assert_eq!(at_fault(without), "vifs[0].routes");
    }

    #[test]
    fn what_is_used_twice() {
        let pair = |change: fn(&mut Vif)| {
            let mut vifs = [vif(1), vif(2)];
            vifs[0].name = Some("eth0".into());
            vifs[0].addresses = texts(&["10.0.0.5/24"]);
            change(&mut vifs[1]);
            validate(&vifs, None).map_err(|fault| fault.field.unwrap_or_default())
        };
        assert_eq!(pair(|_| ()), Ok(()));
        let same_id: fn(&mut Vif) = |v| v.id = vif(1).id;
        for (change, field) in [
            (same_id, "id"),
            (|v| v.devname = vif(1).devname, "devname"),
            (|v| v.name = Some("eth0".into()), "name"),
            (|v| v.address = vif(1).address.to_uppercase(), "address"),
            (|v| v.addresses = texts(&["10.0.0.5/16"]), "addresses[0]"),
        ] {
            assert_eq!(pair(change), Err(format!("vifs[1].{field}")));
        }
    }

    #[test]
    fn resolver_configuration() {
        let check = |nameservers: &[&str], search: &[&str]| {
            let dns = Dns { nameservers: texts(nameservers), search: texts(search) };
            validate(&[], Some(&dns)).map_err(|fault| fault.field.unwrap_or_default())
        };
        assert_eq!(check(&["10.0.0.1", "fd00::1"], &["example.org", "a_b.c.", "x"]), Ok(()));
        for bad in ["ns.example.org", "0.0.0.0", "10.0.0.1\nnameserver 6.6.6.6", "ff02::1", ""] {
            assert_eq!(check(&["10.0.0.1", bad], &[]), Err("dns.nameservers[1]".into()), "{bad:?}");
        }
        let long = "a.".repeat(127) + "b";
        for bad in ["", ".", "a..b", "a b", "a\noptions x", "-a", &"a".repeat(64), &long] {
            assert_eq!(check(&[], &[bad]), Err("dns.search[0]".into()), "{bad:?}");
        }
        assert_eq!(check(&["10.0.0.1"; 33], &[]), Err("dns.nameservers".into()));
    }
}
