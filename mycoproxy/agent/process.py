"""From the command line to a running daemon: logs, lock, event loop, and the list of parts."""

from __future__ import annotations

import logging
import os

import uvloop

from mycoproxy.agent.config_source import Loaded, Source
from mycoproxy.agent.control import Control
from mycoproxy.agent.daemon import Daemon
from mycoproxy.agent.lock import Lock
from mycoproxy.agent.logs import Logs
from mycoproxy.agent.moved_connections import MovedConnections
from mycoproxy.agent.moving import Moving
from mycoproxy.agent.notify import Notifier
from mycoproxy.agent.part import Part
from mycoproxy.agent.peer_links import PeerLinks
from mycoproxy.agent.probes import Probes
from mycoproxy.errors import MycoError

log = logging.getLogger(__name__)


def parts_of(daemon: Daemon) -> list[Part]:
    """What an agent is made of, in the order in which it starts.

    The probes come first, so that they can say what is missing; the control socket last, so that
    whoever finds it finds everything.
    """
    links, connections = PeerLinks(), MovedConnections()
    moving = Moving(links, connections)
    return [Probes(daemon.reasons), connections, links, moving, Control(daemon)]


def run_agent(source: Source, loaded: Loaded) -> int:
    """Be the agent until it is told to end. Returns the exit status.

    Raises ``RefusedError`` if another agent has its directory.
    """
    os.umask(0o077)
    config = loaded.config
    lock = Lock.take(config.state.directory / "agent.lock", key="state.directory")
    logs = Logs(node=config.node.name)
    logs.install(config.log)
    notifier = Notifier.from_environment(os.environ)

    async def be() -> int:
        daemon = Daemon(source, loaded, logs=logs, notifier=notifier)
        return await daemon.run(parts_of(daemon))

    try:
        status: int = uvloop.run(be())
    except MycoError as error:
        return error.exit_status  # the daemon has logged it
    except Exception:
        log.exception("a fault in the agent")
        return 1
    else:
        return status
    finally:
        logs.close()
        lock.release()
