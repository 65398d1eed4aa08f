//! An instance manager in memory: real enough for the API, no root needed.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use berth::fault::{Fault, FaultKind, Result};
use berth::instance::backend::{
    Action, Backend, Console, Created, ExecRequest, Inspecting, RequestContext,
};
use berth::instance::event::{EventLog, EventSubscription};
use berth::instance::operation::{OperationHandle, OperationWriter, Operations};
use berth::migration::receive::Chunk;
use berth::types::*;
use chrono::Utc;
use uuid::Uuid;

/// The stand-in. Work is done on threads, one after another.
pub struct FakeBackend(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    operations: Operations,
    events: Arc<EventLog>,
    host_exec: bool,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<Uuid, Instance>,
    requests: HashMap<Uuid, (InstanceCreate, Arc<OperationHandle>)>,
    images: BTreeMap<Uuid, Image>,
    held: bool,
    panic_on_host_stats: bool,
    console_size: Option<(u16, u16)>,
    exec: Option<ExecRequest>,
}

/// An image that is there from the beginning.
pub const IMAGE: Uuid = Uuid::from_u128(0x6f70656e_7374_4b63_8a00_62657274680a);

/// Creating an instance of this name panics in the middle.
pub const PANICS: &str = "panics";

impl FakeBackend {
    /// A host with one image.
    pub fn new() -> Arc<FakeBackend> {
        FakeBackend::with(false)
    }

    /// One that runs `exec`'s commands on this machine: for tests that choose them.
    pub fn with_host_exec() -> Arc<FakeBackend> {
        FakeBackend::with(true)
    }

    fn with(host_exec: bool) -> Arc<FakeBackend> {
        let mut state = State::default();
        state.images.insert(IMAGE, image(IMAGE, "base"));
        Arc::new(FakeBackend(Arc::new(Inner {
            state: Mutex::new(state),
            changed: Condvar::new(),
            operations: Operations::default(),
            events: EventLog::new(),
            host_exec,
        })))
    }

    /// Work that is begun after this waits for [`release`](Self::release).
    pub fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Lets held work go on.
    pub fn release(&self) {
        self.0.lock().held = false;
        self.0.changed.notify_all();
    }

    /// Makes the next reading of the host's statistics panic.
    pub fn panic_on_host_stats(&self) {
        self.0.lock().panic_on_host_stats = true;
    }

    /// The size that a console was last given.
    pub fn console_size(&self) -> Option<(u16, u16)> {
        self.0.lock().console_size
    }

    /// The last command that was asked for.
    pub fn exec_request(&self) -> Option<ExecRequest> {
        self.0.lock().exec.clone()
    }

    /// Publishes an event that nobody asked for.
    pub fn publish(&self, kind: EventKind) -> u64 {
        self.0.events.publish(kind, Uuid::nil(), PowerState::Running, None)
    }

    fn work(
        &self,
        kind: &str,
        target: Uuid,
        context: &RequestContext,
        work: impl FnOnce(&Inner, &OperationWriter) -> Result<()> + Send + 'static,
    ) -> Arc<OperationHandle> {
        let (handle, writer) = self.0.operations.begin(kind, target, &context.request_id);
        let inner = self.0.clone();
        thread::spawn(move || {
            let held = inner.lock();
            drop(inner.changed.wait_while(held, |state| state.held).unwrap());
            writer.stage("working");
            let result = work(&inner, &writer);
            writer.finish(result);
        });
        handle
    }
}

