//! Every path that berth makes is named here and nowhere else.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::fault::{OrFault, Result};

/// The two roots: durable state, and state that ends with the host's uptime.
#[derive(Clone, Debug)]
pub struct Layout {
    state: PathBuf,
    run: PathBuf,
}

impl Layout {
    /// A layout over `state_dir` and `run_dir` of the configuration.
    pub fn new(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Layout { state: state.into(), run: run.into() }
    }

    /// Durable state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Volatile state.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The lock that keeps a second service off the same state.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The image store's directory.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Unpacked layers, each a directory named by the SHA-256 of its plain archive.
    pub fn image_layers(&self) -> PathBuf {
        self.images().join("layers/sha256")
    }

    /// One unpacked layer: its root file system and what is known about it.
    pub fn image_layer(&self, hex: &str) -> PathBuf {
        self.image_layers().join(hex)
    }

    /// Directory of the images' records.
    pub fn image_records(&self) -> PathBuf {
        self.images().join("records")
    }

    /// One image's record.
    pub fn image_record(&self, id: Uuid) -> PathBuf {
        self.image_records().join(format!("{id}.json"))
    }

    /// What is kept of disk images besides their root file systems.
    pub fn image_disks(&self) -> PathBuf {
        self.images().join("disks")
    }

    /// That of one image: a sparse file of the disk's size.
    pub fn image_disk(&self, id: Uuid) -> PathBuf {
        self.image_disks().join(id.to_string())
    }

    /// Imports at work, and disks that are made for snapshots; emptied at every start.
    pub fn images_temporary(&self) -> PathBuf {
        self.images().join("tmp")
    }

    /// Moves of instances to here that ended before the other host knew of their end.
    pub fn moves(&self) -> PathBuf {
        self.state.join("moves")
    }

    /// Such a move, whose instance was taken and is gone by now.
    pub fn ended_move(&self, id: Uuid) -> PathBuf {
        self.moves().join(id.to_string())
    }

    /// Formatted, empty disks to copy from.
    pub fn templates(&self) -> PathBuf {
        self.state.join("templates")
    }

    /// Directory that holds an entry for every instance, durable.
    pub fn instances(&self) -> PathBuf {
        self.state.join("instances")
    }

    /// Directory that holds an entry for every instance, volatile.
    pub fn run_instances(&self) -> PathBuf {
        self.run.join("i")
    }

    /// A file for each console that has a TCP port, volatile.
    pub fn consoles(&self) -> PathBuf {
        self.run.join("consoles")
    }

    /// The runtime program's own state (`--root`).
    pub fn runtime_root(&self) -> PathBuf {
        self.run.join("runtime")
    }

    /// The paths of one instance.
    pub fn instance(&self, id: Uuid) -> InstanceLayout {
        InstanceLayout {
            state: self.instances().join(id.to_string()),
            run: self.run_instances().join(id.to_string()),
        }
    }
}

/// The paths of one instance.
#[derive(Clone, Debug)]
pub struct InstanceLayout {
    state: PathBuf,
    run: PathBuf,
}

