//! A small, synchronous rtnetlink socket.
//!
//! The only file that uses the netlink crates, whose every release breaks
//! something: the rest of the network code sees [`Link`], [`Route`], addresses
//! and plain bytes. A socket belongs to the network namespace of the thread
//! that opened it, for good.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage, LinkMode, Prop,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER, protocols::NETLINK_ROUTE};

use crate::fault::{Fault, FaultKind};

/// Longest answer that the kernel gives in one datagram.
const DATAGRAM: usize = 32 * 1024;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words about a refusal.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `NLM_F_ACK_TLVS`: such words follow.
const NLM_F_ACK_TLVS: u16 = 0x200;

/// What the kernel gives a new veth: packets that may wait, and `GSO_LEGACY_MAX_SIZE` and
/// `GSO_MAX_SEGS`, bytes and number of what it cuts late or joins early.
const QUEUE_LENGTH: u32 = 1000;
const SEGMENT: u32 = 65_536;
const SEGMENTS: u32 = 65_535;

/// Flags of a request that makes something that must not exist yet.
pub const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
/// Flags of a request that makes something or changes it.
pub const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

/// A refusal of the kernel, or a failure to speak with it.
#[derive(Debug)]
pub struct Error {
    errno: i32,
    words: String,
}

/// Result of a netlink request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The error number, 0 if it was no refusal but an answer that makes no sense.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    fn refused(errno: i32, words: Option<String>) -> Self {
        let meaning = io::Error::from_raw_os_error(errno).to_string();
        let words = words.map_or(meaning.clone(), |words| format!("{words} ({meaning})"));
        Error { errno, words }
    }

    fn senseless(error: impl fmt::Display) -> Self {
        Error { errno: 0, words: format!("the kernel's answer is not understood: {error}") }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error { errno: error.raw_os_error().unwrap_or(0), words: error.to_string() }
    }
}

/// Turns a refusal into a fault, with what was being done.
pub trait OrNetworkFault<T> {
    /// [`FaultKind::NetworkFailed`], or [`FaultKind::ResourcesExhausted`] where memory or
    /// descriptors ran out.
    fn or_network(self, doing: impl fmt::Display) -> crate::fault::Result<T>;
}

impl<T> OrNetworkFault<T> for Result<T> {
    fn or_network(self, doing: impl fmt::Display) -> crate::fault::Result<T> {
        self.map_err(|error| {
            let kind = match error.errno {
                libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC | libc::EMFILE | libc::ENFILE => {
                    FaultKind::ResourcesExhausted
                }
                _ => FaultKind::NetworkFailed,
            };
            Fault::new(kind, format!("{doing}: {error}"))
        })
    }
}

/// Lets what is absent count as done or as nothing.
pub trait Tolerant<T> {
    /// `Ok(None)` when the kernel refused with one of `errnos`.
    fn unless(self, errnos: &[i32]) -> Result<Option<T>>;
}

impl<T> Tolerant<T> for Result<T> {
    fn unless(self, errnos: &[i32]) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if errnos.contains(&error.errno) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Counters of a link, from the point of view of the namespace it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

/// A network device as the kernel describes it.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `bridge`, `ifb`, …; empty for hardware and loopback.
    pub kind: String,
    /// MAC address, 6 bytes for Ethernet.
    pub mac: Vec<u8>,
    /// Administratively up.
    pub up: bool,
    /// Index of the bridge (or other controller) it is a port of.
    pub controller: Option<u32>,
    /// Index of a veth's other end, in that end's namespace.
    pub peer: Option<u32>,
    /// This namespace's id for the namespace of a veth's other end; absent when it is this one.
    pub peer_ns: Option<i32>,
    /// What a person or a program wrote beside it.
    pub alias: String,
    /// Further names of it.
    pub other_names: Vec<String>,
    /// Counters.
    pub counters: Counters,
}