fn no_moves() -> Fault {
    Fault::new(FaultKind::NotFound, "this stand-in has no moves")
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Backend for FakeBackend {
    fn create(
        &self,
        context: RequestContext,
        id: Uuid,
        request: InstanceCreate,
    ) -> Result<Created> {
        validate(&request)?;
        let mut state = self.0.lock();
        if let Some((known, operation)) = state.requests.get(&id) {
            return if *known == request {
                Ok(Created { operation: operation.clone(), existed: true })
            } else {
                Err(Fault::new(FaultKind::InstanceExists, "it has another definition"))
            };
        }
        if !state.images.contains_key(&request.image_id) {
            return Err(Fault::new(FaultKind::ImageNotFound, "import the image first"));
        }
        let (definition, _) = request.clone().into_parts();
        let request_id = context.request_id.clone();
        let operation = self.work("instance.create", id, &context, move |inner, _| {
            assert_ne!(definition.name, PANICS, "as asked");
            inner.lock().instances.insert(id, instance(id, definition));
            inner.events.publish(EventKind::Created, id, PowerState::Shutdown, Some(&request_id));
            Ok(())
        });
        state.requests.insert(id, (request, operation.clone()));
        Ok(Created { operation, existed: false })
    }

    fn action(
        &self,
        context: RequestContext,
        id: Uuid,
        action: Action,
    ) -> Result<Arc<OperationHandle>> {
        self.instance(id)?;
        if let Action::Resize(resize) = &action {
            validate_flavor(&resize.flavor)?;
        }
        let timeout = match &action {
            Action::Stop(stop) => stop.timeout,
            Action::Reboot(reboot) => reboot.timeout,
            _ => None,
        };
        if timeout.is_some_and(|timeout| timeout > 3600) {
            return Err(Fault::invalid("timeout", "must be 0 to 3600 seconds"));
        }
        if let Action::AttachInterface(vif) = &action {
            validate_vif(vif)?;
        }
        Ok(self.work(kind(&action), id, &context.clone(), move |inner, _| {
            act(inner, id, action, &context.request_id)
        }))
    }

    fn instance(&self, id: Uuid) -> Result<Instance> {
        self.0.lock().instances.get(&id).cloned().ok_or_else(|| {
            Fault::new(FaultKind::InstanceNotFound, format!("there is no instance {id}"))
        })
    }

    fn instances(&self) -> Vec<Instance> {
        self.0.lock().instances.values().cloned().collect()
    }

    fn stats(&self, id: Uuid) -> Result<InstanceStats> {
        if self.instance(id)?.power_state == PowerState::Shutdown {
            return Err(Fault::new(FaultKind::InstanceInvalidState, "it does not run"));
        }
        Ok(InstanceStats {
            id,
            at: Utc::now(),
            uptime: 1,
            cpu: CpuStats { usage_ns: 1_000_000, ..CpuStats::default() },
            memory: MemoryStats { usage: 1 << 20, limit: 1 << 26, ..MemoryStats::default() },
            pids: PidsStats { current: 1, limit: 4096 },
            block: vec![BlockStats { name: "root".into(), ..BlockStats::default() }],
            interfaces: vec![],
            pressure: Some(PressureStats::default()),
        })
    }

    fn console_output(&self, id: Uuid, length: Option<u64>) -> Result<Vec<u8>> {
        self.instance(id)?;
        let all = b"booting \xff\x1b[1mdone\x1b[0m\r\n".to_vec();
        let length = length.map_or(all.len(), |l| usize::try_from(l).unwrap_or(usize::MAX));
        Ok(all[all.len().saturating_sub(length)..].to_vec())
    }

    /// A console that says hello, echoes, and ends at `^D`.
    fn console_attach(&self, id: Uuid) -> Result<Console> {
        if self.instance(id)?.power_state != PowerState::Running {
            return Err(Fault::new(FaultKind::InstanceInvalidState, "it does not run"));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut stream = theirs;
            let mut buffer = [0; 4096];
            let _ = stream.write_all(b"hello\n");
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if buffer[..count].contains(&4) || stream.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        });
        let inner = self.0.clone();
        let resize = Box::new(move |cols, rows| {
            inner.lock().console_size = Some((cols, rows));
            Ok(())
        });
        Ok(Console { stream: ours, resize })
    }

    fn exec_command(&self, id: Uuid, request: ExecRequest) -> Result<Command> {
        if self.instance(id)?.power_state != PowerState::Running {
            return Err(Fault::new(FaultKind::InstanceInvalidState, "it does not run"));
        }
        self.0.lock().exec = Some(request.clone());
        if !self.0.host_exec {
            return Err(Fault::new(FaultKind::HostUnsupported, "this stand-in runs nothing"));
        }
        let mut command = Command::new(&request.command[0]);
        command.args(&request.command[1..]).envs(request.env);
        Ok(command)
    }

    fn import_image(
        &self,
        context: RequestContext,
        id: Uuid,
        request: ImageImport,
    ) -> Result<Arc<OperationHandle>> {
        match &request.source {
            ImageSource::File { path } if !path.is_absolute() => {
                return Err(Fault::invalid("source.path", "must be an absolute path"));
            }
            ImageSource::Glance { endpoint: Some(endpoint), .. }
                if !endpoint.starts_with("http") =>
            {
                return Err(Fault::invalid("source.endpoint", "must be an http(s) address"));
            }
            _ => {}
        }
        Ok(self.work("image.import", id, &context, move |inner, writer| {
            writer.stage("fetching");
            writer.progress(1, Some(2));
            if let ImageSource::File { path } = &request.source
                && !path.exists()
            {
                return Err(Fault::invalid("source.path", "there is no such file"));
            }
            inner.lock().images.entry(id).or_insert_with(|| image(id, &request.name));
            Ok(())
        }))
    }

    fn inspect_image(&self, _: RequestContext, request: ImageInspect) -> Result<Inspecting> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let outcome = match &request.source {
            ImageSource::File { path } if !path.exists() => {
                Err(Fault::invalid("source.path", "there is no such file"))
            }
            _ => Ok(ImageInspection {
                format: Some(ImageFormat::RootfsTar),
                refusal: request.size.map(|size| ImageRefusal {
                    code: FaultKind::ImageCorrupt,
                    detail: format!("the content has 1 bytes, not {size}"),
                }),
                ..ImageInspection::default()
            }),
        };
        let _ = tell.send(outcome);
        Ok(told)
    }

    fn begin_incoming(&self, _: Uuid, _: IncomingInstance) -> Result<Incoming> {
        Err(no_moves())
    }

    fn incoming_layer(&self, _: Uuid, _: &str, _: &mut dyn Read) -> Result<()> {
        Err(no_moves())
    }

    fn incoming_chunk(&self, _: Uuid, _: IncomingFile, _: Chunk) -> Result<()> {
        Err(no_moves())
    }

    fn commit_incoming(&self, _: Uuid) -> Result<()> {
        Err(no_moves())
    }

    fn acknowledge_incoming(&self, _: Uuid) -> Result<()> {
        Ok(())
    }

    fn end_incoming(&self, _: RequestContext, _: Uuid, _: bool) -> Result<IncomingOutcome> {
        Ok(IncomingOutcome::Aborted)
    }

    fn images(&self) -> Vec<Image> {
        self.0.lock().images.values().cloned().collect()
    }

    fn image(&self, id: Uuid) -> Result<Image> {
        let missing = || Fault::new(FaultKind::ImageNotFound, format!("there is no image {id}"));
        self.0.lock().images.get(&id).cloned().ok_or_else(missing)
    }

    fn delete_image(&self, id: Uuid) -> Result<()> {
        self.image(id)?;
        let mut state = self.0.lock();
        if state.instances.values().any(|i| i.definition.image_id == id) {
            return Err(Fault::new(FaultKind::ImageInUse, "an instance stands on it"));
        }
        state.images.remove(&id);
        Ok(())
    }

    fn operation(&self, id: Uuid) -> Result<Arc<OperationHandle>> {
        self.0.operations.get(id)
    }

    fn operations(&self) -> Vec<Operation> {
        self.0.operations.list()
    }

    fn unfinished_operations(&self) -> Vec<Arc<OperationHandle>> {
        self.0.operations.unfinished()
    }

    fn events_after(&self, sequence: Option<u64>) -> Result<EventSubscription> {
        self.0.events.after(sequence)
    }

    fn host_info(&self) -> Result<HostInfo> {
        Ok(HostInfo {
            hypervisor_hostname: "fake".into(),
            hypervisor_type: "berth".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            hypervisor_version: 1000,
            api_version: "v1".into(),
            architecture: "x86_64".into(),
            kernel: "6.1.0".into(),
            uptime: 60,
            service_started_at: Utc::now(),
            inventory: Inventory { vcpus: 2, memory_mb: 2048, ..Inventory::default() },
            capabilities: Capabilities { checks: self.checks(), ..Capabilities::default() },
        })
    }

    fn host_stats(&self) -> Result<HostStats> {
        assert!(!std::mem::take(&mut self.0.lock().panic_on_host_stats), "as asked");
        Ok(HostStats { memory_total: 1 << 31, ..HostStats::default() })
    }

    fn checks(&self) -> Vec<Check> {
        vec![Check {
            name: "overlayfs on idmapped layers".into(),
            status: CheckStatus::Ok,
            found: "Linux 6.1".into(),
            remedy: None,
        }]
    }
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::Start => "instance.start",
        Action::Stop(_) => "instance.stop",
        Action::Reboot(_) => "instance.reboot",
        Action::Pause => "instance.pause",
        Action::Unpause => "instance.unpause",
        Action::Suspend => "instance.suspend",
        Action::Resume => "instance.resume",
        Action::Resize(_) => "instance.resize",
        Action::ConfirmResize => "instance.resize.confirm",
        Action::RevertResize => "instance.resize.revert",
        Action::Migrate(_) => "instance.migrate",
        Action::RevertMigration(_) => "instance.migrate.revert",
        Action::AttachInterface(_) => "instance.attach_interface",
        Action::DetachInterface(_) => "instance.detach_interface",
        Action::AttachVolume(..) => "instance.attach_volume",
        Action::DetachVolume { .. } => "instance.detach_volume",
        Action::ExtendVolume(_) => "instance.extend_volume",
        Action::SetPassword(_) => "instance.password",
        Action::Dump => "instance.dump",
        Action::Quiesce => "instance.quiesce",
        Action::Unquiesce => "instance.unquiesce",
        Action::Snapshot(_) => "instance.snapshot",
        Action::Rescue(_) => "instance.rescue",
        Action::Unrescue => "instance.unrescue",
        Action::Delete => "instance.delete",
    }
}

