//! What an instance on the stand-alone bridge may send: frames with its own MAC
//! address and its own IP addresses, and nothing that only a router or a DHCP
//! server says. Neutron does this for its ports; here it is a program for the
//! kernel's classic packet filter, where frames arrive at the host's end. So it
//! is there before the end is up, and goes with it.

use std::net::{IpAddr, Ipv6Addr};

use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP,
    BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MISC, BPF_MSH, BPF_RET, BPF_SUB,
    BPF_TAX, BPF_W, BPF_X,
};

use crate::fault::{Fault, FaultKind, Result};
use crate::network::netlink::{Link, Netlink, OrNetworkFault};
use crate::network::plan::VifPlan;
use crate::network::tc;

/// `TC_ACT_SHOT`, and `TC_ACT_UNSPEC`: on to the next filter. Reading behind the end of a
/// frame would end with 0, which skips that one: so lengths are looked at first.
const DROP: u32 = 2;
const PASS: u32 = u32::MAX;
/// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`.
const VLAN_TAG: u32 = 0xffff_f000 + 48;

const ICMPV6: u32 = libc::IPPROTO_ICMPV6 as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;
const HOP_BY_HOP: u32 = libc::IPPROTO_HOPOPTS as u32;
const FRAGMENT: u32 = libc::IPPROTO_FRAGMENT as u32;
/// Headers between IPv6 and its payload that could hide what that is.
const HIDING: [u32; 5] = [
    HOP_BY_HOP,
    FRAGMENT,
    libc::IPPROTO_ROUTING as u32,
    libc::IPPROTO_DSTOPTS as u32,
    libc::IPPROTO_MH as u32,
];
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
/// Reports and leaving, of both versions.
const MULTICAST_LISTENER: [u32; 3] = [131, 132, 143];
const DHCP_SERVER: u32 = 67;
const DHCPV6_SERVER: u32 = 547;

/// Puts the guard of a VIF's host end in force, instead of the one before.
pub fn set(netlink: &mut Netlink, host: &Link, plan: &VifPlan) -> Result<()> {
    let addresses: Vec<_> = plan.addresses.iter().map(|(address, _)| *address).collect();
    let doing = || format!("guarding what {} sends to the bridge", host.name);
    tc::guard(netlink, host.index, &program(plan.mac, &addresses)).map_err(|error| {
        if matches!(error.errno(), libc::ENOENT | libc::EOPNOTSUPP) {
            let why = format!("{}: {error}; the kernel needs sch_ingress and cls_bpf", doing());
            return Fault::new(FaultKind::HostUnsupported, why);
        }
        Err::<(), _>(error).or_network(doing()).expect_err("it was made from an error")
    })
}

/// The program for a MAC address and its addresses, as `struct sock_filter`s.
fn program(mac: [u8; 6], addresses: &[IpAddr]) -> Vec<u8> {
    let ops = ethernet(mac, addresses);
    ops.iter().flat_map(|op| op.bytes()).collect()
}

/// Nothing but ARP, IPv4 and IPv6 passes, and no tagged frame.
fn ethernet(mac: [u8; 6], addresses: &[IpAddr]) -> Vec<Op> {
    let mut ipv4 = Vec::new();
    // Without an address yet, and of the MAC's own.
    let mut ipv6 = vec![Ipv6Addr::UNSPECIFIED, link_local(mac)];
    for address in addresses {
        match address {
            IpAddr::V4(address) => ipv4.push(u32::from(*address)),
            IpAddr::V6(address) => ipv6.push(*address),
        }
    }
    let ipv6: Vec<Vec<u32>> = ipv6.iter().map(|address| words(&address.octets())).collect();
    [
        longer(14),
        load(BPF_W, VLAN_TAG),
        is(0),
        own_mac(6, mac),
        load(BPF_H, 12),
        when(libc::ETH_P_ARP as u32, arp(mac, &ipv4)),
        when(libc::ETH_P_IP as u32, ip(&ipv4)),
        when(libc::ETH_P_IPV6 as u32, ip6(&ipv6)),
        end(DROP),
    ]
    .concat()
}

fn arp(mac: [u8; 6], ipv4: &[u32]) -> Vec<Op> {
    // Who asks whether an address is free has none.
    let senders: Vec<_> = ipv4.iter().chain(&[0]).map(|address| vec![*address]).collect();
    [
        longer(42),
        // Ethernet, IPv4, and their addresses' lengths.
        load(BPF_W, 14),
        is(0x0001_0800),
        load(BPF_H, 18),
        is(0x0604),
        own_mac(22, mac),
        one_of(BPF_ABS, 28, &senders),
        end(PASS),
    ]
    .concat()
}

