"""`nova.virt.berth.BerthDriver`: each method says which HTTP calls it makes.

What is not here, Nova's base class answers: with `NotImplementedError`, which
Nova's API reports as not supported.
"""

import datetime

from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import fileutils
from oslo_utils import netutils

from nova import conf as nova_conf
from nova import exception
from nova.compute import api as compute_api
from nova.compute import power_state
from nova.compute import task_states
from nova.compute import vm_states
from nova.virt import driver
from nova.virt import hardware
from nova.virt.berth import absent
from nova.virt.berth import asked
from nova.virt.berth import client as berth_client
from nova.virt.berth import conf
from nova.virt.berth import configdrive
from nova.virt.berth import consoles
from nova.virt.berth import diagnostics
from nova.virt.berth import events
from nova.virt.berth import faults
from nova.virt.berth import images
from nova.virt.berth import resources
from nova.virt.berth import snapshot
from nova.virt.berth import tags
from nova.virt.berth import told
from nova.virt.berth import translate
from nova.virt.berth import unfinished
from nova.virt.berth import vif as ports

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF
conf.register(CONF)

API_VERSION = 'v1'
# As much of the console as Nova's other drivers give.
CONSOLE_BYTES = 100 * 1024
NO_VOLUMES = 'berth does not attach volumes yet'


