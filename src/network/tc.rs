//! Traffic control as bytes: token buckets, and arriving packets led elsewhere.
//!
//! The netlink crates do not know these attributes. Layouts are those of
//! `linux/pkt_sched.h`, `linux/pkt_cls.h` and `linux/tc_act/tc_mirred.h`.

use crate::network::netlink::{NEW, Netlink, REPLACE, Result, Tolerant};
use crate::network::rates::{BUCKET_MIN, Rate};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_PRATE64: u16 = 5;
const TCA_TBF_BURST: u16 = 6;
const TCA_TBF_PBURST: u16 = 7;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Handle of every ingress queueing discipline.
const INGRESS: u32 = 0xffff_0000;
/// Handle of our own at the root: by it we know it again and spare anyone else's.
const OURS: u32 = 0xbe00_0000;
/// Handle of what drops everything.
const MUTE: u32 = 0xbe01_0000;
/// The only entry of the filter's only hash table: giving it makes a second request replace it.
const FILTER: u32 = 0x8000_0800;
/// What comes first among filters, and what comes after a guard: the priority in the upper
/// half, and packets of every protocol.
const FIRST: u32 = (1 << 16) | (libc::ETH_P_ALL as u16).to_be() as u32;
const AFTER_GUARD: u32 = (2 << 16) | (libc::ETH_P_ALL as u16).to_be() as u32;
/// The only guard of a link.
const GUARD: u32 = 1;

const TC_LINKLAYER_ETHERNET: u8 = 1;
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_STOLEN: u32 = 4;
/// The program itself says what becomes of a packet.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TCA_EGRESS_REDIR: u32 = 1;

/// Longest time that a packet may wait for its tokens, as a part of a second.
const QUEUE_PART: u64 = 20;
/// Least and largest queue, bytes: a few segments for a sender to find its
/// pace with, and no more memory than an instance should tie up.
const QUEUE: (u64, u64) = (256 * 1024, 4 * 1024 * 1024);

/// Lets a link send no faster than `rate`; changes the rate of one that is there.
pub fn shape(netlink: &mut Netlink, link: u32, rate: &Rate) -> Result<()> {
    let body = Body::new(link, OURS, TC_H_ROOT, 0)
        .text(TCA_KIND, "tbf")
        .nest(TCA_OPTIONS, &bucket(rate))
        .bytes;
    netlink.request(RTM_NEWQDISC, REPLACE, &body)
}

/// Undoes [`shape`]; refused with `ENOENT` or `EINVAL` where there is nothing of ours.
pub fn unshape(netlink: &mut Netlink, link: u32) -> Result<()> {
    netlink.request(RTM_DELQDISC, 0, &Body::new(link, OURS, TC_H_ROOT, 0).bytes)
}

/// Lets a link send nothing, instead of what [`shape`] allowed; [`shape`] ends it, too.
pub fn mute(netlink: &mut Netlink, link: u32) -> Result<()> {
    let body = Body::new(link, MUTE, TC_H_ROOT, 0).text(TCA_KIND, "blackhole").bytes;
    netlink.request(RTM_NEWQDISC, REPLACE, &body)
}

/// Undoes [`mute`]; refused as [`unshape`] is.
pub fn unmute(netlink: &mut Netlink, link: u32) -> Result<()> {
    netlink.request(RTM_DELQDISC, 0, &Body::new(link, MUTE, TC_H_ROOT, 0).bytes)
}

/// Makes the place where packets arriving at a link are filtered.
pub fn open_ingress(netlink: &mut Netlink, link: u32) -> Result<()> {
    let body = Body::new(link, INGRESS, TC_H_INGRESS, 0).text(TCA_KIND, "ingress").bytes;
    netlink.request(RTM_NEWQDISC, NEW, &body)
}

/// Undoes [`open_ingress`] and [`redirect`]; refused with `ENOENT` or `EINVAL` where there is none.
pub fn close_ingress(netlink: &mut Netlink, link: u32) -> Result<()> {
    netlink.request(RTM_DELQDISC, 0, &Body::new(link, INGRESS, TC_H_INGRESS, 0).bytes)
}

/// Leads all packets arriving at a link through another one, `to`, first; where there is a
/// [`guard`], those that it lets pass.
pub fn redirect(netlink: &mut Netlink, link: u32, to: u32, guarded: bool) -> Result<()> {
    let action = Body::default()
        .text(TCA_ACT_KIND, "mirred")
        .nest(TCA_ACT_OPTIONS, &Body::default().raw(TCA_MIRRED_PARMS, &mirred(to)));
    let options = Body::default()
        .raw(TCA_U32_SEL, &match_everything())
        .nest(TCA_U32_ACT, &Body::default().nest(1, &action));
    let place = if guarded { AFTER_GUARD } else { FIRST };
    let body = Body::new(link, FILTER, INGRESS, place)
        .text(TCA_KIND, "u32")
        .nest(TCA_OPTIONS, &options)
        .bytes;
    netlink.request(RTM_NEWTFILTER, REPLACE, &body)
}

