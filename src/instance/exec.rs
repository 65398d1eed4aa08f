//! Running a command inside an instance.

use std::process::Command;

use oci_spec::runtime::{Process, Spec, UserBuilder};

use super::action::ExecRequest;
use super::host_parts::HostParts;
use super::record::Record;
use crate::fault::{Fault, OrFault, Result};
use crate::runtime::{Exec, Runtime as _};
use crate::types::ProcessUser;

/// The command that, run on the host, runs the request inside the instance.
pub fn command(parts: &HostParts, record: &Record, request: &ExecRequest) -> Result<Command> {
    parts
        .runtime_of(&parts.paths(record))
        .exec_command(&record.id.to_string(), &resolve(parts, record, request)?)
}

/// The request as the runtime program takes it.
pub fn resolve(parts: &HostParts, record: &Record, request: &ExecRequest) -> Result<Exec> {
    if request.command.is_empty() || request.command[0].is_empty() {
        return Err(Fault::invalid("command", "must name a program"));
    }
    let layers: Vec<_> =
        record.boot().layers.iter().map(|digest| parts.images.layer_dir(digest)).collect();
    let user = crate::image::resolve_user(
        &layers,
        request.user.as_deref().unwrap_or("0"),
        record.id_block.size,
    )?;
    let file = parts.paths(record).bundle().join("config.json");
    let spec = Spec::load(&file).or_fault(format_args!("reading {}", file.display()))?;
    let first = spec.process().clone().unwrap_or_default();
    Ok(Exec {
        process: process(first, user, request)?,
        // One that was mounted after the start has nothing of the instance.
        cgroups: parts
            .group(record)
            .left_alone()
            .into_iter()
            .filter(|file| file.exists())
            .collect(),
    })
}

/// The first process, with the walls that it has, running something else as somebody else.
fn process(first: Process, user: ProcessUser, request: &ExecRequest) -> Result<Process> {
    let is_asked = |variable: &String| {
        variable.split_once('=').is_some_and(|(name, _)| request.env.contains_key(name))
    };
    let known = first.env().clone().unwrap_or_default();
    let mut environment: Vec<_> = known.into_iter().filter(|known| !is_asked(known)).collect();
    environment.extend(request.env.iter().map(|(name, value)| format!("{name}={value}")));
    let as_user = UserBuilder::default().uid(user.uid).gid(user.gid);
    let as_user = as_user.additional_gids(user.additional_gids).build();
    let mut process = first;
    process
        .set_args(Some(request.command.clone()))
        .set_env(Some(environment))
        .set_user(as_user.or_fault("naming the command's user")?)
        .set_terminal(Some(request.tty));
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    #[test]
    fn it_is_the_first_process_but_for_what_was_asked() {
        let first: Process = serde_json::from_value(serde_json::json!({
            "terminal": true, "cwd": "/srv", "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
            "args": ["init"], "env": ["A=1", "PATH=/bin"], "apparmorProfile": "p",
            "capabilities": {"bounding": ["CAP_KILL"]}, "noNewPrivileges": false,
        }))
        .unwrap();
        let request = ExecRequest {
            command: vec!["ls".into()],
            env: BTreeMap::from([("A".into(), "2=3".into())]),
            ..Default::default()
        };
        let user = ProcessUser { uid: 5, gid: 6, additional_gids: vec![7], home: String::new() };
        let made = process(first.clone(), user, &request).unwrap();
        assert_eq!(made.args().clone().unwrap(), ["ls"]);
        assert_eq!(made.env().clone().unwrap(), ["PATH=/bin", "A=2=3"]);
        assert_eq!((made.user().uid(), made.user().gid()), (5, 6));
        assert_eq!(made.user().additional_gids().clone().unwrap(), [7]);
        assert_eq!(made.terminal(), Some(false));
        assert_eq!(made.cwd(), Path::new("/srv"));
        assert_eq!(made.capabilities(), first.capabilities());
        assert_eq!(made.apparmor_profile(), first.apparmor_profile());
    }
}
