//! The `berth` command: the service itself, and the operator's tools, which
//! are clients of its API like any other.

mod attach;
mod client;
mod images;
mod inspection;
mod instances;
mod output;
mod reference;
mod serve;
mod shown;
mod terminal;
mod top;
mod volumes;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use self::serve::ServiceHooks;

use self::client::Client;
use self::output::{Output, complain};
use crate::config::Config;
use crate::fault::OrFault;

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
    /// Volumes of instances: block devices and files of this host
    #[command(subcommand)]
    Volume(volumes::Command),
    #[command(flatten)]
    Watch(watch::Command),
    /// Use of CPU, memory, disks and network by instance, as it changes
    Top(top::Options),
}

/// Runs the command line of this process.
pub fn main(hooks: ServiceHooks) -> ExitCode {
    let Cli { client, command } = Cli::parse();
    let outcome = match command {
        Command::Serve { config } => serve::serve(config.as_deref(), hooks),
        Command::Check { config } => serve::check(config.as_deref(), hooks.probe, client.json),
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
            Command::Volume(command) => volumes::run(&client, output, command).await?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
