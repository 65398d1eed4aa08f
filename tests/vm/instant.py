"""A pytest plugin: shows a failure when it happens, for the machine may be stopped before the end."""

import pytest


class Instant:
    """Writes to the terminal past pytest's capturing."""

    def __init__(self, config: pytest.Config):
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What a failed step reports."""
        if report.failed:
            terminal = self._config.pluginmanager.getplugin("terminalreporter")
            terminal.write_line(f"\n{report.longreprtext}")
            for title, text in report.sections:
                terminal.write_line(f"--- {title}\n{text}")


def pytest_configure(config: pytest.Config) -> None:
    """Registered only now, when the terminal is there."""
    config.pluginmanager.register(Instant(config))