class BerthDriver(driver.ComputeDriver):
    """Containers as instances, by the berth service on this host."""

    capabilities = {
        **driver.ComputeDriver.capabilities,
        'has_imagecache': True,
        'supports_attach_interface': True,
        'supports_device_tagging': True,
        'supports_evacuate': True,
        # A file system without partitions; its kernel and ramdisk are ignored.
        'supports_image_type_ami': True,
        'supports_image_type_qcow2': True,
        'supports_image_type_raw': True,
        'supports_image_type_vdi': True,
        'supports_image_type_vhd': True,
        'supports_image_type_vhdx': True,
        'supports_image_type_vmdk': True,
        'supports_pcpus': True,
        'supports_tagged_attach_interface': True,
        'supports_trusted_certs': True,
    }

    def __init__(self, virtapi, client=None):
        super().__init__(virtapi)
        self.client = client or berth_client.Client(CONF.berth)
        self.images = images.Images(self.client, CONF.berth)
        self.events = None
        self.nodename = None

    # Start and end.

    def init_host(self, host):
        """Waits for GET /v1/host; opens GET /v1/events."""
        fileutils.ensure_tree(CONF.instances_path)
        ports.initialize()
        found = self._wait_for_service()
        if found['api_version'] != API_VERSION:
            raise exception.InternalError(
                'berth speaks %s; this driver needs %s' % (found['api_version'], API_VERSION))
        self.nodename = found['hypervisor_hostname']
        self.events = events.Reader(
            self.client, CONF.berth, self.emit_event, events.AvailabilitySwitch(self.virtapi))
        self.events.start()

    def _wait_for_service(self):
        deadline = berth_client.Deadline(CONF.berth.start_timeout)
        while True:
            try:
                return self.client.get('/v1/host')
            except exception.HypervisorUnavailable as error:
                if not deadline.left():
                    raise
                LOG.warning('Waiting for the service: %s', error)

    def process_instances_at_startup(self, context, instances):
        """GET /v1/host, once. All of them are Nova's to start with (Nova 2026.2)."""
        unfinished.say_why(context, instances, self.get_available_nodes()[0])
        return instances

    def cleanup_host(self, host):
        """Closes the connections. The instances run on."""
        if self.events:
            self.events.stop()
        self.client.close()

    # What there is.

    def get_info(self, instance, use_cache=True):
        """GET /v1/instances/{id}"""
        state = self.client.get(_path(instance))['power_state_number']
        # Nova acts on an event that something stopped only if it finds
        # SHUTDOWN. Told CRASHED, it would take ten minutes to notice.
        if state == power_state.CRASHED:
            state = power_state.SHUTDOWN
        return hardware.InstanceInfo(state=state)

    def list_instances(self):
        """GET /v1/instances"""
        return [instance['name'] for instance in self._instances()]

    def list_instance_uuids(self):
        """GET /v1/instances"""
        return [instance['id'] for instance in self._instances()]

    def get_num_instances(self):
        """GET /v1/instances"""
        return len(self._instances())

    def _instances(self):
        """Those that Nova made: others may share the service."""
        return [instance for instance in self.client.get('/v1/instances')['instances']
                if translate.PROJECT in instance['metadata']]

    def instance_exists(self, instance):
        """GET /v1/instances/{id}"""
        try:
            self.client.get(_path(instance))
        except exception.InstanceNotFound:
            return False
        return True

    @absent.is_an_error
    def _must_exist(self, instance):
        self.client.get(_path(instance))

    def instance_on_disk(self, instance):
        """GET /v1/instances/{id}: files are on this host with the instance, or nowhere."""
        return self.instance_exists(instance)

    def get_available_nodes(self, refresh=False):
        """One node, whose name never changes (GET /v1/host, once)."""
        if self.nodename is None:
            self.nodename = self.client.get('/v1/host')['hypervisor_hostname']
        return [self.nodename]

    def get_available_resource(self, nodename):
        """GET /v1/host"""
        return resources.available(self.client.get('/v1/host'))

    def update_provider_tree(self, provider_tree, nodename, allocations=None):
        """GET /v1/host"""
        host = self.client.get('/v1/host')
        ratios = self._get_allocation_ratios(provider_tree.data(nodename).inventory)
        provider_tree.update_inventory(nodename, resources.inventories(
            host, ratios, self._get_reserved_host_disk_gb_from_config()))
        has = resources.traits(host)
        provider_tree.add_traits(nodename, *has)
        provider_tree.remove_traits(nodename, *(resources.owned_traits() - has))

    def get_host_ip_addr(self):
        return CONF.my_ip

    def get_host_uptime(self):
        """GET /v1/host, GET /v1/host/stats; in the words of uptime(1)."""
        uptime = datetime.timedelta(seconds=self.client.get('/v1/host')['uptime'])
        load = self.client.get('/v1/host/stats')['load']
        return 'up %s,  load average: %s' % (
            uptime, ', '.join('%.2f' % average for average in load))

    def get_host_cpu_stats(self):
        """GET /v1/host/stats"""
        stats = self.client.get('/v1/host/stats')
        return {
            'kernel': stats['cpu_kernel_ns'],
            'user': stats['cpu_user_ns'],
            'idle': stats['cpu_idle_ns'],
            'iowait': stats['cpu_iowait_ns'],
            'frequency': stats['cpu_mhz'],
        }

    # Life and death.

    @told.in_the_action('driver_spawn')
    def spawn(self, context, instance, image_meta, injected_files,
              admin_password, allocations, network_info=None,
              block_device_info=None, power_on=True, accel_info=None):
        """GET, and if absent PUT /v1/images/{id}; PUT /v1/instances/{id};
        os-vif; POST …/start. The password: POST …/password.

        What no host of berth's could do is refused before anything is made.
        """
        try:
            self._spawn(context, instance, image_meta, injected_files, admin_password,
                        network_info, block_device_info, power_on, accel_info)
        except exception.ComputeResourcesUnavailable as error:
            if not _is_rebuilt_here(instance):
                raise
            # Nova would take it for a claim that failed before anything was done,
            # and leave the server ACTIVE, whose disks it had destroyed.
            raise exception.InternalError(faults.detail_of(error)) from error

    def _spawn(self, context, instance, image_meta, injected_files, admin_password,
               network_info, block_device_info, power_on, accel_info):
        self._refuse(instance, image_meta, block_device_info, accel_info)
        image_id = _image_id(instance, image_meta)
        image, _ = self.images.ensure(context, image_id, instance.trusted_certs)
        # From here on it takes Neutron's answer, which came meanwhile.
        network_info = list(network_info or [])
        ports.check(network_info)
        tags.note(context, instance)
        files = configdrive.files(instance, network_info, injected_files, admin_password)
        files += translate.injected_files(injected_files)
        body = translate.instance_create(
            instance, image, network_info, files, block_device_info, image_meta)
        try:
            self.client.put(_path(instance), body)
            # From here on nothing else comes in the image's place.
            if images.demanded_certs(instance.trusted_certs) is not None:
                self.images.demand(image_id, instance.trusted_certs)
            waited = network_info if power_on else []
            with ports.awaited(self.virtapi, instance, waited):
                for nova_vif in network_info:
                    ports.plug(instance, nova_vif)
            if power_on:
                self.client.post(_path(instance, 'start'))
            if admin_password and power_on and translate.boots_init(instance, image):
                self._set_first_password(instance, instance.image_meta, admin_password)
        except BaseException as error:
            with excutils.save_and_reraise_exception():
                # Not what another request made under this id.
                if not isinstance(error, exception.InstanceExists):
                    self._undo_spawn(instance, network_info)

    def default_root_device_name(self, instance, image_meta, root_bdm):
        """As inside. Nova itself goes on from there: vdb, vdc, ..."""
        return '/dev/vda'

    @staticmethod
    def _refuse(instance, image_meta, block_device_info, accelerators):
        """Refuses what no host of berth's could do."""
        _refuse_volumes(block_device_info)
        if accelerators:
            raise exception.InvalidInput(reason='berth gives an instance no accelerators')
        asked.check(instance.flavor, image_meta)

    def _undo_spawn(self, instance, network_info):
        try:
            self._delete(instance)
        except exception.NovaException:
            LOG.exception('What was made of the instance could not be removed',
                          instance=instance)
        ports.unplug_all(instance, network_info)

    def _set_first_password(self, instance, image_meta, password):
        """Every server has a password; an image that cannot take it is no failure."""
        try:
            self._set_password(instance, image_meta, password)
        except exception.NovaException as error:
            LOG.info('The admin password is not set: %s', error, instance=instance)

    def rebuild(self, context, instance, image_meta, injected_files,
                admin_password, allocations, bdms, detach_block_devices,
                attach_block_devices, network_info=None,
                evacuate=False, block_device_info=None,
                preserve_ephemeral=False, accel_uuids=None,
                reimage_boot_volume=False):
        """GET, and if absent PUT /v1/images/{id}. The rest is Nova's `destroy` and `spawn`.

        What would fail after the disks are gone fails while they are there: Nova
        then leaves the server as it was.
        """
        try:
            self._refuse(instance, image_meta, block_device_info, accel_uuids)
            ports.check(network_info or [])
            self.images.ensure(context, _image_id(instance, image_meta), instance.trusted_certs)
        except exception.NovaException as error:
            raise exception.InstanceFaultRollback(exception.BuildAbortException(
                instance_uuid=instance.uuid, reason=faults.detail_of(error))) from error
        raise NotImplementedError()

    def destroy(self, context, instance, network_info, block_device_info=None,
                destroy_disks=True, destroy_secrets=True):
        """DELETE /v1/instances/{id}, or POST …/stop to keep its disks; os-vif."""
        try:
            if destroy_disks:
                self._delete(instance)
            else:
                self.client.post(_path(instance, 'stop'), {'timeout': 0})
        except exception.InstanceNotFound:
            LOG.warning('The instance to destroy is not there', instance=instance)
        except exception.NovaException as error:
            # It may run on: Nova then keeps its addresses from others.
            raise exception.InstancePowerOffFailure(
                reason=faults.detail_of(error)) from error
        ports.unplug_all(instance, network_info)

    def cleanup(self, context, instance, network_info, block_device_info=None,
                destroy_disks=True, migrate_data=None, destroy_vifs=True,
                destroy_secrets=True):
        """os-vif; DELETE /v1/instances/{id}"""
        if destroy_vifs:
            ports.unplug_all(instance, network_info)
        if destroy_disks:
            self._delete(instance)

    def _delete(self, instance):
        """Absence is success."""
        try:
            self.client.delete(_path(instance))
        except exception.InstanceNotFound:
            LOG.info('The instance is gone already', instance=instance)

    def delete_instance_files(self, instance):
        """DELETE /v1/instances/{id}: files and instance are one."""
        try:
            self._delete(instance)
        except exception.NovaException:
            LOG.exception("The instance's files could not be removed", instance=instance)
            return False
        return True

    def cleanup_lingering_instance_resources(self, instance):
        """DELETE /v1/instances/{id}: it leaves nothing to linger."""
        return self.delete_instance_files(instance)

    @absent.is_an_error
    def power_on(self, context, instance, network_info,
                 block_device_info=None, accel_info=None, share_info=None):
        """GET /v1/instances/{id}; …/interfaces/{port} where Neutron's
        changed; POST …/start (…/unrescue of what Nova does not call rescued); os-vif."""
        _refuse_volumes(block_device_info)
        made = self._update_interfaces(instance, network_info)
        if _is_left_rescued(instance, made):
            self.unrescue(context, instance)
        else:
            self.client.post(_path(instance, 'start'))
        self._plug_all(instance, network_info)

    def power_off(self, instance, timeout=0, retry_interval=0):
        """POST /v1/instances/{id}/stop. What is not there does not run: a rebuild makes it."""
        try:
            self.client.post(_path(instance, 'stop'), {'timeout': timeout},
                             seconds=CONF.berth.operation_timeout + timeout)
        except exception.InstanceNotFound:
            LOG.warning('The instance to stop is not there', instance=instance)

    @absent.is_an_error
    def reboot(self, context, instance, network_info, reboot_type,
               block_device_info=None, bad_volumes_callback=None,
               accel_info=None, share_info=None):
        """POST /v1/instances/{id}/reboot; a hard one renews the interfaces, and
        ends by POST …/unrescue a rescue that failed for Nova."""
        _refuse_volumes(block_device_info)
        if reboot_type == 'SOFT':
            try:
                self._reboot(instance, 'SOFT', CONF.berth.soft_reboot_timeout)
                return
            except exception.InstanceInvalidState as error:
                LOG.info('A hard reboot instead: %s', error, instance=instance)
        made = self._update_interfaces(instance, network_info)
        if _is_left_rescued(instance, made):
            self.unrescue(context, instance)
        else:
            self._reboot(instance, 'HARD', 0)
        self._plug_all(instance, network_info)

    def _reboot(self, instance, reboot_type, timeout):
        self.client.post(
            _path(instance, 'reboot'), {'type': reboot_type, 'timeout': timeout},
            seconds=CONF.berth.operation_timeout + timeout, once=True)

    def poll_rebooting_instances(self, timeout, instances):
        """Reboots the stuck ones hard, through Nova, which then knows of it."""
        api = compute_api.API()
        for instance in instances:
            LOG.info('Rebooting for longer than %d seconds; now hard', timeout,
                     instance=instance)
            try:
                api.reboot(_admin_context(), instance, 'HARD')
            except exception.NovaException:
                LOG.exception('The hard reboot was refused', instance=instance)

    @absent.is_an_error
    def pause(self, instance):
        """POST /v1/instances/{id}/pause"""
        self.client.post(_path(instance, 'pause'))

    @absent.is_an_error
    def unpause(self, instance):
        """POST /v1/instances/{id}/unpause"""
        self.client.post(_path(instance, 'unpause'))

    @absent.is_an_error
    def suspend(self, context, instance):
        """POST /v1/instances/{id}/suspend"""
        self.client.post(_path(instance, 'suspend'))

    @absent.is_an_error
    def resume(self, context, instance, network_info,
               block_device_info=None, share_info=None):
        """POST /v1/instances/{id}/resume, or as `power_on` after the host was booted."""
        try:
            self.client.post(_path(instance, 'resume'))
        except exception.InstanceInvalidState:
            if self.get_info(instance).state != power_state.SHUTDOWN:
                raise
            self.power_on(context, instance, network_info, block_device_info)

    def resume_state_on_host_boot(self, context, instance, network_info,
                                  share_info, block_device_info=None):
        """GET /v1/instances/{id}, and as `power_on` if it is shut down."""
        if self.get_info(instance).state == power_state.SHUTDOWN:
            self.power_on(context, instance, network_info, block_device_info)

    # Rescue.

    @absent.is_an_error
    def rescue(self, context, instance, network_info, image_meta,
               rescue_password, block_device_info, share_info):
        """GET, and if absent PUT /v1/images/{id}; …/interfaces/{port} where Neutron's
        changed; POST …/rescue; os-vif. The password: POST …/password.

        Every rescue is a stable one, the instance's disks all there, so that
        there is no choice for the image's hw_rescue_device and hw_rescue_bus.
        """
        _refuse_volumes(block_device_info)
        image_id = _image_id(instance, image_meta)
        image, _ = self.images.ensure(context, image_id, instance.trusted_certs)
        self._update_interfaces(instance, network_info)
        files = configdrive.files(instance, network_info, [], rescue_password)
        self.client.post(_path(instance, 'rescue'), translate.rescue(image, files))
        self._plug_all(instance, network_info)
        if rescue_password and translate.image_boots_init(image):
            self._set_first_password(instance, image_meta, rescue_password)

    @absent.is_an_error
    def unrescue(self, context, instance):
        """POST /v1/instances/{id}/unrescue"""
        self.client.post(_path(instance, 'unrescue'))

    # Network.

    def plug_vifs(self, instance, network_info):
        """os-vif, at every start of nova-compute: disturbs nothing that is plugged.

        PUT /v1/instances/{id}/interfaces/{port} where a running instance lost one.
        """
        try:
            for nova_vif in network_info or []:
                if not ports.device_exists(nova_vif):
                    if not self._is_running(instance):
                        return  # `power_on` does it.
                    self._put_interface(instance, nova_vif)
                ports.plug(instance, nova_vif)
        except exception.VirtualInterfacePlugException:
            raise
        except exception.NovaException as error:
            # The only one that does not end the start of nova-compute.
            raise exception.VirtualInterfacePlugException(str(error)) from error

    def unplug_vifs(self, instance, network_info):
        """os-vif"""
        ports.unplug_all(instance, network_info)

    @told.in_the_action('driver_attach_interface')
    def attach_interface(self, context, instance, image_meta, vif):
        """PUT /v1/instances/{id}/interfaces/{port}; os-vif"""
        ports.check([vif])
        try:
            self._put_interface(instance, vif)
            ports.plug(instance, vif)
            tags.note(context, instance)
            instance.save()
        except exception.NovaException as error:
            with excutils.save_and_reraise_exception():
                LOG.error('Port %s is not attached: %s', vif['id'], error, instance=instance)
                # What is attached by this name already is not ours to take.
                if not isinstance(error, exception.PortInUse):
                    self.detach_interface(context, instance, vif)

    def detach_interface(self, context, instance, vif):
        """os-vif; DELETE /v1/instances/{id}/interfaces/{port}. Its routes go to the others."""
        self.unplug_vifs(instance, [vif])
        try:
            self._delete_interface(instance, vif['id'])
            self._renew_interfaces(instance, [
                other for other in instance.get_network_info() if other['id'] != vif['id']])
        except exception.InstanceNotFound:
            LOG.warning('The instance of port %s is not there', vif['id'], instance=instance)

    def inject_network_info(self, instance, nw_info):
        """…/interfaces/{port} of those whose addresses or routes are other ones now; os-vif."""
        try:
            self._renew_interfaces(instance, nw_info)
        except exception.InstanceNotFound:
            LOG.warning('The instance whose addresses changed is not there', instance=instance)

    def _renew_interfaces(self, instance, network_info):
        """Makes the addresses and routes that berth sets those that Neutron has now.

        An interface for which nothing changed is not disturbed, nor one that
        is not Neutron's.
        """
        made = self.client.get(_path(instance))
        known = {v['id']: v for v in made['vifs']}
        by_id = {v['id']: v for v in network_info}
        wanted = [body for body in translate.vifs(
            network_info, static=_is_static(made), named=False) if body['id'] in known]
        changed = [{**known[body['id']], **body} for body in wanted
                   if {**known[body['id']], **body} != known[body['id']]]
        # All go before one comes: an address or a route may move between them.
        for body in changed:
            self._delete_interface(instance, body['id'])
        for body in changed:
            self.client.put(_path(instance, 'interfaces', body['id']), body)
            ports.plug(instance, by_id[body['id']])

    def _is_running(self, instance):
        try:
            return self.get_info(instance).state == power_state.RUNNING
        except exception.InstanceNotFound:
            return False

    def _plug_all(self, instance, network_info):
        for nova_vif in network_info or []:
            ports.plug(instance, nova_vif)

    def _put_interface(self, instance, nova_vif):
        """As the service knows it, if it does: the same again is no conflict."""
        made = self.client.get(_path(instance))
        known = {v['id']: v for v in made['vifs']}
        body = known.get(nova_vif['id'])
        if body is None:
            body = translate.vif(nova_vif, static=_is_static(made))
            body = translate.one_route_each([*made['vifs'], body])[-1]
        self.client.put(_path(instance, 'interfaces', body['id']), body)

    def _delete_interface(self, instance, port_id):
        try:
            self.client.delete(_path(instance, 'interfaces', port_id))
        except exception.PortNotFound:
            LOG.info('Port %s is detached already', port_id, instance=instance)

    def _update_interfaces(self, instance, network_info, unplugged=False):
        """Makes a stopped instance's interfaces those that Neutron has now.

        Where they are unplugged, the service makes the host's ends anew, which
        os-vif removed. Gives the instance as it was made.
        """
        made = self.client.get(_path(instance))
        known = {v['id']: v for v in made['vifs']}
        wanted = {v['id']: v for v in translate.vifs(
            network_info or [], static=_is_static(made), named=False)}
        for port_id, body in known.items():
            if {**body, **wanted.get(port_id, {})} != body or port_id not in wanted:
                self._delete_interface(instance, port_id)
        for port_id, body in wanted.items():
            now = {**known.get(port_id, {}), **body}
            if unplugged or now != known.get(port_id):
                self.client.put(_path(instance, 'interfaces', port_id), now)
        return made

    # Looking in.

    def get_console_output(self, context, instance):
        """GET /v1/instances/{id}/console/output"""
        return self.client.get_bytes(
            _path(instance, 'console', 'output'), length=CONSOLE_BYTES)

    def get_serial_console(self, context, instance):
        """PUT /v1/instances/{id}/remote-consoles/serial"""
        return consoles.serial(self.client, _path(instance))

    def get_vnc_console(self, context, instance):
        """PUT /v1/instances/{id}/remote-consoles/vnc"""
        return consoles.vnc(self.client, _path(instance))

    def get_diagnostics(self, instance):
        """GET /v1/instances/{id}/stats"""
        return diagnostics.free_form(self.client.get(_path(instance, 'stats')))

    def get_instance_diagnostics(self, instance):
        """GET /v1/instances/{id}/stats, GET /v1/instances/{id}, GET /v1/host"""
        return diagnostics.standard(
            self.client.get(_path(instance, 'stats')), instance,
            self.client.get(_path(instance))['power_state_number'],
            'Linux %s' % self.client.get('/v1/host')['kernel'])

    def set_admin_password(self, instance, new_pass):
        """POST /v1/instances/{id}/password"""
        self._set_password(instance, instance.image_meta, new_pass)

    def _set_password(self, instance, image_meta, new_pass):
        """Of the user whom the image that runs is administered by."""
        user = image_meta.properties.get('os_admin_user') or 'root'
        try:
            self.client.post(_path(instance, 'password'),
                             {'user': user, 'password': new_pass})
        except exception.NovaException as error:
            if faults.code_of(error) in faults.UNSUPPORTED:
                raise exception.SetAdminPasswdNotSupported() from error
            raise

    def quiesce(self, context, instance, image_meta):
        """POST /v1/instances/{id}/quiesce"""
        self._quiesce(instance, 'quiesce')

    def unquiesce(self, context, instance, image_meta):
        """POST /v1/instances/{id}/unquiesce"""
        self._quiesce(instance, 'unquiesce')

    def _quiesce(self, instance, verb):
        try:
            self.client.post(_path(instance, verb))
        except exception.NovaException as error:
            if faults.code_of(error) in faults.UNSUPPORTED:
                raise exception.InstanceQuiesceNotSupported(
                    instance_id=instance.uuid) from error
            raise

    def trigger_crash_dump(self, instance):
        """POST /v1/instances/{id}/dump"""
        try:
            self.client.post(_path(instance, 'dump'))
        except exception.NovaException as error:
            if faults.code_of(error) in faults.UNSUPPORTED:
                raise exception.TriggerCrashDumpNotSupported(str(error)) from error
            raise

    # Images.

    def cache_image(self, context, image_id):
        """GET, and if absent PUT /v1/images/{id}"""
        return self.images.ensure(context, image_id)[1]

    def manage_image_cache(self, context, all_instances):
        """GET /v1/images; DELETE /v1/images/{id}"""
        self.images.evict({instance.image_ref for instance in all_instances})

    def snapshot(self, context, instance, image_id, update_task_state):
        """GET /v1/instances/{id}; POST …/snapshot"""
        # One that goes meanwhile is deleted, and Nova then does away with the image.
        self._must_exist(instance)
        snapshot.snapshot(self.client, self.images.api, context, instance, image_id,
                          update_task_state, CONF.berth)

    # Resize and cold migration. The service keeps what the instance was, on this host.

    @absent.is_an_error
    def migrate_disk_and_power_off(self, context, instance, dest,
                                   flavor, network_info,
                                   block_device_info=None,
                                   timeout=0, retry_interval=0):
        """GET /v1/instances/{id}; POST …/resize with `keep`, and the ports stay plugged. Or
        …/migrate to another host, and os-vif unplugs them: OVN would tell Nova of ports that
        are there still when a revert binds them, before `finish_revert_migration` waits for it.

        When it fails, the instance is put back, and Nova told that it is as it was.
        """
        try:
            asked.check(flavor)
        except exception.InvalidInput as error:
            raise _as_it_was(error.kwargs['reason']) from error
        body = translate.resize(
            instance.flavor, flavor, block_device_info, instance.image_meta)
        # Nova counts the flavor's sizes; the service would keep a larger disk.
        if (flavor.root_gb < instance.flavor.root_gb or
                flavor.ephemeral_gb < body['flavor']['ephemeral_gb']):
            raise _as_it_was('a disk cannot be made smaller')
        try:
            self._forget_last_resize(instance)
        except exception.HypervisorUnavailable as error:
            raise _as_it_was(faults.detail_of(error)) from error
        verb, undo, told = 'resize', ('resize', 'revert'), body
        if dest != CONF.my_ip:
            verb, undo = 'migrate', ('migrate', 'revert')
            told = {'to': _peer(dest), 'flavor': body['flavor']}
        try:
            self.client.post(_path(instance, verb), {**told, 'timeout': timeout},
                             seconds=CONF.berth.image_timeout + timeout)
        except exception.NovaException as error:
            self._undo_resize(instance, *undo)
            raise _as_it_was(faults.detail_of(error)) from error
        if verb == 'migrate':
            ports.unplug_all(instance, network_info)
        return ''

    def _forget_last_resize(self, instance):
        """What one that Nova gave up left; a revert of it would lose what came since."""
        if self.client.get(_path(instance)).get('unconfirmed_resize'):
            LOG.warning('Nova knows nothing of a resize that awaits confirmation: '
                        'it is confirmed', instance=instance)
            self.client.post(_path(instance, 'resize', 'confirm'))

    def _undo_resize(self, instance, *undo):
        self.client.post(_path(instance, *undo))
        if instance.vm_state != vm_states.STOPPED:
            self.client.post(_path(instance, 'start'))

    @absent.is_an_error
    def finish_migration(self, context, migration, instance, disk_info,
                         network_info, image_meta, resize_instance,
                         allocations, block_device_info=None, power_on=True,
                         share_info=None):
        """As `power_on`, but the ports come first. What came from another host has the
        new flavor.

        If it fails, POST …/resize/revert: Nova then takes the old flavor. On another host
        there is nothing to revert.
        """
        try:
            self._bring_up(instance, network_info, power_on)
        except exception.NovaException:
            with excutils.save_and_reraise_exception():
                try:
                    self.client.post(_path(instance, 'resize', 'revert'))
                except exception.NovaException:
                    LOG.exception('The resize is not reverted', instance=instance)

    def confirm_migration(self, context, migration, instance, network_info):
        """GET /v1/instances/{id}; POST …/resize/confirm, and the instance itself runs on.
        Of one that has moved to another host: os-vif; DELETE.
        """
        try:
            if self.client.get(_path(instance)).get('migration'):
                ports.unplug_all(instance, network_info)
                self._delete(instance)
            else:
                self.client.post(_path(instance, 'resize', 'confirm'))
        except exception.InstanceNotFound:
            LOG.warning('The instance of the resize is not there', instance=instance)

    @absent.is_an_error
    def finish_revert_migration(self, context, instance, network_info,
                                migration, block_device_info=None,
                                power_on=True, share_info=None):
        """GET /v1/instances/{id}; POST …/resize/revert, or …/migrate/revert of one that has
        moved to another host, or is on its way; as `finish_migration`.

        Nova asks for this too when its restart cut short a resize, however
        far it had come.
        """
        verb = 'migrate' if self.client.get(_path(instance)).get('migration') else 'resize'
        self.client.post(_path(instance, verb, 'revert'))
        self._bring_up(instance, network_info, power_on, unplugged=True)

    def _bring_up(self, instance, network_info, power_on, unplugged=False):
        """Ports, and then power."""
        self._update_interfaces(instance, network_info, unplugged)
        # At its start Nova hears nothing of Neutron.
        starting = instance.task_state == task_states.RESIZE_MIGRATING
        waited = network_info if power_on and not starting else []
        with ports.awaited(self.virtapi, instance, waited or []):
            self._plug_all(instance, network_info)
        if power_on:
            self.client.post(_path(instance, 'start'))

    def check_instance_shared_storage_local(self, context, instance):
        """Whether a revert's two hosts are one, where both flavors have one instance.

        Anywhere else no two hosts share an instance's disks.
        """
        if instance.task_state != task_states.RESIZE_REVERTING:
            raise NotImplementedError()
        return {'host': CONF.host}

    def check_instance_shared_storage_remote(self, context, data):
        return data['host'] == CONF.host

    # Not yet: what Nova is told where the base class would say too little.

    def get_volume_connector(self, instance):
        """Asked before a volume is attached: what a build, or the attach, then ends with."""
        raise exception.InvalidInput(reason=NO_VOLUMES)

    def check_can_live_migrate_destination(self, context, instance,
                                           src_compute_info, dst_compute_info,
                                           block_migration=False,
                                           disk_over_commit=False):
        """Nova then tries other hosts."""
        raise exception.MigrationPreCheckError(
            reason='berth moves no instance that runs: migrate it cold')

    def check_can_live_migrate_source(self, context, instance,
                                      dest_check_data, block_device_info=None):
        raise exception.MigrationPreCheckError(
            reason='berth moves no instance that runs: migrate it cold')

    def cleanup_live_migration_destination_check(self, context,
                                                 dest_check_data):
        """Nothing was made."""