impl InstanceLayout {
    /// Its durable directory.
    pub fn state(&self) -> &Path {
        &self.state
    }
    /// Its volatile directory.
    pub fn run(&self) -> &Path {
        &self.run
    }
    /// Its id.
    pub fn id(&self) -> Result<Uuid> {
        let name = self.run.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Uuid::parse_str(name).or_fault("reading an instance's id")
    }
    /// Is there as long as it may have loop devices of volumes.
    pub fn volumes(&self) -> PathBuf {
        self.run.join("volumes")
    }
    /// The durable record.
    pub fn record(&self) -> PathBuf {
        self.state.join("record.json")
    }
    /// The root disk's file (loop back end).
    pub fn root_disk(&self) -> PathBuf {
        self.state.join("root.disk")
    }
    /// A copy of the root disk, for the moment in which a snapshot takes it.
    pub fn root_disk_copy(&self) -> PathBuf {
        self.state.join("root.copy")
    }
    /// The disk of the rescue image's root file system (loop back end), while rescued.
    pub fn rescue_disk(&self) -> PathBuf {
        self.state.join("rescue.disk")
    }
    /// The ephemeral disk's file (loop back end).
    pub fn ephemeral_disk(&self) -> PathBuf {
        self.state.join("ephemeral.disk")
    }
    /// The root disk as it was before a resize that is not confirmed.
    pub fn root_disk_kept(&self) -> PathBuf {
        self.state.join("root.kept")
    }
    /// The ephemeral disk as it was before a resize that is not confirmed.
    pub fn ephemeral_disk_kept(&self) -> PathBuf {
        self.state.join("ephemeral.kept")
    }
    /// What is kept of its image's disk, while both come from another host.
    pub fn image_disk_coming(&self) -> PathBuf {
        self.state.join("image.disk")
    }
    /// Is there as long as the host that it came from may not know that it is here.
    pub fn unacknowledged(&self) -> PathBuf {
        self.state.join("unacknowledged")
    }
    /// First bytes of the console's output, kept for ever.
    pub fn console_first(&self) -> PathBuf {
        self.state.join("console.first")
    }
    /// Latest bytes of the console's output; `console.log.1` beside it is the part before.
    pub fn console_log(&self) -> PathBuf {
        self.state.join("console.log")
    }
    /// How the first process ended, written by the monitor.
    pub fn exit(&self) -> PathBuf {
        self.state.join("exit.json")
    }
    /// Where the root disk's file system is mounted; holds `upper` and `work`.
    pub fn disk_mount(&self) -> PathBuf {
        self.run.join("disk")
    }
    /// Where the rescue disk's file system is mounted.
    pub fn rescue_mount(&self) -> PathBuf {
        self.run.join("rescue")
    }
    /// What the disks' devices had counted when the instance was started.
    pub fn block_baseline(&self) -> PathBuf {
        self.run.join("block.json")
    }
    /// Where the ephemeral file system is mounted, with the instance's ids.
    pub fn ephemeral_mount(&self) -> PathBuf {
        self.run.join("ephemeral")
    }
    /// Where its `/dev` is mounted.
    pub fn dev(&self) -> PathBuf {
        self.run.join("dev")
    }
    /// Where its terminals are mounted.
    pub fn terminals(&self) -> PathBuf {
        self.run.join("terminals")
    }
    /// The instance's own merged root file system while it is rescued, and
    /// [`rootfs`](Self::rootfs) is the rescue image's.
    pub fn own_rootfs(&self) -> PathBuf {
        self.run.join("own")
    }
    /// The merged root file system that boots; also the OCI bundle's `root.path`.
    pub fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }
    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }
    /// The pinned user namespace.
    pub fn user_ns(&self) -> PathBuf {
        self.run.join("user")
    }
    /// The pinned network namespace.
    pub fn net_ns(&self) -> PathBuf {
        self.run.join("net")
    }
    /// The user namespace of the next boot, while it is prepared.
    pub fn next_user_ns(&self) -> PathBuf {
        self.run.join("user.next")
    }
    /// The network namespace of the next boot, while it is prepared.
    pub fn next_net_ns(&self) -> PathBuf {
        self.run.join("net.next")
    }
    /// The interfaces that each boot is given.
    pub fn network(&self) -> PathBuf {
        self.run.join("network.json")
    }
    /// What the monitor was told, to start it again.
    pub fn monitor_spec(&self) -> PathBuf {
        self.run.join("monitor.json")
    }
    /// Where the runtime program hands over the console's master.
    pub fn console_socket(&self) -> PathBuf {
        self.run.join("console.sock")
    }
    /// Where the runtime program writes the first process's id.
    pub fn init_pid(&self) -> PathBuf {
        self.run.join("init.pid")
    }
    /// What the runtime program's last call had to say, JSON lines.
    pub fn runtime_log(&self) -> PathBuf {
        self.run.join("runtime.log")
    }
    /// The monitor's socket.
    pub fn monitor_socket(&self) -> PathBuf {
        self.run.join("monitor.sock")
    }
    /// The monitor's process id and start time.
    pub fn monitor_pid(&self) -> PathBuf {
        self.run.join("monitor.pid")
    }
    /// The monitor's diagnostics: what it and the runtime program said.
    pub fn monitor_log(&self) -> PathBuf {
        self.run.join("monitor.log")
    }
}
