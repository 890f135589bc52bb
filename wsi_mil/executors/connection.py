"""The way to a Dask cluster, and what its workers say on it."""

import logging
from asyncio import CancelledError
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from wsi_mil.errors import ClusterError, OptionError, one_line
from wsi_mil.executors import worker
from wsi_mil.executors.cluster import Cluster

log = logging.getLogger(__name__)
_CONNECT_S = 5.0


@contextmanager
def connected(address: str) -> Generator[Cluster]:
    """Connect to a cluster.

    Args:
        address: of the scheduler (``tcp://host:8786``), or the file that ``dask scheduler --scheduler-file`` wrote.

    Raises:
        OptionError: dask is not installed.
        ClusterError: no scheduler answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise OptionError(
            f"--scheduler {address}: dask is not installed ({error}): pip install 'wsi-mil[cluster]'"
        ) from error
    if address.endswith(".json") and not Path(address).is_file():  # the client would wait for it for ever
        raise ClusterError(
            f"--scheduler {address}: no such file: name the one of `dask scheduler --scheduler-file FILE`"
        )
    place = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**place, timeout=_CONNECT_S, set_as_default=False, name="wsimil")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"--scheduler {address}: no Dask scheduler answers there ({one_line(error)}): start one with `dask"
            " scheduler` and give the address that it prints"
        ) from error
    for name in ("distributed", "distributed.client"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_news)
    with client:
        client.subscribe_topic(worker.TOPIC, _repeat)
        yield Cluster(client, address)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether Dask's log tells what our error does not: not that its client ends its search for a lost scheduler."""
    return not (isinstance(record.msg, CancelledError) or str(record.msg).startswith("Failed to reconnect"))


def _repeat(event: tuple[float, tuple[int, str]]) -> None:
    """Say here what a worker said in its log."""
    _, (level, message) = event
    log.log(level, "%s", message)
