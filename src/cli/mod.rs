//! The `berth` command: the service itself, and the operator's tools, which
//! are clients of its API like any other.

mod attach;
mod client;
mod images;
mod instances;
mod output;
mod reference;
mod serve;
mod terminal;
mod top;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, Subcommand};
use uuid::Uuid;

use self::client::Client;
use self::output::Output;
use crate::api::backend::Backend;
use crate::config::Config;
use crate::fault::{Fault, OrFault, Result};
use crate::types::Check;

/// What the command line needs of the modules below the API.
#[derive(Clone, Copy)]
pub struct Parts {
    /// Opens the instance manager.
    pub open: fn(Config) -> Result<Arc<dyn Backend>>,
    /// Probes the host.
    pub probe: fn(&Config) -> Vec<Check>,
}

/// Containers as OpenStack Nova instances, on one compute host.
#[derive(Parser)]
#[command(name = "berth", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    client: ClientOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct ClientOptions {
    /// Socket of the service.
    #[arg(long, global = true, env = "BERTH_SOCKET", value_name = "PATH",
        default_value_os_t = Config::default().service.socket)]
    socket: PathBuf,
    /// Write JSON, for programs, instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service
    Serve {
        /// Configuration file; without it, the defaults hold.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check the configuration, and probe whether instances can work on this host
    Check {
        /// Configuration file; without it, the defaults hold.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Write the API's description
    #[command(hide = true)]
    Openapi,
    /// Write what tells a shell to complete the commands
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    #[command(flatten)]
    Reference(reference::Command),
    #[command(flatten)]
    Instances(instances::Command),
    /// Images of the host's store
    #[command(subcommand)]
    Image(images::Command),
    #[command(flatten)]
    Watch(watch::Command),
    /// Use of CPU, memory, disks and network by instance, as it changes
    Top(top::Options),
}

/// Runs the command line of this process.
pub fn main(parts: Parts) -> ExitCode {
    let Cli { client, command } = Cli::parse();
    let outcome = match command {
        Command::Serve { config } => serve::serve(config.as_deref(), parts),
        Command::Check { config } => serve::check(config.as_deref(), parts.probe, client.json),
        Command::Openapi => output::write(crate::api::document_json().as_bytes()),
        Command::Completion { shell } => reference::completion(shell, Cli::command()),
        Command::Reference(command) => reference::run(&command, Cli::command()),
        command => return run_client(client, command),
    };
    outcome.map_or_else(|fault| complain(&fault), |()| ExitCode::SUCCESS)
}

fn run_client(options: ClientOptions, command: Command) -> ExitCode {
    let output = Output::new(options.json);
    let run = async {
        let client = Client::new(&options.socket)?;
        match command {
            Command::Instances(command) => return instances::run(&client, output, command).await,
            Command::Image(command) => images::run(&client, output, command).await?,
            Command::Watch(command) => watch::run(&client, output, command).await?,
            Command::Top(options) => top::run(&client, output, options).await?,
            // Answered without a service, by `main`.
            Command::Serve { .. }
            | Command::Check { .. }
            | Command::Openapi
            | Command::Completion { .. }
            | Command::Reference(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.or_fault("starting").and_then(|runtime| runtime.block_on(run));
    outcome.unwrap_or_else(|fault| complain(&fault))
}

/// Says what went wrong, in a line or two.
fn complain(fault: &Fault) -> ExitCode {
    let field = fault.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
    // Standard error may be a file on a full disk, of which eprintln! would panic.
    let _ = writeln!(std::io::stderr(), "berth: {field}{}", fault.detail);
    ExitCode::FAILURE
}

/// What a person types for an id: an instance by its id, a unique beginning
/// of it, or its name.
fn choose(wanted: &str, what: &str, known: impl Iterator<Item = (Uuid, String)>) -> Result<Uuid> {
    let known: Vec<_> = known.collect();
    let typed = wanted.to_ascii_lowercase();
    let by_name = known.iter().filter(|(_, name)| name == wanted);
    let by_id =
        known.iter().filter(|(id, _)| !typed.is_empty() && id.to_string().starts_with(&typed));
    let mut found: Vec<Uuid> = by_name.chain(by_id).map(|(id, _)| *id).collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [id] => Ok(*id),
        [] => Err(Fault::invalid(
            what,
            format!("there is none called {wanted:?} and none whose id begins so"),
        )),
        several => {
            let ids: Vec<String> = several.iter().map(Uuid::to_string).collect();
            Err(Fault::invalid(what, format!("{wanted:?} could be {}", ids.join(" or "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn instances_are_chosen_by_beginning_or_name() {
        let a = Uuid::from_u128(0xaa00 << 112);
        let b = Uuid::from_u128(0xaa01 << 112);
        let known = || [(a, "web".to_owned()), (b, "db".to_owned())].into_iter();
        assert_eq!(choose("web", "instance", known()).unwrap(), a);
        assert_eq!(choose("AA01", "instance", known()).unwrap(), b);
        assert_eq!(choose(&a.to_string(), "instance", known()).unwrap(), a);
        assert!(choose("aa0", "instance", known()).unwrap_err().detail.contains(" or "));
        assert!(choose("", "instance", known()).is_err());
        assert!(choose("cache", "instance", known()).is_err());
    }
}
