//! `quota:vif_*` of a flavor: how fast an instance's interfaces may be; pure.
//!
//! Units are those that the same flavor has on a libvirt host, so that a VM
//! and a container of it are equally fast. libvirt documents kilobytes per
//! second and hands them to `tc` as `kbps`, 1000 bytes per second; bursts are
//! kilobytes that it hands over as `kb`, 1024 bytes.

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};
use crate::types::ExtraSpecs;

/// Bytes per second in one unit of `average` and `peak`.
const RATE_UNIT: u64 = 1000;
/// Bytes in one unit of `burst`.
const BURST_UNIT: u64 = 1024;
/// Largest `average` and `peak`: what libvirt's 32 bits hold, over 4 TB/s.
const RATE_MAX: u64 = u32::MAX as u64;
/// Largest `burst`: the kernel counts its bytes in 32 bits.
const BURST_MAX: u64 = u32::MAX as u64 / BURST_UNIT;
/// Least size of a bucket, bytes: a segment as the kernel hands it around
/// before cutting it (64 KiB), with the headers of every packet it becomes.
pub const BUCKET_MIN: u64 = 72 * 1024;

/// Limits of an instance's interfaces, each interface on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Towards the instance; absent: no limit.
    pub inbound: Option<Rate>,
    /// From the instance; absent: no limit.
    pub outbound: Option<Rate>,
}

/// A token bucket: `average` in the long run, `burst` bytes at up to `peak` after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes per second.
    pub average: u64,
    /// Bytes per second within a burst, more than `average`; absent: as fast as the link is.
    pub peak: Option<u64>,
    /// Bytes, at least [`BUCKET_MIN`].
    pub burst: u64,
}

impl Rates {
    /// Reads `quota:vif_{inbound,outbound}_{average,peak,burst}`; a zero is as absent.
    ///
    /// * `average` (kB/s) is needed for the other two.
    /// * `peak` (kB/s), at least `average`; an equal one allows no burst.
    /// * `burst` (KiB) has a floor of 72 KiB, below which a single segment of the kernel's
    ///   would not fit; when absent it is 4 ms of `average`, with the same floor.
    pub fn from_extra_specs(specs: &ExtraSpecs) -> Result<Rates> {
        Ok(Rates { inbound: direction(specs, "inbound")?, outbound: direction(specs, "outbound")? })
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Rates::default()
    }
}

fn direction(specs: &ExtraSpecs, direction: &str) -> Result<Option<Rate>> {
    let average = number(specs, direction, "average", RATE_MAX)?.map(|n| n * RATE_UNIT);
    let peak = number(specs, direction, "peak", RATE_MAX)?.map(|n| n * RATE_UNIT);
    let burst = number(specs, direction, "burst", BURST_MAX)?.map(|n| n * BURST_UNIT);
    let Some(average) = average else {
        let other = peak.map(|_| "peak").or(burst.map(|_| "burst"));
        return other.map_or(Ok(None), |other| {
            Err(Fault::invalid(
                field(direction, other),
                format!("has no meaning without {}", name(direction, "average")),
            ))
        });
    };
    if peak.is_some_and(|peak| peak < average) {
        return Err(Fault::invalid(
            field(direction, "peak"),
            format!("must be at least {}", name(direction, "average")),
        ));
    }
    let brief = (average / 250).clamp(BUCKET_MIN, u64::from(u32::MAX));
    Ok(Some(match peak {
        // The kernel wants a peak above the average; without one, no burst comes out the same.
        Some(peak) if peak == average => Rate { average, peak: None, burst: brief },
        _ => Rate { average, peak, burst: burst.unwrap_or(brief).max(BUCKET_MIN) },
    }))
}

fn number(specs: &ExtraSpecs, direction: &str, what: &str, most: u64) -> Result<Option<u64>> {
    let Some(text) = specs.get(&name(direction, what)) else { return Ok(None) };
    match text.trim().parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(number) if number <= most => Ok(Some(number)),
        _ => Err(Fault::invalid(
            field(direction, what),
            format!("{text:?} must be a whole number, 0 (no limit) to {most}"),
        )),
    }
}

fn name(direction: &str, what: &str) -> String {
    format!("quota:vif_{direction}_{what}")
}

fn field(direction: &str, what: &str) -> String {
    format!("flavor.extra_specs.{}", name(direction, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(specs: &[(&str, &str)]) -> Result<Rates> {
        let specs = specs.iter().map(|(k, v)| (format!("quota:vif_{k}"), (*v).into())).collect();
        Rates::from_extra_specs(&specs)
    }

    #[test]
    fn nothing_and_zero_are_no_limit() {
        assert!(read(&[]).unwrap().is_unlimited());
        assert!(read(&[("inbound_average", "0"), ("inbound_burst", "0")]).unwrap().is_unlimited());
    }

    #[test]
    fn units_are_libvirts() {
        let rates = read(&[
            ("inbound_average", "32768"),
            ("inbound_peak", "65536"),
            ("inbound_burst", "65536"),
            ("outbound_average", "1000000"),
        ]);
        let inbound = Rate { average: 32_768_000, peak: Some(65_536_000), burst: 65_536 * 1024 };
        let outbound = Rate { average: 1_000_000_000, peak: None, burst: 4_000_000 };
        assert_eq!(rates.unwrap(), Rates { inbound: Some(inbound), outbound: Some(outbound) });
    }

    #[test]
    fn a_bucket_holds_a_segment_and_an_equal_peak_allows_no_burst() {
        let small = read(&[("inbound_average", "10"), ("inbound_burst", "1")]).unwrap();
        assert_eq!(small.inbound.unwrap().burst, BUCKET_MIN);
        let flat =
            read(&[("inbound_average", "10"), ("inbound_peak", "10"), ("inbound_burst", "99999")]);
        let expected = Rate { average: 10_000, peak: None, burst: BUCKET_MIN };
        assert_eq!(flat.unwrap().inbound, Some(expected));
    }

    #[test]
    fn faults_name_the_spec() {
        for (specs, at) in [
            (&[("inbound_average", "-1")][..], "inbound_average"),
            (&[("outbound_average", "fast")], "outbound_average"),
            (&[("outbound_average", "4294967296")], "outbound_average"),
            (&[("inbound_average", "1"), ("inbound_burst", "4194304")], "inbound_burst"),
            (&[("inbound_peak", "1")], "inbound_peak"),
            (&[("outbound_burst", "1")], "outbound_burst"),
            (&[("inbound_average", "2"), ("inbound_peak", "1")], "inbound_peak"),
        ] {
            let fault = read(specs).unwrap_err();
            let expected = format!("flavor.extra_specs.quota:vif_{at}");
            assert_eq!(fault.field.as_deref(), Some(expected.as_str()), "{fault}");
        }
    }
}
