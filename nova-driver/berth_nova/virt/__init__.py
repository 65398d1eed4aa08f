"""`compute_driver = berth.BerthDriver`."""

from nova.virt.berth.driver import BerthDriver

__all__ = ['BerthDriver']