def _path(instance, *parts):
    return '/'.join(('/v1/instances', instance.uuid) + parts)


def _image_id(instance, image_meta):
    """The image to boot; while unshelving it is not the instance's first."""
    if image_meta is not None and image_meta.obj_attr_is_set('id') and image_meta.id:
        return image_meta.id
    if instance.image_ref:
        return instance.image_ref
    raise exception.InvalidInput(reason='berth does not boot from volumes yet')


def _refuse_volumes(block_device_info):
    if driver.block_device_info_get_mapping(block_device_info):
        raise exception.InvalidInput(reason=NO_VOLUMES)


def _is_rebuilt_here(instance):
    """Whether Nova makes it anew in its own place, rather than for the first time or of
    another host, where it was left as it is."""
    return (instance.task_state == task_states.REBUILD_SPAWNING and
            instance.host == CONF.host)


def _as_it_was(reason):
    """Nova leaves the instance in the state that it was in."""
    return exception.InstanceFaultRollback(exception.ResizeError(reason=reason))


def _peer(address):
    """Where the service of the host with this address is."""
    return 'https://%s:%d' % (netutils.escape_ipv6(address), CONF.berth.migration_port)


def _is_left_rescued(instance, made):
    """Whether it boots a rescue image that Nova gave up, or knows nothing of."""
    return bool(made.get('rescue_image_id')) and instance.vm_state != vm_states.RESCUED


def _is_static(made):
    return made['metadata'].get(translate.ADDRESSING) == 'static'


def _admin_context():
    from nova import context
    return context.get_admin_context()