fn ip(ipv4: &[u32]) -> Vec<Op> {
    let sources: Vec<_> = ipv4.iter().map(|address| vec![*address]).collect();
    let udp = [
        load(BPF_H, 20),
        // Only a datagram's first fragment has ports.
        vec![Op::jump(BPF_JSET, 0x1fff, 0, 1)],
        end(PASS),
        vec![Op::new(BPF_LDX | BPF_B | BPF_MSH, 14)],
        longer_with_x(14 + 8),
        load_x(BPF_H, 14),
        not(DHCP_SERVER),
        end(PASS),
    ];
    [longer(34), one_of(BPF_ABS, 26, &sources), load(BPF_B, 23), when(UDP, udp.concat()), end(PASS)]
        .concat()
}

fn ip6(ipv6: &[Vec<u32>]) -> Vec<Op> {
    // X is the length of the headers in between, from here on.
    let hop_by_hop = [
        load(BPF_B, 55),
        vec![Op::new(BPF_ALU | BPF_ADD, 1), Op::new(BPF_ALU | BPF_LSH, 3)],
        vec![Op::new(BPF_MISC | BPF_TAX, 0)],
        load(BPF_B, 54),
        is(ICMPV6),
        longer_with_x(54 + 8),
        load_x(BPF_B, 54),
        MULTICAST_LISTENER.map(|kind| when(kind, end(PASS))).concat(),
        end(DROP),
    ];
    let fragment = [
        load(BPF_H, 56),
        vec![Op::jump(BPF_JSET, 0xfff8, 0, 1)],
        end(PASS),
        vec![Op::new(BPF_LDX | BPF_IMM, 8)],
        load(BPF_B, 54),
        ip6_payload(ipv6),
    ];
    [
        longer(62),
        one_of(BPF_ABS, 22, ipv6),
        load(BPF_B, 20),
        when(HOP_BY_HOP, hop_by_hop.concat()),
        when(FRAGMENT, fragment.concat()),
        vec![Op::new(BPF_LDX | BPF_IMM, 0)],
        ip6_payload(ipv6),
    ]
    .concat()
}

/// A holds the payload's protocol, X how far behind the IPv6 header it begins.
fn ip6_payload(ipv6: &[Vec<u32>]) -> Vec<Op> {
    let advertisement = [longer_with_x(54 + 24), one_of(BPF_IND, 62, ipv6), end(PASS)];
    let icmp = [
        longer_with_x(54 + 8),
        load_x(BPF_B, 54),
        not(ROUTER_ADVERTISEMENT),
        not(REDIRECT),
        when(NEIGHBOUR_ADVERTISEMENT, advertisement.concat()),
        end(PASS),
    ];
    let udp = [longer_with_x(54 + 8), load_x(BPF_H, 54), not(DHCPV6_SERVER), end(PASS)];
    [HIDING.map(not).concat(), when(ICMPV6, icmp.concat()), when(UDP, udp.concat()), end(PASS)]
        .concat()
}

/// What the kernel makes of the MAC address by itself (EUI-64).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| four.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}

/// One instruction. What it loads is in A; X is the index of [`load_x`].
#[derive(Clone, Copy)]
struct Op {
    code: u32,
    /// How many are skipped, if a comparison holds and if not.
    yes: u8,
    no: u8,
    k: u32,
}

impl Op {
    fn new(code: u32, k: u32) -> Op {
        Op { code, yes: 0, no: 0, k }
    }

    fn jump(comparison: u32, k: u32, yes: u8, no: u8) -> Op {
        Op { code: BPF_JMP | comparison, yes, no, k }
    }

    fn bytes(self) -> [u8; 8] {
        let [a, b] = (self.code as u16).to_ne_bytes();
        let [c, d, e, f] = self.k.to_ne_bytes();
        [a, b, self.yes, self.no, c, d, e, f]
    }
}

fn load(size: u32, at: u32) -> Vec<Op> {
    vec![Op::new(BPF_LD | size | BPF_ABS, at)]
}

fn load_x(size: u32, at: u32) -> Vec<Op> {
    vec![Op::new(BPF_LD | size | BPF_IND, at)]
}

fn end(verdict: u32) -> Vec<Op> {
    vec![Op::new(BPF_RET | BPF_K, verdict)]
}

/// Drops unless A is `k`.
fn is(k: u32) -> Vec<Op> {
    [vec![Op::jump(BPF_JEQ, k, 1, 0)], end(DROP)].concat()
}

/// Drops if A is `k`.
fn not(k: u32) -> Vec<Op> {
    [vec![Op::jump(BPF_JEQ, k, 0, 1)], end(DROP)].concat()
}

/// If A is `k`, this body, which ends the program.
fn when(k: u32, body: Vec<Op>) -> Vec<Op> {
    let over = Op::new(BPF_JMP | BPF_JA, body.len() as u32);
    [vec![Op::jump(BPF_JEQ, k, 1, 0), over], body].concat()
}