impl Link {
    /// Whether it is a bridge of the kernel's.
    pub fn is_bridge(&self) -> bool {
        self.kind == InfoKindName::Bridge.name()
    }
}

/// A veth pair to make.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of this namespace's end.
    pub name: &'a str,
    /// Maximum transmission unit of both ends.
    pub mtu: u32,
    /// The group that this end is born in; it asks for no hardware address.
    pub group: u32,
    /// The bridge that this end becomes a port of.
    pub controller: Option<u32>,
    /// The namespace in which the other end appears, never having been in another.
    pub peer_ns: &'a File,
    /// The other end's name.
    pub peer_name: &'a str,
    /// The other end's MAC address.
    pub peer_mac: [u8; 6],
}

/// A route to add to the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination network.
    pub destination: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// The next hop is on the link although no address says so.
    pub onlink: bool,
    /// Metric; the lowest is preferred, 0 is the kernel's default.
    pub metric: u32,
}

/// An rtnetlink socket of the network namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Netlink> {
        Netlink::speaking(NETLINK_ROUTE)
    }

    /// One for [`Self::request`]s to netfilter.
    pub fn open_netfilter() -> Result<Netlink> {
        Netlink::speaking(NETLINK_NETFILTER)
    }

    fn speaking(protocol: isize) -> Result<Netlink> {
        let socket = Socket::new(protocol)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Netlink { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends a request of raw bytes and waits for its acknowledgement.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        self.exchange(kind, flags | libc::NLM_F_ACK as u16, body, |_, _| Ok(()))
    }

    /// The link of this name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        self.get_link(link_message(0, vec![LinkAttribute::IfName(name.into())]))
    }

    /// The link of this index, if there is one.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.get_link(link_message(index, Vec::new()))
    }

    /// The link of this index in another namespace, which this one calls `ns_id`.
    pub fn link_elsewhere(&mut self, ns_id: i32, index: u32) -> Result<Option<Link>> {
        self.get_link(link_message(index, vec![LinkAttribute::IfNetnsId(ns_id)]))
    }

    /// All links of one kind, e.g. `ifb`.
    pub fn links_of_kind(&mut self, kind: InfoKindName) -> Result<Vec<Link>> {
        let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind.into())]);
        let request = RouteNetlinkMessage::GetLink(link_message(0, vec![info]));
        let mut links = Vec::new();
        self.ask(&request, libc::NLM_F_DUMP as u16, |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                links.push(Link::from(message));
            }
        })?;
        Ok(links.into_iter().filter(|link| link.kind == kind.name()).collect())
    }

    /// What this namespace calls another; absent when they have no link in common.
    pub fn namespace_id(&mut self, ns: &File) -> Result<Option<i32>> {
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(ns.as_raw_fd() as u32)];
        let mut id = None;
        self.ask(&RouteNetlinkMessage::GetNsId(message), 0, |answer| {
            if let RouteNetlinkMessage::NewNsId(message) = answer {
                id = message.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                });
            }
        })?;
        Ok(id)
    }

    /// Makes a veth pair, both ends down.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        let peer = link_message(
            0,
            vec![
                LinkAttribute::IfName(veth.peer_name.into()),
                LinkAttribute::Address(veth.peer_mac.to_vec()),
                LinkAttribute::Mtu(veth.mtu),
                LinkAttribute::NetNsFd(veth.peer_ns.as_raw_fd()),
            ],
        );
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ];
        let mut attributes = vec![
            LinkAttribute::IfName(veth.name.into()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Group(veth.group),
        ];
        attributes.extend(veth.controller.map(LinkAttribute::Controller));
        attributes.push(LinkAttribute::LinkInfo(info));
        let message = with_flags(link_message(0, attributes), LinkFlags::Noarp);
        self.tell(&RouteNetlinkMessage::NewLink(message), NEW)
    }

    /// Makes a link that has no parameters, down.
    pub fn create_link(
        &mut self,
        name: &str,
        kind: InfoKindName,
        mac: Option<[u8; 6]>,
    ) -> Result<()> {
        let mut attributes = vec![LinkAttribute::IfName(name.into())];
        attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind.into())]));
        self.tell(&RouteNetlinkMessage::NewLink(link_message(0, attributes)), NEW)
    }

    /// Removes a link and, of a veth, its other end.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        self.tell(&RouteNetlinkMessage::DelLink(link_message(index, Vec::new())), 0)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = with_flags(link_message(index, Vec::new()), LinkFlags::Up);
        self.tell(&RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Takes all further names from a link.
    pub fn forget_other_names(&mut self, link: &Link) -> Result<()> {
        if link.other_names.is_empty() {
            return Ok(());
        }
        let names = link.other_names.iter().cloned().map(Prop::AltIfName).collect();
        let message = link_message(link.index, vec![LinkAttribute::PropList(names)]);
        self.tell(&RouteNetlinkMessage::DelLinkProp(message), 0)
    }

    /// Hands the end of a veth over to another namespace, where it is down and, in name,
    /// address and whatever else the kernel keeps with it, as [`Self::create_veth`] makes one.
    /// What was set up upon it, addresses, routes, ports and queueing, ends with the move.
    pub fn hand_over(&mut self, index: u32, veth: &Veth<'_>) -> Result<()> {
        let attributes = vec![
            LinkAttribute::Address(veth.peer_mac.to_vec()),
            LinkAttribute::Broadcast(vec![0xff; 6]),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Group(0),
            LinkAttribute::IfAlias(String::new()),
            LinkAttribute::TxQueueLen(QUEUE_LENGTH),
            LinkAttribute::GsoMaxSize(SEGMENT),
            LinkAttribute::GsoMaxSegs(SEGMENTS),
            LinkAttribute::GroMaxSize(SEGMENT),
            LinkAttribute::Mode(LinkMode::Default),
        ];
        let mut message = link_message(index, attributes);
        message.header.flags = LinkFlags::Multicast;
        message.header.change_mask = LinkFlags::Multicast
            | LinkFlags::Noarp
            | LinkFlags::Promisc
            | LinkFlags::Allmulti
            | LinkFlags::Debug
            | LinkFlags::Dynamic;
        // First: what its protocols have of settings there follows from these.
        self.tell(&RouteNetlinkMessage::SetLink(message), 0)?;
        let place = vec![
            LinkAttribute::NetNsFd(veth.peer_ns.as_raw_fd()),
            // The name that it bears may be another's there.
            LinkAttribute::IfName(veth.peer_name.into()),
        ];
        self.tell(&RouteNetlinkMessage::SetLink(link_message(index, place)), 0)
    }

    /// Writes a note beside a link, at most 255 bytes.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<()> {
        self.set(index, LinkAttribute::IfAlias(alias.into()))
    }

    /// Makes a link a port of a bridge.
    pub fn set_controller(&mut self, index: u32, controller: u32) -> Result<()> {
        self.set(index, LinkAttribute::Controller(controller))
    }

    /// Says whether a port of a bridge hands nothing to other ports of which the same was said.
    pub fn set_isolated(&mut self, index: u32, isolated: bool) -> Result<()> {
        let data = InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(isolated)]);
        let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)];
        let message = link_message(index, vec![LinkAttribute::LinkInfo(info)]);
        // The kernel looks for a port's own attributes in no other message.
        self.tell(&RouteNetlinkMessage::NewLink(message), 0)
    }

    /// [`Self::set_alias`], and the kernel speaks no ARP on the link, gives it no IPv6
    /// link-local address, and believes no source of what arrives there.
    pub fn set_wire(&mut self, index: u32, alias: &str, group: u32) -> Result<()> {
        let mut ipv4 = InetDevConf::default();
        ipv4.arp_ignore = 8;
        ipv4.rp_filter = 1;
        ipv4.drop_unicast_in_l2_multicast = 1;
        ipv4.drop_gratuitous_arp = 1;
        let ipv4 = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(ipv4)]);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let ipv6 = AfSpecUnspec::Inet6(vec![mode]);
        let set = |families| {
            let attributes = vec![
                LinkAttribute::IfAlias(alias.into()),
                LinkAttribute::Group(group),
                LinkAttribute::AfSpecUnspec(families),
            ];
            let message = with_flags(link_message(index, attributes), LinkFlags::Noarp);
            RouteNetlinkMessage::SetLink(message)
        };
        // Where IPv6 is off the whole request is refused.
        match self.tell(&set(vec![ipv4.clone(), ipv6]), 0).unless(&[libc::EAFNOSUPPORT])? {
            Some(()) => Ok(()),
            None => self.tell(&set(vec![ipv4]), 0),
        }
    }

    /// Adds an address; IPv6 without the second of duplicate detection.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let message = address_message(index, address, prefix);
        self.tell(&RouteNetlinkMessage::NewAddress(message), NEW)
    }

    /// Removes an address.
    pub fn delete_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let message = address_message(index, address, prefix);
        self.tell(&RouteNetlinkMessage::DelAddress(message), 0)
    }

    /// The IPv4 addresses of a link, with prefix length.
    pub fn ipv4_addresses(&mut self, index: u32) -> Result<Vec<(IpAddr, u8)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let mut found = Vec::new();
        let dump = libc::NLM_F_DUMP as u16;
        self.ask(&RouteNetlinkMessage::GetAddress(message), dump, |answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return };
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            if let (true, Some(address)) = (message.header.index == index, local) {
                found.push((address, message.header.prefix_len));
            }
        })?;
        Ok(found)
    }

    /// Adds a route through a link.
    pub fn add_route(&mut self, index: u32, route: &Route) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.destination);
        message.header.destination_prefix_length = route.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        if route.gateway.is_none() {
            message.header.scope = RouteScope::Link;
        }
        if route.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        let mut attributes =
            vec![RouteAttribute::Destination(route.destination.into()), RouteAttribute::Oif(index)];
        attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        if route.metric != 0 {
            attributes.push(RouteAttribute::Priority(route.metric));
        }
        message.attributes = attributes;
        self.tell(&RouteNetlinkMessage::NewRoute(message), NEW)
    }

    fn set(&mut self, index: u32, attribute: LinkAttribute) -> Result<()> {
        self.tell(&RouteNetlinkMessage::SetLink(link_message(index, vec![attribute])), 0)
    }

    fn get_link(&mut self, mut message: LinkMessage) -> Result<Option<Link>> {
        // No use for the per-family counters, which are most of the answer.
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut link = None;
        let request = RouteNetlinkMessage::GetLink(message);
        self.ask(&request, 0, |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                link = Some(Link::from(message));
            }
        })
        .unless(&[libc::ENODEV])?;
        Ok(link)
    }

    fn tell(&mut self, message: &RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.ask(message, flags | libc::NLM_F_ACK as u16, |_| ())
    }

    fn ask(
        &mut self,
        message: &RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<()> {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        self.exchange(message.message_type(), flags, &body, |kind, answer| {
            let mut header = NetlinkHeader::default();
            header.message_type = kind;
            each(RouteNetlinkMessage::deserialize(&header, answer).map_err(Error::senseless)?);
            Ok(())
        })
    }

    /// One request and all of its answer: every message goes to `each` until
    /// the acknowledgement, the end of the dump, or a refusal. A request with
    /// neither flag has an answer of one message.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.sequence += 1;
        self.send(kind, flags | libc::NLM_F_REQUEST as u16, body)?;
        let is_single = flags & (libc::NLM_F_ACK | libc::NLM_F_DUMP) as u16 == 0;
        // The rest of an answer is read even after a failure: the next request
        // must not find it.
        let mut outcome = Ok(());
        loop {
            self.receive()?;
            let mut rest = self.buffer.as_slice();
            while let Some((message, after)) = Message::split(rest) {
                rest = after;
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => return outcome.and(message.verdict()),
                    kind if is_single => return each(kind, message.body),
                    kind if outcome.is_ok() => outcome = each(kind, message.body),
                    _ => {}
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let mut datagram = Vec::with_capacity(HEADER + body.len());
        datagram.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        datagram.extend(kind.to_ne_bytes());
        datagram.extend(flags.to_ne_bytes());
        datagram.extend(self.sequence.to_ne_bytes());
        datagram.extend(0u32.to_ne_bytes());
        datagram.extend(body);
        self.socket.send_to(&datagram, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first message of a datagram and what follows it.
    fn split(datagram: &'a [u8]) -> Option<(Message<'a>, &'a [u8])> {
        let length = u32_at(datagram, 0)? as usize;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER..length)?,
        };
        Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }

    /// What an acknowledgement or the end of a dump says.
    fn verdict(&self) -> Result<()> {
        match u32_at(self.body, 0).map_or(0, |code| code as i32) {
            code if code < 0 => Err(Error::refused(-code, self.words())),
            _ => Ok(()),
        }
    }

    /// The kernel's own words, which follow the code and the request's header.
    fn words(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let mut rest = self.body.get(4 + HEADER..)?;
        loop {
            let length = usize::from(u16_at(rest, 0)?);
            if u16_at(rest, 2)? == NLMSGERR_ATTR_MSG {
                let text = rest.get(4..length)?.split(|byte| *byte == 0).next()?;
                return Some(String::from_utf8_lossy(text).into_owned());
            }
            rest = rest.get(length.max(4).next_multiple_of(4)..)?;
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The kinds of link that are made or looked for by kind alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoKindName {
    /// A bridge.
    Bridge,
    /// An intermediate functional block: where arriving packets can be queued.
    Ifb,
}

impl InfoKindName {
    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            InfoKindName::Bridge => "bridge",
            InfoKindName::Ifb => "ifb",
        }
    }
}

impl From<InfoKindName> for InfoKind {
    fn from(kind: InfoKindName) -> Self {
        match kind {
            InfoKindName::Bridge => InfoKind::Bridge,
            InfoKindName::Ifb => InfoKind::Ifb,
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Link::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::PropList(names) => link.other_names = other_names(names),
                LinkAttribute::LinkNetNsId(id) => link.peer_ns = Some(id),
                LinkAttribute::LinkInfo(info) => link.kind = kind_of(&info),
                LinkAttribute::Stats64(s) => {
                    link.counters = Counters {
                        rx_bytes: s.rx_bytes,
                        rx_packets: s.rx_packets,
                        rx_errors: s.rx_errors,
                        rx_dropped: s.rx_dropped,
                        tx_bytes: s.tx_bytes,
                        tx_packets: s.tx_packets,
                        tx_errors: s.tx_errors,
                        tx_dropped: s.tx_dropped,
                    }
                }
                _ => {}
            }
        }
        link
    }
}

fn other_names(names: Vec<Prop>) -> Vec<String> {
    let name = |prop| match prop {
        Prop::AltIfName(name) => Some(name),
        _ => None,
    };
    names.into_iter().filter_map(name).collect()
}

fn kind_of(info: &[LinkInfo]) -> String {
    let kind = info.iter().find_map(|part| match part {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kind.unwrap_or_default()
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

/// Sets these flags of a link, and leaves the others.
fn with_flags(mut message: LinkMessage, flags: LinkFlags) -> LinkMessage {
    message.header.flags = flags;
    message.header.change_mask = flags;
    message
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let host = u32::MAX >> prefix;
            let broadcast = Ipv4Addr::from(u32::from(address) | host);
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(address) => {
            if address.is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}
