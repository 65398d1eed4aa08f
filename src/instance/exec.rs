//! Running a command inside an instance.

use std::process::Command;

use super::action::ExecRequest;
use super::parts::Parts;
use super::record::Record;
use crate::fault::{Fault, Result};
use crate::runtime::{Exec, Runtime as _};

/// The command that, run on the host, runs the request inside the instance.
pub fn command(parts: &Parts, record: &Record, request: &ExecRequest) -> Result<Command> {
    if request.command.is_empty() || request.command[0].is_empty() {
        return Err(Fault::invalid("command", "must name a program"));
    }
    let layers: Vec<_> =
        record.layers.iter().map(|digest| parts.images.layer_dir(digest)).collect();
    let user = crate::image::resolve_user(&layers, request.user.as_deref().unwrap_or("0"))?;
    parts.runtime.exec_command(
        &record.id.to_string(),
        &Exec {
            command: request.command.clone(),
            env: request.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            user: Some(format!("{}:{}", user.uid, user.gid)),
            cwd: None,
            tty: request.tty,
        },
    )
}
