//! What the host, its operations and its events are.

use clap::Subcommand;

use super::client::Client;
use super::output::{self, Output, Table};
use super::serve::print_checks;
use crate::api::OperationList;
use crate::fault::{OrFault, Result};
use crate::types::{Event, HostInfo, HostStats};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show the host: what it has, what is given, what it can do
    Host,
    /// List the operations under way and those that ended lately
    Operations,
    /// Follow what happens to instances
    Events {
        /// Begin after the event with this number.
        #[arg(long, value_name = "NUMBER")]
        after: Option<u64>,
    },
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<()> {
    match command {
        Command::Host => host(client, output).await,
        Command::Operations => operations(client, output).await,
        Command::Events { after } => tokio::select! {
            ended = events(client, output, after) => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
        },
    }
}

async fn host(client: &Client, output: Output) -> Result<()> {
    let host: HostInfo = client.get("/v1/host").await?;
    if output.is_json() {
        return output::json(&host);
    }
    let stats: HostStats = client.get("/v1/host/stats").await?;
    let inventory = &host.inventory;
    let capabilities = &host.capabilities;
    let mut table = Table::new(&[]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row(
        "host",
        format!("{} ({}, Linux {})", host.hypervisor_hostname, host.architecture, host.kernel),
    );
    row("berth", format!("{}, up {}", host.version, output::since(host.service_started_at)));
    row("host up", output::duration(host.uptime));
    row("instances", format!("{}, {} running", inventory.instances, inventory.running_instances));
    row("shared CPUs", format!("{} given of {}", inventory.vcpus_used, inventory.vcpus));
    row("dedicated CPUs", format!("{} given of {}", inventory.pcpus_used, inventory.pcpus));
    row("memory", format!("{} MiB given of {} MiB", inventory.memory_mb_used, inventory.memory_mb));
    row("memory available", output::bytes(stats.memory_available));
    row(
        "disk",
        format!(
            "{} GiB given of {} GiB, {} GiB free",
            inventory.local_gb_used, inventory.local_gb, inventory.disk_available_gb
        ),
    );
    row("load", stats.load.map(|load| format!("{load:.2}")).join(" "));
    row("service memory", output::bytes(stats.service_memory));
    row("runtime", format!("{} ({})", capabilities.runtime.path, capabilities.runtime.version));
    row("cgroups", capabilities.cgroup_layout.clone());
    table.print()?;
    output::write(b"\n")?;
    print_checks(&capabilities.checks)
}

async fn operations(client: &Client, output: Output) -> Result<()> {
    let list: OperationList = client.get("/v1/operations").await?;
    output.show(&list, |list| {
        let mut table =
            Table::new(&["ID", "KIND", "TARGET", "STATUS", "STAGE", "AGE", "TOOK", "FAULT"]);
        for operation in &list.operations {
            let took = operation
                .finished_at
                .map(|end| format!("{} ms", (end - operation.created_at).num_milliseconds()));
            let share = operation.progress.filter(|_| operation.finished_at.is_none());
            let stage = match share {
                Some(percent) => format!("{} {percent} %", operation.stage),
                None => operation.stage.clone(),
            };
            table.row([
                operation.id.to_string(),
                operation.kind.clone(),
                operation.target.to_string(),
                format!("{:?}", operation.status).to_lowercase(),
                stage,
                output::since(operation.created_at),
                took.unwrap_or_default(),
                operation.fault.as_ref().map(|f| output::told(&f.detail)).unwrap_or_default(),
            ]);
        }
        table
    })
}

async fn events(client: &Client, output: Output, after: Option<u64>) -> Result<()> {
    let query = after.map(|after| format!("?after={after}")).unwrap_or_default();
    let mut response = client.open(&format!("/v1/events{query}")).await?;
    let mut pending = Vec::new();
    while let Some(chunk) = response.chunk().await.or_fault("following the events")? {
        pending.extend_from_slice(&chunk);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                print_event(output, data)?;
            }
        }
    }
    eprintln!("berth: the service ended the stream");
    Ok(())
}

fn print_event(output: Output, data: &[u8]) -> Result<()> {
    if output.is_json() {
        return output::write(data);
    }
    let event: Event = serde_json::from_slice(data).or_fault("reading an event")?;
    let kind = serde_json::to_value(event.kind).or_fault("reading an event")?;
    let line = format!(
        "{} {} {:14} {} {} {}\n",
        event.sequence,
        event.at.format("%Y-%m-%dT%H:%M:%S%.3fZ"),
        kind.as_str().unwrap_or_default(),
        event.instance_id,
        event.power_state,
        event.request_id.unwrap_or_default()
    );
    output::write(line.as_bytes())
}