fn act(inner: &Inner, id: Uuid, action: Action, request_id: &str) -> Result<()> {
    let mut state = inner.lock();
    let missing = || Fault::new(FaultKind::InstanceNotFound, "it was deleted");
    let wrong = |now: PowerState| {
        Fault::new(FaultKind::InstanceInvalidState, format!("not while it is {now}"))
    };
    let instance = state.instances.get_mut(&id).ok_or_else(missing)?;
    let now = instance.power_state;
    let running = PowerState::Running;
    let (next, event) = match action {
        Action::Start | Action::Reboot(_) => (running, EventKind::Started),
        Action::Stop(_) => (PowerState::Shutdown, EventKind::Stopped),
        Action::Pause if now == running => (PowerState::Paused, EventKind::Paused),
        Action::Unpause if now == PowerState::Paused => (running, EventKind::Resumed),
        Action::Suspend if now == running => (PowerState::Suspended, EventKind::Suspended),
        Action::Resume if now == PowerState::Suspended => (running, EventKind::Resumed),
        Action::Resize(resize) if resize.keep => {
            let flavor = std::mem::replace(&mut instance.definition.flavor, resize.flavor);
            instance.unconfirmed_resize = Some(UnconfirmedResize { flavor, since: Utc::now() });
            (PowerState::Shutdown, EventKind::Updated)
        }
        Action::Resize(resize) => {
            instance.definition.flavor = resize.flavor;
            (now, EventKind::Updated)
        }
        Action::ConfirmResize => {
            instance.unconfirmed_resize = None;
            (now, EventKind::Updated)
        }
        Action::RevertResize => match instance.unconfirmed_resize.take() {
            Some(UnconfirmedResize { flavor, .. }) => {
                instance.definition.flavor = flavor;
                (PowerState::Shutdown, EventKind::Updated)
            }
            None => (now, EventKind::Updated),
        },
        Action::Migrate(wanted) => {
            if !wanted.to.starts_with("https://") {
                return Err(Fault::invalid("to", "must be https://host:port of another service"));
            }
            return Err(Fault::new(FaultKind::PeerUnavailable, "this stand-in has no peers"));
        }
        Action::RevertMigration(_) => (now, EventKind::Updated),
        Action::AttachInterface(vif) => {
            let vifs = &mut instance.definition.vifs;
            match vifs.iter().find(|known| known.id == vif.id) {
                Some(known) if *known == vif => {}
                Some(_) => return Err(Fault::new(FaultKind::InterfaceExists, "another one")),
                None => vifs.push(vif),
            }
            (now, EventKind::Updated)
        }
        Action::DetachInterface(port) => {
            let vifs = &mut instance.definition.vifs;
            let index = vifs.iter().position(|vif| vif.id == port).ok_or_else(|| {
                Fault::new(FaultKind::InterfaceNotFound, "the instance has no such interface")
            })?;
            vifs.remove(index);
            (now, EventKind::Updated)
        }
        Action::AttachVolume(volume_id, wanted) => {
            attach_volume(&mut instance.volumes, volume_id, wanted)?;
            (now, EventKind::Updated)
        }
        Action::DetachVolume { id: volume_id, force } => {
            let index = volume_at(&instance.volumes, volume_id)?;
            // What of this one holds is open inside.
            if instance.volumes[index].serial == "held" && !force {
                return Err(Fault::new(FaultKind::VolumeBusy, "a program has it open"));
            }
            instance.volumes.remove(index);
            (now, EventKind::Updated)
        }
        Action::ExtendVolume(volume_id) => {
            let index = volume_at(&instance.volumes, volume_id)?;
            instance.volumes[index].bytes *= 2;
            (now, EventKind::Updated)
        }
        Action::SetPassword(_) | Action::Dump if now == running => return Ok(()),
        Action::Snapshot(_) => return Ok(()),
        Action::Quiesce if now == running => {
            instance.quiesced = true;
            (now, EventKind::Updated)
        }
        Action::Unquiesce => {
            instance.quiesced = false;
            (now, EventKind::Updated)
        }
        Action::Rescue(wanted) if now == PowerState::Shutdown => {
            instance.rescue_image_id = Some(wanted.image_id);
            (running, EventKind::Started)
        }
        Action::Unrescue => {
            instance.rescue_image_id = None;
            (running, EventKind::Started)
        }
        Action::Delete => {
            state.instances.remove(&id);
            state.requests.remove(&id);
            inner.events.publish(EventKind::Deleted, id, PowerState::NoState, Some(request_id));
            return Ok(());
        }
        _ => return Err(wrong(now)),
    };
    instance.power_state = next;
    instance.power_state_number = next.number();
    inner.events.publish(event, id, next, Some(request_id));
    Ok(())
}

