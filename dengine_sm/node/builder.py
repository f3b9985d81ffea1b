"""Make a node of a config: find machine and log, construct and validate both."""

from __future__ import annotations

import asyncio

from dengine_sm.config import NodeConfig
from dengine_sm.contract import StateMachine
from dengine_sm.errors import ConfigError
from dengine_sm.loader import create_commit_log, create_state_machine
from dengine_sm.log.contract import CommitLog
from dengine_sm.node.node import Node
from dengine_sm.validation import check_structure, violation


class NodeBuilder:
    """Puts a state machine on a commit log.

        node = NodeBuilder(config).state_machine("file").build()

    Args:
        config: everything else; `NodeConfig()` is a working default.
        shutdown_event: stops the node cleanly when it is set.
    """

    def __init__(
        self, config: NodeConfig | None = None, shutdown_event: asyncio.Event | None = None
    ) -> None:
        self._config = config or NodeConfig()
        self._shutdown_event = shutdown_event
        self._machine: str | StateMachine = self._config.state_machine.backend
        self._log: str | CommitLog = self._config.log.engine

    def state_machine(self, name_or_instance: str | StateMachine) -> NodeBuilder:
        """Use a backend by name, or a machine that is not started."""
        self._machine = name_or_instance
        return self

    def commit_log(self, name_or_instance: str | CommitLog) -> NodeBuilder:
        """Use a commit log by name, or one that is not open."""
        self._log = name_or_instance
        return self

    def build(self) -> Node:
        """Find, construct and validate both; nothing is started.

        Raises:
            PluginError: no such backend, it breaks the contract, or the certificate that
                the config requires is missing or about something else.
            ConfigError: its options are wrong, or a machine that is no installed backend
                is to have a certificate.
        """
        config = self._config
        data_dir = config.node.data_dir
        machine, log = self._machine, self._log
        if isinstance(machine, str):
            # Options belong to the backend the config names.
            own = machine == config.state_machine.backend
            backend = machine
            machine = create_state_machine(
                machine,
                data_dir / "state_machine",
                config.state_machine.options if own else None,
                validate=config.state_machine.validate,
                require_certificate=config.state_machine.require_certificate,
                certificate=data_dir / config.state_machine.certificate,
            )
        else:
            backend = type(machine).__name__
            if config.state_machine.require_certificate != "off":
                raise _not_certifiable(backend, config.state_machine.require_certificate)
            if findings := check_structure(machine):
                raise violation(backend, None, findings)
        if isinstance(log, str):
            own = log == config.log.engine
            log = create_commit_log(log, data_dir / "log", config.log.options if own else None)
        return Node(machine, log, config, backend=backend, shutdown_event=self._shutdown_event)


def _not_certifiable(machine: str, profile: str) -> ConfigError:
    problem = (
        f"state_machine.require_certificate: {profile!r} is required, but the node was given "
        f"a {machine} as an object; only a backend that is chosen by name has a certificate"
    )
    return ConfigError(problem, problems=[problem])