/// Undoes a [`redirect`] behind a guard; refused with `ENOENT` or `EINVAL` where there is none.
pub fn unredirect(netlink: &mut Netlink, link: u32) -> Result<()> {
    netlink.request(RTM_DELTFILTER, 0, &Body::new(link, 0, INGRESS, AFTER_GUARD).bytes)
}

/// Lets a program of the kernel's classic packet filter say which of the packets that arrive
/// at a link pass, instead of the one before. It ends with the link.
pub fn guard(netlink: &mut Netlink, link: u32, program: &[u8]) -> Result<()> {
    let options = Body::default()
        .raw(TCA_BPF_OPS_LEN, &((program.len() / 8) as u16).to_ne_bytes())
        .raw(TCA_BPF_OPS, program)
        .raw(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let body = Body::new(link, GUARD, INGRESS, FIRST)
        .text(TCA_KIND, "bpf")
        .nest(TCA_OPTIONS, &options)
        .bytes;
    open_ingress(netlink, link).unless(&[libc::EEXIST])?;
    match netlink.request(RTM_NEWTFILTER, REPLACE, &body) {
        // A redirection has the place: berth had no guards once.
        Err(error) if error.errno() == libc::EINVAL => {
            netlink.request(RTM_DELTFILTER, 0, &Body::new(link, 0, INGRESS, FIRST).bytes)?;
            netlink.request(RTM_NEWTFILTER, REPLACE, &body)
        }
        set => set,
    }
}

/// The options of `tbf`.
fn bucket(rate: &Rate) -> Body {
    let (least, most) = QUEUE;
    let queue = (rate.average / QUEUE_PART).clamp(least, most) + rate.burst;
    let mut parameters = rate_spec(rate.average).to_vec();
    parameters.extend(rate_spec(rate.peak.unwrap_or(0)));
    parameters.extend(saturate(queue).to_ne_bytes());
    // Bucket sizes in clock ticks, overruled by the two in bytes below.
    parameters.extend([0; 8]);
    let mut options = Body::default()
        .raw(TCA_TBF_PARMS, &parameters)
        .raw(TCA_TBF_BURST, &saturate(rate.burst).to_ne_bytes());
    if rate.average > u64::from(u32::MAX) {
        options = options.raw(TCA_TBF_RATE64, &rate.average.to_ne_bytes());
    }
    let Some(peak) = rate.peak else { return options };
    if peak > u64::from(u32::MAX) {
        options = options.raw(TCA_TBF_PRATE64, &peak.to_ne_bytes());
    }
    // What passes at once within a burst; also never less than a segment.
    let at_once = (peak / 250).clamp(BUCKET_MIN, rate.burst.max(BUCKET_MIN));
    options.raw(TCA_TBF_PBURST, &saturate(at_once).to_ne_bytes())
}

/// `struct tc_ratespec`; naming the link layer saves the table of transmission times.
fn rate_spec(rate: u64) -> [u8; 12] {
    let mut spec = [0; 12];
    spec[1] = TC_LINKLAYER_ETHERNET;
    spec[8..].copy_from_slice(&saturate(rate).to_ne_bytes());
    spec
}

/// `struct tc_u32_sel` without a key.
fn match_everything() -> [u8; 16] {
    let mut selector = [0; 16];
    selector[0] = TC_U32_TERMINAL;
    selector
}

/// `struct tc_mirred`: index, capabilities, what becomes of the packet, two
/// counts, what is done, and the link to.
fn mirred(to: u32) -> Vec<u8> {
    [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to].iter().flat_map(|n| n.to_ne_bytes()).collect()
}

fn saturate(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Attributes one after the other, each padded to four bytes.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
}

impl Body {
    /// Begins with `struct tcmsg`.
    fn new(link: u32, handle: u32, parent: u32, info: u32) -> Body {
        let numbers = [0, link, handle, parent, info];
        Body { bytes: numbers.iter().flat_map(|n: &u32| n.to_ne_bytes()).collect() }
    }

    fn raw(mut self, kind: u16, value: &[u8]) -> Body {
        let length = 4 + value.len();
        self.bytes.extend((length as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, value: &str) -> Body {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.raw(kind, &bytes)
    }

    fn nest(self, kind: u16, inner: &Body) -> Body {
        self.raw(kind, &inner.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let body = Body::default().text(1, "tbf").raw(2, &[9; 5]).bytes;
        assert_eq!(body[..2], 8u16.to_ne_bytes());
        assert_eq!(body[4..8], *b"tbf\0");
        assert_eq!(body[8..10], 9u16.to_ne_bytes());
        assert_eq!(body.len(), 20);
    }

    #[test]
    fn rates_beyond_32_bits_get_an_attribute_of_64() {
        let rate = Rate { average: 1 << 33, peak: Some(1 << 34), burst: BUCKET_MIN };
        let body = bucket(&rate).bytes;
        assert!(body.windows(8).any(|w| w == (1u64 << 33).to_ne_bytes()));
        assert!(body.windows(8).any(|w| w == (1u64 << 34).to_ne_bytes()));
        assert_eq!(rate_spec(1 << 33)[8..], [0xff; 4]);
    }
}