fn attach_volume(volumes: &mut Vec<Volume>, id: Uuid, wanted: VolumeAttach) -> Result<()> {
    if !wanted.source.path().is_absolute() {
        return Err(Fault::invalid(wanted.source.field(), "must be an absolute path"));
    }
    match volumes.iter().find(|known| known.id == id) {
        Some(known) if known.source == wanted.source && known.read_only == wanted.read_only => {}
        Some(_) => return Err(Fault::new(FaultKind::VolumeExists, "another one")),
        None => volumes.push(Volume {
            id,
            device: wanted.device.unwrap_or_else(|| "/dev/vdb".into()),
            source: wanted.source,
            serial: wanted.serial.unwrap_or_else(|| id.to_string()),
            read_only: wanted.read_only,
            multiattach: wanted.multiattach,
            bytes: 1 << 30,
            status: VolumeStatus::Attached,
        }),
    }
    Ok(())
}

fn volume_at(volumes: &[Volume], id: Uuid) -> Result<usize> {
    volumes
        .iter()
        .position(|volume| volume.id == id)
        .ok_or_else(|| Fault::new(FaultKind::VolumeNotFound, "the instance has no such volume"))
}

fn validate(request: &InstanceCreate) -> Result<()> {
    let length = request.name.chars().count();
    if !(1..=255).contains(&length) {
        return Err(Fault::invalid("name", "must have 1 to 255 characters"));
    }
    if request.hostname.as_ref().is_some_and(|h| !(1..=64).contains(&h.chars().count())) {
        return Err(Fault::invalid("hostname", "must have 1 to 64 characters"));
    }
    if request.vifs.len() > 64 || request.files.len() > 256 {
        return Err(Fault::invalid("vifs", "too many"));
    }
    if request.files.iter().any(|file| file.mode > 4095) {
        return Err(Fault::invalid("files[0].mode", "must be at most 4095"));
    }
    request.vifs.iter().try_for_each(validate_vif)?;
    validate_flavor(&request.flavor)
}

