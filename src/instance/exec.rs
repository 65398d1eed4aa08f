//! Running a command inside an instance.

use std::process::Command;

use oci_spec::runtime::Spec;

use super::action::ExecRequest;
use super::host_parts::HostParts;
use super::record::Record;
use crate::fault::{Fault, OrFault, Result};
use crate::runtime::{Exec, Runtime as _};

/// The command that, run on the host, runs the request inside the instance.
pub fn command(parts: &HostParts, record: &Record, request: &ExecRequest) -> Result<Command> {
    parts
        .runtime_of(&parts.paths(record))
        .exec_command(&record.id.to_string(), &resolve(parts, record, request)?)
}

/// The request as the runtime program takes it: user by number, environment whole.
pub fn resolve(parts: &HostParts, record: &Record, request: &ExecRequest) -> Result<Exec> {
    if request.command.is_empty() || request.command[0].is_empty() {
        return Err(Fault::invalid("command", "must name a program"));
    }
    let layers: Vec<_> =
        record.boot().layers.iter().map(|digest| parts.images.layer_dir(digest)).collect();
    let user = crate::image::resolve_user(&layers, request.user.as_deref().unwrap_or("0"))?;
    Ok(Exec {
        command: request.command.clone(),
        env: environment(parts, record, request)?,
        user: Some(format!("{}:{}", user.uid, user.gid)),
        cwd: None,
        tty: request.tty,
        // One that was mounted after the start has nothing of the instance.
        cgroups: parts
            .group(record)
            .left_alone()
            .into_iter()
            .filter(|file| file.exists())
            .collect(),
    })
}

/// The first process's environment, then the request's: given whole, because
/// some runtime programs take what they are given for all of it, PATH included.
fn environment(parts: &HostParts, record: &Record, request: &ExecRequest) -> Result<Vec<String>> {
    let file = parts.paths(record).bundle().join("config.json");
    let spec = Spec::load(&file).or_fault(format_args!("reading {}", file.display()))?;
    let known = spec.process().as_ref().and_then(|process| process.env().clone());
    let is_asked = |variable: &String| {
        variable.split_once('=').is_some_and(|(name, _)| request.env.contains_key(name))
    };
    let mut environment: Vec<_> =
        known.unwrap_or_default().into_iter().filter(|variable| !is_asked(variable)).collect();
    environment.extend(request.env.iter().map(|(name, value)| format!("{name}={value}")));
    Ok(environment)
}
