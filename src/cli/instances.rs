//! Commands on instances.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::{Method, Url};
use serde_json::json;
use uuid::Uuid;

use super::attach::{self, Ending, Joined};
use super::client::Client;
use super::output::{self, Output, Stream, Table};
use super::terminal;
use crate::api::InstanceList;
use crate::fault::{Fault, OrFault, Result, harmless};
use crate::types::{
    Flavor, Instance, InstanceCreate, InstanceMigration, Migrate, MigrationState, Reboot,
    RebootType, Rescue, Resize, RevertMigration, Stop, UnconfirmedResize, Vif,
};

/// Exit code when a command could not be run at all, as `env` and others have it.
const NOT_RUN: u8 = 125;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the instances
    List,
    /// Show an instance
    Show {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Make an instance from a file; it is not started
    Create {
        /// JSON file with the body of the API's PUT; - is standard input.
        file: PathBuf,
        /// Its id; without it, a new one.
        #[arg(long)]
        id: Option<Uuid>,
    },
    /// Start an instance
    Start {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Stop an instance
    Stop {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// Seconds that its init may take, 0 to 3600.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Reboot an instance, through its init unless told otherwise
    Reboot {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// At once, without asking its init.
        #[arg(long)]
        hard: bool,
        /// Seconds that its init may take, 0 to 3600.
        #[arg(long, value_name = "SECONDS", conflicts_with = "hard")]
        timeout: Option<u32>,
    },
    /// Freeze an instance
    Pause {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Thaw a paused instance
    Unpause {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Freeze an instance and give its memory back
    Suspend {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Thaw a suspended instance
    Resume {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Write what an instance is doing to its console: processes, what they wait for, open files
    Dump {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Change an instance's limits, also while it runs
    Resize(ResizeOptions),
    /// Drop what a resize with --keep kept
    ResizeConfirm {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Make an instance what it was before a resize with --keep; what was written since is lost
    ResizeRevert {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Move an instance to another host's service; one that runs is stopped
    Migrate {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// The other service, https://host:port.
        to: String,
        /// Seconds that its init may take to stop, 0 to 3600.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Take an instance back that has moved to another host
    MigrateRevert {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// The other host never comes back: do not ask it. If it does, both have the instance.
        #[arg(long)]
        force: bool,
    },
    /// Boot a stopped instance from another image, its own root file system at /mnt/instance
    Rescue {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// Id of the image.
        image: Uuid,
    },
    /// Boot a rescued instance from its own root file system again
    Unrescue {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
    },
    /// Destroy instances with their disks
    Delete {
        /// Their ids, unique beginnings of them, or their names.
        #[arg(required = true)]
        instances: Vec<String>,
    },
    /// Attach to an instance's console
    Console {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// The key that lets go of the console.
        #[arg(long, value_name = "KEY", default_value = "ctrl-]")]
        detach_key: String,
    },
    /// Write what an instance's console said
    ///
    /// To a pipe or a file the bytes go as they are. A terminal is told nothing by them: colours
    /// are left out, other control characters and what is no UTF-8 are shown by their numbers.
    Log {
        /// Its id, a unique beginning of it, or its name.
        instance: String,
        /// Go on as it says more.
        #[arg(short, long)]
        follow: bool,
        /// Only the last so many bytes.
        #[arg(short = 'n', long, value_name = "BYTES")]
        bytes: Option<u64>,
        /// Also to a terminal as it is: whoever writes to the console can make the terminal
        /// do what terminals do.
        #[arg(long)]
        raw: bool,
    },
    /// Run a command inside an instance
    ///
    /// Without --tty, what it says tells a terminal nothing, as with log.
    Exec(ExecOptions),
}

#[derive(Args)]
pub(super) struct ResizeOptions {
    /// Its id, a unique beginning of it, or its name.
    instance: String,
    /// CPUs' worth of time.
    #[arg(long)]
    vcpus: Option<u32>,
    /// Memory, MiB.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Root disk, GiB; it only grows.
    #[arg(long, value_name = "GIB")]
    root: Option<u64>,
    /// Swap, MiB.
    #[arg(long, value_name = "MIB")]
    swap: Option<u64>,
    /// Sets an extra spec; an empty value removes it.
    #[arg(long = "extra-spec", value_name = "NAME=VALUE")]
    extra_specs: Vec<String>,
    /// Stop it, and keep its flavor and disks until resize-confirm or resize-revert.
    #[arg(long)]
    keep: bool,
    /// Seconds that its init may take to stop, 0 to 3600.
    #[arg(long, value_name = "SECONDS", requires = "keep")]
    timeout: Option<u32>,
}

#[derive(Args)]
pub(super) struct ExecOptions {
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Run it as this user: user, uid, user:group or uid:gid.
    #[arg(short, long)]
    user: Option<String>,
    /// Add to its environment.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The instance's id, a unique beginning of it, or its name.
    instance: String,
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<ExitCode> {
    match command {
        Command::List => list(client, output).await?,
        Command::Show { instance } => {
            let path = path(client, &instance, "").await?;
            show(output, &client.get(&path).await?)?;
        }
        Command::Create { file, id } => create(client, output, &file, id).await?,
        Command::Start { instance } => act(client, output, &instance, "start", &json!({})).await?,
        Command::Stop { instance, timeout } => {
            act(client, output, &instance, "stop", &Stop { timeout }).await?;
        }
        Command::Reboot { instance, hard, timeout } => {
            let reboot_type = if hard { RebootType::Hard } else { RebootType::Soft };
            act(client, output, &instance, "reboot", &Reboot { reboot_type, timeout }).await?;
        }
        Command::Pause { instance } => act(client, output, &instance, "pause", &json!({})).await?,
        Command::Unpause { instance } => {
            act(client, output, &instance, "unpause", &json!({})).await?;
        }
        Command::Suspend { instance } => {
            act(client, output, &instance, "suspend", &json!({})).await?;
        }
        Command::Resume { instance } => {
            act(client, output, &instance, "resume", &json!({})).await?;
        }
        Command::Dump { instance } => act(client, output, &instance, "dump", &json!({})).await?,
        Command::Resize(options) => resize(client, output, options).await?,
        Command::ResizeConfirm { instance } => {
            act(client, output, &instance, "resize/confirm", &json!({})).await?;
        }
        Command::ResizeRevert { instance } => {
            act(client, output, &instance, "resize/revert", &json!({})).await?;
        }
        Command::Migrate { instance, to, timeout } => {
            let wanted = Migrate { to, flavor: None, timeout };
            act(client, output, &instance, "migrate", &wanted).await?;
        }
        Command::MigrateRevert { instance, force } => {
            act(client, output, &instance, "migrate/revert", &RevertMigration { force }).await?;
        }
        Command::Rescue { instance, image } => {
            let wanted = Rescue { image_id: image, environment: None, files: None };
            act(client, output, &instance, "rescue", &wanted).await?;
        }
        Command::Unrescue { instance } => {
            act(client, output, &instance, "unrescue", &json!({})).await?;
        }
        Command::Delete { instances } => {
            for instance in instances {
                client.delete(&path(client, &instance, "").await?).await?;
            }
        }
        Command::Console { instance, detach_key } => {
            console(client, &instance, &detach_key).await?
        }
        Command::Log { instance, follow, bytes, raw } => {
            log(client, &instance, follow, bytes, Stream::stdout(raw)).await?;
        }
        Command::Exec(options) => return exec(client, options).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn path(client: &Client, instance: &str, rest: &str) -> Result<String> {
    Ok(format!("/v1/instances/{}{rest}", client.instance(instance).await?))
}

async fn list(client: &Client, output: Output) -> Result<()> {
    let list: InstanceList = client.get("/v1/instances").await?;
    output.show(&list, |list| {
        let head = ["ID", "NAME", "STATE", "TASK", "VCPUS", "MEMORY", "ROOT", "ADDRESSES", "UP"];
        let mut table = Table::new(&head);
        for instance in &list.instances {
            let flavor = &instance.definition.flavor;
            table.row([
                instance.id.to_string(),
                instance.definition.name.clone(),
                instance.power_state.to_string(),
                task(instance),
                flavor.vcpus.to_string(),
                format!("{} MiB", flavor.memory_mb),
                format!("{} GiB", flavor.root_gb),
                addresses(&instance.definition.vifs),
                instance.pid.and(instance.started_at).map(output::since).unwrap_or_default(),
            ]);
        }
        table
    })
}

fn task(instance: &Instance) -> String {
    let task = instance.task_state.and_then(|task| serde_json::to_value(task).ok());
    task.and_then(|task| task.as_str().map(str::to_owned)).unwrap_or_default()
}

fn addresses(vifs: &[Vif]) -> String {
    let addresses: Vec<&str> =
        vifs.iter().flat_map(|vif| &vif.addresses).map(String::as_str).collect();
    addresses.join(" ")
}

fn show(output: Output, instance: &Instance) -> Result<()> {
    output.show(instance, |instance| {
        let Flavor { name, vcpus, memory_mb, root_gb, ephemeral_gb, swap_mb, extra_specs } =
            &instance.definition.flavor;
        let mut table = Table::new(&[]);
        let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
        row("id", instance.id.to_string());
        row("name", instance.definition.name.clone());
        row("power state", instance.power_state.to_string());
        row("task", task(instance));
        row("image", instance.definition.image_id.to_string());
        if let Some(image) = instance.rescue_image_id {
            row("rescued with", format!("image {image}"));
        }
        row("flavor", name.clone());
        row("vcpus", vcpus.to_string());
        if let Some(cpus) = &instance.pinned_cpus {
            let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
            row("pinned to", format!("CPUs {}", cpus.join(", ")));
        }
        row("memory", format!("{memory_mb} MiB, swap {swap_mb} MiB"));
        row("disks", format!("root {root_gb} GiB, ephemeral {ephemeral_gb} GiB"));
        for (spec, value) in extra_specs {
            row("extra spec", format!("{spec} = {value}"));
        }
        for vif in &instance.definition.vifs {
            let addresses = vif.addresses.join(" ");
            row(
                "interface",
                format!("{} {} mtu {} {addresses}", vif.devname, vif.address, vif.mtu),
            );
        }
        if let Some(UnconfirmedResize { flavor, since }) = &instance.unconfirmed_resize {
            let name = &flavor.name;
            row("resize", format!("from {name}, awaits confirm or revert since {since}"));
        }
        if let Some(InstanceMigration { to, state, since }) = &instance.migration {
            let state = match state {
                MigrationState::Copying => "on its way to",
                MigrationState::Committing => "not known whether it is on",
                MigrationState::Moved => "moved to",
            };
            row("migration", format!("{state} {to} since {since}"));
        }
        for volume in &instance.volumes {
            let read_only = if volume.read_only { ", read-only" } else { "" };
            let from = output::told(&volume.source.path().display().to_string());
            let size = output::bytes(volume.bytes);
            row(
                "volume",
                format!("{} {size}{read_only}, {} from {from}", volume.device, volume.id),
            );
        }
        row("pid", instance.pid.map(|pid| pid.to_string()).unwrap_or_default());
        row("root outside", format!("uid {}", instance.id_map_first));
        row("created", instance.created_at.to_rfc3339());
        row("started", instance.started_at.map(|at| at.to_rfc3339()).unwrap_or_default());
        row("guest reboots", instance.guest_reboots.to_string());
        if let Some(exit) = &instance.exit {
            row("last exit", describe_exit(exit));
        }
        if let Some(fault) = &instance.fault {
            row("fault", format!("{}: {}", fault.code.code(), output::told(&fault.detail)));
        }
        table
    })
}

fn describe_exit(exit: &crate::types::ExitStatus) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    };
    let memory = if exit.oom_killed { ", killed for want of memory" } else { "" };
    format!("{how}{memory}, {}", exit.at.to_rfc3339())
}

async fn create(client: &Client, output: Output, file: &Path, id: Option<Uuid>) -> Result<()> {
    let request: InstanceCreate = read_json(file)?;
    let id = id.unwrap_or_else(Uuid::new_v4);
    let path = format!("/v1/instances/{id}");
    let instance: Instance = client.send_json(Method::PUT, &path, &request).await?;
    if output.is_json() {
        output::json(&instance)
    } else {
        output::write(format!("{id}\n").as_bytes())
    }
}

fn read_json(file: &Path) -> Result<InstanceCreate> {
    let cannot =
        |e: std::io::Error| Fault::invalid("FILE", format!("cannot read {}: {e}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(cannot)?;
    } else {
        text = std::fs::read_to_string(file).map_err(cannot)?;
    }
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|e| Fault::invalid(e.path().to_string(), e.into_inner().to_string()))
}

async fn act(
    client: &Client,
    output: Output,
    instance: &str,
    action: &str,
    body: &impl serde::Serialize,
) -> Result<()> {
    let path = path(client, instance, &format!("/{action}")).await?;
    let instance: Instance = client.send_json(Method::POST, &path, body).await?;
    if output.is_json() { output::json(&instance) } else { Ok(()) }
}

async fn resize(client: &Client, output: Output, options: ResizeOptions) -> Result<()> {
    let path = path(client, &options.instance, "").await?;
    let instance: Instance = client.get(&path).await?;
    let mut flavor = instance.definition.flavor;
    flavor.vcpus = options.vcpus.unwrap_or(flavor.vcpus);
    flavor.memory_mb = options.memory.unwrap_or(flavor.memory_mb);
    flavor.root_gb = options.root.unwrap_or(flavor.root_gb);
    flavor.swap_mb = options.swap.unwrap_or(flavor.swap_mb);
    for spec in &options.extra_specs {
        match spec.split_once('=') {
            Some((name, "")) => flavor.extra_specs.remove(name),
            Some((name, value)) => flavor.extra_specs.insert(name.to_owned(), value.to_owned()),
            None => {
                return Err(Fault::invalid("--extra-spec", format!("{spec:?} is not NAME=VALUE")));
            }
        };
    }
    let wanted = Resize { flavor, keep: options.keep, timeout: options.timeout };
    act(client, output, &instance.id.to_string(), "resize", &wanted).await
}

async fn console(client: &Client, instance: &str, detach_key: &str) -> Result<()> {
    let detach = terminal::control_key(detach_key)?;
    let socket = client.web_socket(&path(client, instance, "/console").await?).await?;
    if std::io::stdin().is_terminal() {
        eprintln!("Attached; {detach_key} detaches. Press Enter if nothing shows.");
    }
    let joined = Joined { raw: true, detach: Some(detach), tagged: false };
    match attach::join(socket, joined).await? {
        Ending::Closed(reason) => eprintln!("\r\nClosed: {}.", harmless(&reason)),
        Ending::Detached | Ending::Exit(_) => eprintln!("\r\nDetached."),
    }
    Ok(())
}

async fn log(
    client: &Client,
    instance: &str,
    follow: bool,
    bytes: Option<u64>,
    mut output: Stream,
) -> Result<()> {
    let base = path(client, instance, "/console").await?;
    let socket = if follow { Some(client.web_socket(&base).await?) } else { None };
    let query = bytes.map(|bytes| format!("?length={bytes}")).unwrap_or_default();
    let response = client.open(&format!("{base}/output{query}")).await?;
    let log = response.bytes().await.or_fault("reading the log")?;
    match socket {
        None => output.write(&log),
        Some(socket) => tokio::select! {
            ending = attach::follow(&log, socket, output) => ending.map(|_| ()),
            _ = tokio::signal::ctrl_c() => Ok(()),
        },
    }
}

async fn exec(client: &Client, options: ExecOptions) -> Result<ExitCode> {
    let tty = options.tty;
    let started = async {
        let path = path(client, &options.instance, "/exec").await?;
        client.web_socket(&exec_address(&path, &options)?).await
    };
    let socket = match started.await {
        Ok(socket) => socket,
        Err(fault) => {
            super::output::complain(&fault);
            return Ok(ExitCode::from(NOT_RUN));
        }
    };
    let joined = Joined { raw: tty, detach: None, tagged: !tty };
    match attach::join(socket, joined).await? {
        // Codes are 0 to 255 wherever a shell can see them.
        Ending::Exit(code) => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
        Ending::Detached => Ok(ExitCode::from(NOT_RUN)),
        Ending::Closed(reason) => {
            eprintln!("berth: the command was given up: {}", harmless(&reason));
            Ok(ExitCode::from(NOT_RUN))
        }
    }
}

fn exec_address(path: &str, options: &ExecOptions) -> Result<String> {
    let mut address = Url::parse(&format!("http://berth{path}")).or_fault("making the address")?;
    {
        let mut query = address.query_pairs_mut();
        query.extend_pairs(options.command.iter().map(|argument| ("command", argument)));
        query.extend_pairs(options.env.iter().map(|entry| ("env", entry)));
        if let Some(user) = &options.user {
            query.append_pair("user", user);
        }
        if options.tty {
            query.append_pair("tty", "true");
            if let Ok(term) = std::env::var("TERM")
                && !options.env.iter().any(|entry| entry.starts_with("TERM="))
            {
                query.append_pair("env", &format!("TERM={term}"));
            }
        }
    }
    Ok(format!("{}?{}", address.path(), address.query().unwrap_or_default()))
}
