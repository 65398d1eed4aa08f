"""A whole OpenStack on this machine, with berth as its only hypervisor.

`place` says where everything is; `processes` starts and ends programs; `config`
writes their configuration; `stores`, `network`, `control` and `compute` bring up
one part each; `identity` and `resources` fill the cloud. All of it listens on
loopback, or on the cloud's own bridge.
"""