/// Drops a frame of less than `length`.
fn longer(length: u32) -> Vec<Op> {
    let length = vec![Op::new(BPF_LD | BPF_W | BPF_LEN, 0), Op::jump(BPF_JGE, length, 1, 0)];
    [length, end(DROP)].concat()
}

/// Drops a frame of less than `length` and X.
fn longer_with_x(length: u32) -> Vec<Op> {
    let rest = vec![
        Op::new(BPF_ALU | BPF_SUB, length),
        Op { code: BPF_JMP | BPF_JGE | BPF_X, yes: 1, no: 0, k: 0 },
    ];
    [longer(length), rest, end(DROP)].concat()
}

fn own_mac(at: u32, mac: [u8; 6]) -> Vec<Op> {
    let [a, b, c, d, e, f] = mac.map(u32::from);
    [load(BPF_W, at), is(a << 24 | b << 16 | c << 8 | d), load(BPF_H, at + 4), is(e << 8 | f)]
        .concat()
}

/// Drops unless one of these, all of the same number of words, is at a place.
fn one_of(mode: u32, at: u32, wanted: &[Vec<u32>]) -> Vec<Op> {
    let mut ops = end(DROP);
    for words in wanted.iter().rev() {
        let found = Op::new(BPF_JMP | BPF_JA, ops.len() as u32);
        let mut test = vec![found];
        for (place, word) in words.iter().enumerate().rev() {
            let other = test.len() as u8;
            let here = Op::new(BPF_LD | BPF_W | mode, at + 4 * place as u32);
            test.splice(0..0, [here, Op::jump(BPF_JEQ, *word, 0, other)]);
        }
        ops.splice(0..0, test);
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 0, 0, 5];
    const OTHER: [u8; 6] = [0xfa, 0x16, 0x3e, 0, 0, 6];
    const ALL: [u8; 6] = [0xff; 6];

    /// Runs the program as the kernel would, in as far as it uses the machine.
    fn passes(frame: &[u8]) -> bool {
        let own: Vec<IpAddr> =
            ["10.88.0.5", "10.88.0.7", "fd00::5"].map(|a| a.parse().unwrap()).into();
        let ops = ethernet(MAC, &own);
        let (mut a, mut x, mut at) = (0u32, 0u32, 0);
        loop {
            let Op { code, yes, no, k } = ops[at];
            at += 1;
            let skip = |holds: bool| usize::from(if holds { yes } else { no });
            let read = |from: u32, size: u32| {
                let size = [4, 2, 1][(size >> 3) as usize];
                let bytes = frame.get(from as usize..from as usize + size);
                let bytes = bytes.expect("a frame is not read behind its end");
                bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
            };
            let size = code & 0x18;
            match code {
                _ if code == BPF_LD | BPF_W | BPF_LEN => a = frame.len() as u32,
                _ if code == BPF_LD | BPF_ABS && k == VLAN_TAG => a = 0,
                _ if code == BPF_LD | size | BPF_ABS => a = read(k, size),
                _ if code == BPF_LD | size | BPF_IND => a = read(x + k, size),
                _ if code == BPF_LDX | BPF_B | BPF_MSH => x = (read(k, BPF_B) & 15) * 4,
                _ if code == BPF_LDX | BPF_IMM => x = k,
                _ if code == BPF_ALU | BPF_ADD => a += k,
                _ if code == BPF_ALU | BPF_SUB => a -= k,
                _ if code == BPF_ALU | BPF_LSH => a <<= k,
                _ if code == BPF_MISC | BPF_TAX => x = a,
                _ if code == BPF_JMP | BPF_JA => at += k as usize,
                _ if code == BPF_JMP | BPF_JEQ => at += skip(a == k),
                _ if code == BPF_JMP | BPF_JGE => at += skip(a >= k),
                _ if code == BPF_JMP | BPF_JGE | BPF_X => at += skip(a >= x),
                _ if code == BPF_JMP | BPF_JSET => at += skip(a & k != 0),
                _ if code == BPF_RET | BPF_K => return k == PASS,
                _ => panic!("the kernel would refuse {code:#x}"),
            }
        }
    }

    fn frame(source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
        [&ALL[..], &source, &kind.to_be_bytes(), payload].concat()
    }

    fn arp(hardware: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, 2];
        frame(MAC, 0x806, &[&head[..], &hardware, &sender, &[0; 10]].concat())
    }

    fn ip(source: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = fragment.to_be_bytes();
        let head = [0x45, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
        frame(MAC, 0x800, &[&head[..], &source, &[10, 88, 0, 1], payload].concat())
    }

    fn ip6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        let head = [0x60, 0, 0, 0, 0, 0, next, 255];
        frame(MAC, 0x86dd, &[&head[..], &source.octets(), &[0xff; 16], payload].concat())
    }

    fn icmp6(kind: u8, target: &str) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
    }

    fn from_port(port: u16) -> Vec<u8> {
        [&port.to_be_bytes()[..], &[0; 6]].concat()
    }

    #[test]
    fn what_passes() {
        let echo = icmp6(128, "fd00::6");
        let fragment = |offset: u16, inner: u8, rest: &[u8]| {
            [&[inner, 0][..], &offset.to_be_bytes(), &[0; 4], rest].concat()
        };
        let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &icmp6(143, "::")].concat();
        for (what, frame) in [
            ("ARP", arp(MAC, [10, 88, 0, 5])),
            ("ARP of the second address", arp(MAC, [10, 88, 0, 7])),
            ("an ARP probe", arp(MAC, [0; 4])),
            ("TCP", ip([10, 88, 0, 5], 6, 0, &[0; 20])),
            ("UDP", ip([10, 88, 0, 7], 17, 0, &from_port(68))),
            ("a later fragment", ip([10, 88, 0, 7], 17, 1, &from_port(67))),
            ("IPv6", ip6("fd00::5", 6, &[0; 20])),
            ("a ping", ip6("fe80::f816:3eff:fe00:5", 58, &echo)),
            ("an advertisement", ip6("fd00::5", 58, &icmp6(136, "fd00::5"))),
            ("a report", ip6("::", 0, &report)),
            ("a fragment", ip6("fd00::5", 44, &fragment(0, 58, &echo))),
            ("a later one", ip6("fd00::5", 44, &fragment(8, 58, &icmp6(134, "::")))),
        ] {
            assert!(passes(&frame), "{what} is dropped");
        }
    }

    #[test]
    fn what_does_not() {
        let advertisement = icmp6(134, "::");
        let behind = |inner: u8, rest: &[u8]| [&[inner, 0, 0, 0, 0, 0, 0, 0][..], rest].concat();
        let long = [&[58, 255][..], &[0; 6], &icmp6(143, "::")].concat();
        let mut options = ip([10, 88, 0, 5], 17, 0, &[&[0; 40][..], &from_port(67)].concat());
        options[14] = 0x4f;
        let mut cut = ip([10, 88, 0, 5], 17, 0, &from_port(68));
        cut[14] = 0x4f;
        for (what, frame) in [
            ("nothing", Vec::new()),
            ("another MAC address", frame(OTHER, 0x800, &ip([10, 88, 0, 5], 6, 0, &[0; 20])[14..])),
            ("ARP for another MAC address", arp(OTHER, [10, 88, 0, 5])),
            ("ARP for the gateway", arp(MAC, [10, 88, 0, 1])),
            ("a short ARP", arp(MAC, [10, 88, 0, 5])[..41].to_vec()),
            ("a neighbour's IPv4", ip([10, 88, 0, 6], 6, 0, &[0; 20])),
            ("no IPv4 address", ip([0; 4], 17, 0, &from_port(68))),
            ("a DHCP server", ip([10, 88, 0, 5], 17, 0, &from_port(67))),
            ("one behind options", options),
            ("options that are not there", cut),
            ("a neighbour's IPv6", ip6("fd00::6", 6, &[0; 20])),
            ("a neighbour's link-local", ip6("fe80::f816:3eff:fe00:6", 6, &[0; 20])),
            ("a router", ip6("fe80::f816:3eff:fe00:5", 58, &advertisement)),
            ("a router behind a fragment", ip6("fd00::5", 44, &behind(58, &advertisement))),
            ("a router behind options", ip6("fd00::5", 60, &behind(58, &advertisement))),
            ("a router behind a route", ip6("fd00::5", 43, &behind(58, &advertisement))),
            ("a router behind hop-by-hop", ip6("fd00::5", 0, &behind(58, &advertisement))),
            ("options behind hop-by-hop", ip6("fd00::5", 0, &behind(60, &advertisement))),
            ("hop-by-hop that is not there", ip6("fd00::5", 0, &long)),
            ("a redirect", ip6("fd00::5", 58, &icmp6(137, "::"))),
            ("a neighbour's advertisement", ip6("fd00::5", 58, &icmp6(136, "fd00::6"))),
            ("a DHCPv6 server", ip6("fd00::5", 17, &from_port(547))),
            ("a tag in a tag", frame(MAC, 0x8100, &[0; 60])),
            ("LLDP", frame(MAC, 0x88cc, &[0; 60])),
            ("spanning tree", frame(MAC, 38, &[0x42; 60])),
        ] {
            assert!(!passes(&frame), "{what} passes");
        }
    }
}
