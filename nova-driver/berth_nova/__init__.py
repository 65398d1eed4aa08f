"""Nova's virt driver for berth. The driver itself is loaded as `nova.virt.berth`."""