fn validate_vif(vif: &Vif) -> Result<()> {
    let fits = |name: &str| (1..=15).contains(&name.chars().count());
    if !fits(&vif.devname) || vif.name.as_deref().is_some_and(|name| !fits(name)) {
        return Err(Fault::invalid("devname", "must have 1 to 15 characters"));
    }
    if !(68..=65_535).contains(&vif.mtu) {
        return Err(Fault::invalid("mtu", "must be 68 to 65535"));
    }
    Ok(())
}

fn validate_flavor(flavor: &Flavor) -> Result<()> {
    let ok = (1..=1024).contains(&flavor.vcpus)
        && (16..=16_777_216).contains(&flavor.memory_mb)
        && flavor.root_gb <= 65_536
        && flavor.ephemeral_gb <= 65_536
        && flavor.swap_mb <= 16_777_216;
    if ok { Ok(()) } else { Err(Fault::invalid("flavor", "out of range")) }
}

fn instance(id: Uuid, definition: Definition) -> Instance {
    Instance {
        id,
        definition,
        power_state: PowerState::Shutdown,
        power_state_number: PowerState::Shutdown.number(),
        task_state: None,
        volumes: vec![],
        quiesced: false,
        unconfirmed_resize: None,
        migration: None,
        rescue_image_id: None,
        fault: None,
        pid: None,
        id_map_first: 1_879_048_192,
        id_map_size: 65_536,
        pinned_cpus: None,
        exit: None,
        guest_reboots: 0,
        created_at: Utc::now(),
        started_at: None,
        generation: 1,
    }
}

fn image(id: Uuid, name: &str) -> Image {
    Image {
        id,
        name: name.to_owned(),
        format: ImageFormat::RootfsTar,
        size: 1,
        hash: ImageHash { algorithm: "sha512".into(), value: "00".into() },
        layers: vec![],
        unpacked_size: 1,
        config: ImageConfig::default(),
        disk: None,
        created_at: Utc::now(),
        verifications: Vec::new(),
        last_used_at: Utc::now(),
        users: vec![],
    }
}
