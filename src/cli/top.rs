//! `berth top`: what every instance uses.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use uuid::Uuid;

use super::client::Client;
use super::output::{self, Output, Table};
use crate::api::{InstanceList, StatsList};
use crate::fault::Result;
use crate::types::InstanceStats;

#[derive(Args)]
pub(super) struct Options {
    /// Measure once and end.
    #[arg(long)]
    once: bool,
    /// Seconds between two measurements, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=3600))]
    interval: u16,
}

pub(super) async fn run(client: &Client, output: Output, options: Options) -> Result<()> {
    let interval = Duration::from_secs(u64::from(options.interval));
    if output.is_json() && options.once {
        return output::json(&client.get::<StatsList>("/v1/stats").await?);
    }
    let mut before = measure(client).await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let now = measure(client).await?;
        if output.is_json() {
            output::json(&StatsList { stats: now.values().cloned().collect() })?;
        } else {
            let names = client.get::<InstanceList>("/v1/instances").await?;
            let names = names.instances.into_iter().map(|i| (i.id, i.definition.name)).collect();
            let table = table(&before, &now, &names).render();
            // Clears the screen first, unless the output is to be kept.
            if !options.once {
                output::Stream::stdout(true).write(b"\x1b[H\x1b[2J")?;
            }
            output::write(table.as_bytes())?;
        }
        if options.once {
            return Ok(());
        }
        before = now;
    }
}

async fn measure(client: &Client) -> Result<HashMap<Uuid, InstanceStats>> {
    let list: StatsList = client.get("/v1/stats").await?;
    Ok(list.stats.into_iter().map(|stats| (stats.id, stats)).collect())
}

/// The busiest first. Rates are those between the two measurements.
fn table(
    before: &HashMap<Uuid, InstanceStats>,
    now: &HashMap<Uuid, InstanceStats>,
    names: &HashMap<Uuid, String>,
) -> Table {
    let mut rows: Vec<(f64, [String; 9])> = now
        .values()
        .map(|stats| {
            let rates = Rates::between(before.get(&stats.id).unwrap_or(stats), stats);
            let row = [
                stats.id.to_string()[..8].to_owned(),
                names.get(&stats.id).cloned().unwrap_or_default(),
                format!("{:.1}", rates.cpu_percent),
                format!(
                    "{} / {}",
                    output::bytes(stats.memory.usage),
                    output::bytes(stats.memory.limit)
                ),
                format!("{} / {}", stats.pids.current, stats.pids.limit),
                format!("{}/s", output::bytes(rates.read)),
                format!("{}/s", output::bytes(rates.written)),
                format!("{}/s", output::bytes(rates.received)),
                format!("{}/s", output::bytes(rates.sent)),
            ];
            (rates.cpu_percent, row)
        })
        .collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let head =
        ["ID", "NAME", "CPU %", "MEMORY", "PIDS", "DISK READ", "DISK WRITE", "NET IN", "NET OUT"];
    let mut table = Table::new(&head);
    for (_, row) in rows {
        table.row(row);
    }
    table
}

/// Change in a second. Counters that went back, as after a restart, count from 0.
#[derive(Debug, PartialEq)]
struct Rates {
    /// 100 is one CPU.
    cpu_percent: f64,
    read: u64,
    written: u64,
    received: u64,
    sent: u64,
}

impl Rates {
    fn between(before: &InstanceStats, now: &InstanceStats) -> Rates {
        let seconds = (now.at - before.at).as_seconds_f64();
        let rate = |before: u64, now: u64| {
            let grown = if now >= before { now - before } else { now };
            if seconds > 0.0 { grown as f64 / seconds } else { 0.0 }
        };
        let sum = |of: &InstanceStats, field: fn(&crate::types::BlockStats) -> u64| {
            of.block.iter().map(field).sum::<u64>()
        };
        let net = |of: &InstanceStats, field: fn(&crate::types::InterfaceStats) -> u64| {
            of.interfaces.iter().map(field).sum::<u64>()
        };
        Rates {
            cpu_percent: rate(before.cpu.usage_ns, now.cpu.usage_ns) / 1e7,
            read: rate(sum(before, |b| b.read_bytes), sum(now, |b| b.read_bytes)) as u64,
            written: rate(sum(before, |b| b.write_bytes), sum(now, |b| b.write_bytes)) as u64,
            received: rate(net(before, |i| i.rx_bytes), net(now, |i| i.rx_bytes)) as u64,
            sent: rate(net(before, |i| i.tx_bytes), net(now, |i| i.tx_bytes)) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{CpuStats, InterfaceStats, MemoryStats, PidsStats};
    use chrono::{TimeDelta, Utc};

    fn stats(usage_ns: u64, rx_bytes: u64, seconds: i64) -> InstanceStats {
        InstanceStats {
            id: Uuid::nil(),
            at: chrono::DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(seconds),
            uptime: 0,
            cpu: CpuStats { usage_ns, ..CpuStats::default() },
            memory: MemoryStats::default(),
            pids: PidsStats::default(),
            block: vec![],
            interfaces: vec![InterfaceStats { rx_bytes, ..InterfaceStats::default() }],
            pressure: None,
        }
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let rates = Rates::between(&stats(1_000_000_000, 100, 10), &stats(4_000_000_000, 300, 12));
        assert!((rates.cpu_percent - 150.0).abs() < 1e-9);
        assert_eq!(rates.received, 100);
        let restarted = Rates::between(&stats(9_000_000_000, 0, 10), &stats(1_000_000_000, 0, 11));
        assert!((restarted.cpu_percent - 100.0).abs() < 1e-9);
        let same = stats(1, 1, 1);
        assert_eq!(Rates::between(&same, &same).received, 0);
    }
}
