//! Starting: root file system, cgroup, bundle, monitor, first process.

use std::collections::BTreeMap;

use chrono::Utc;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::live::Live;
use crate::instance::parts::Parts;
use crate::instance::record::{Desired, Record};
use crate::monitor::{Monitor, MonitorSpec};
use crate::runtime::spec::{self, SpecInput};

use super::{create, stop};

/// Starts a stopped instance. What it did is undone when it fails.
pub fn start(parts: &Parts, mut record: Record) -> Result<(Record, Live)> {
    let outcome = (|| {
        let live = boot(parts, &record)?;
        record.desired = Desired::Running;
        record.frozen = None;
        record.exit = None;
        record.guest_reboots = 0;
        record.boot_id = Some(parts.boot_id.clone());
        record.started_at = Some(Utc::now());
        record.save(&parts.paths(&record))?;
        Ok(live)
    })();
    match outcome {
        Ok(live) => Ok((record, live)),
        Err(fault) => Err(match stop::power_off(parts, record) {
            Ok(_) => fault,
            Err(left) => fault.context(format_args!("(and taking it down again: {})", left.detail)),
        }),
    }
}

fn boot(parts: &Parts, record: &Record) -> Result<Live> {
    let paths = parts.paths(record);
    create::network(parts, record)?;
    let devices = parts.mount(record)?;
    let limits = parts.limits(record)?;
    let plan = parts.group(record).plan(&limits, &devices, record.id_block)?;
    write_bundle(parts, record)?;
    crate::store::atomic::remove_file(&paths.exit())?;
    let monitor = crate::monitor::launch(
        &MonitorSpec {
            instance: record.id,
            paths: (&paths).into(),
            runtime: parts.runtime.command(),
            cgroup: plan,
            own_cgroup: parts.hierarchy.monitor_cgroup(&parts.config.instances.cgroup),
            console_log_bytes: parts.config.instances.console_log_bytes,
        },
        &parts.monitor_program,
    )?;
    let messages = monitor.subscribe()?;
    monitor.start()?;
    let init = monitor.status()?.init.ok_or_else(|| {
        Fault::new(FaultKind::RuntimeFailed, "the first process ended before it was started")
    })?;
    Live::follow(monitor, init, messages)
}

fn write_bundle(parts: &Parts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    let layers: Vec<_> =
        record.layers.iter().map(|digest| parts.images.layer_dir(digest)).collect();
    let user = crate::image::resolve_user(&layers, &record.image_config.user)?;
    let spec = spec::build(&SpecInput {
        definition: &record.definition,
        image: &record.image_config,
        user: &user,
        hostname: &create::hostname(record),
        paths: &paths,
        block: record.id_block,
        cgroups_path: format!("/{}/{}", parts.config.instances.cgroup, record.id),
        layout: parts.hierarchy.layout(),
        lxcfs: parts.lxcfs(),
        ephemeral: (record.ephemeral_bytes > 0).then(|| paths.ephemeral_mount()),
        environment: BTreeMap::new(),
    })?;
    std::fs::create_dir_all(paths.bundle()).or_fault("making the bundle")?;
    let file = paths.bundle().join("config.json");
    let text = serde_json::to_vec(&spec).or_fault("serialising the bundle")?;
    std::fs::write(&file, text).or_fault(format_args!("writing {}", file.display()))
}
