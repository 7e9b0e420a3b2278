"""Ray itself: imported where it is used, without telemetry and dashboard; what a cluster has room for."""

from __future__ import annotations

import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Seconds in which a cluster must take a connection.
CONNECT_SECONDS = 10.0


def imported() -> Any:
    """The module `ray`, with its usage reports off unless somebody set them.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ImportError('engine "ray" needs Ray: pip install "emosteer[ray]"') from None
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected: to what it is connected to already, else to an address or this machine alone.

    Args:
        address: of a cluster, as `ray.init` takes it; None: the environment's RAY_ADDRESS, else a
            cluster of this machine that ends with the run.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an address of no such form.
        ConnectionError: no cluster answers there.
    """
    ray = imported()
    if ray.is_initialized():
        yield ray
        return
    there = address or os.environ.get("RAY_ADDRESS")
    if there:
        _reach(there)
    try:
        # Left to itself Ray joins the last cluster that anybody has started on this machine.
        ray.init(
            address=there or "local", include_dashboard=False, log_to_driver=False, configure_logging=False
        )
    except ValueError as error:
        raise ValueError(
            f'address must be "auto", host:port or ray://host:port, got {there!r}: {error}'
        ) from None
    except (ConnectionError, SystemExit) as error:  # Ray leaves the process where it cannot connect
        raise ConnectionError(_silent(there, error)) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Find out in seconds, and not in Ray's minutes, that nobody is there."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(_silent(address, error)) from None


def _silent(address: str | None, why: BaseException) -> str:
    return (
        f"no Ray cluster answers at address {address!r} ({why}); start one (ray start --head) and give its host:port, "
        "or no address and no RAY_ADDRESS for this machine alone"
    )


@dataclass(frozen=True)
class Placement:
    """How many workers there are, and what each of them takes.

    Attributes:
        workers: None for as many as the cluster has room for.
        cpus, gpus: of each; a GPU may be shared by a fraction.
        resources: further ones by name, such as {"accelerator_type:H100": 0.001} or a label of a node.
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers is not None and (
            isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1
        ):
            raise ValueError(f"num_workers must be an integer of at least 1 or None, got {self.workers!r}")
        amounts = {"cpus_per_worker": self.cpus, "gpus_per_worker": self.gpus}
        for name, value in {**amounts, **{f"resources[{k!r}]": v for k, v in self.resources.items()}}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")

    @property
    def each(self) -> dict[str, float]:
        """What a worker takes, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.resources}

    def room(self, ray: Any) -> int:
        """Workers that the cluster's living nodes could hold, were nothing else on them."""
        return sum(
            int(min((node.get(name, 0) / amount for name, amount in self.each.items() if amount), default=1))
            for node in _living(ray)
        )

    def count(self, ray: Any) -> int:
        """Workers to start, of those that there is room for.

        Raises:
            ValueError: no node has room for one and no number was asked for.
        """
        room = self.room(ray)
        if self.workers is None and not room:
            raise ValueError(
                f"no node of the Ray cluster has room for a worker of {self.each}; the nodes have {_living(ray)}"
            )
        if self.workers is not None and self.workers > room:
            warnings.warn(
                f"the Ray cluster has room for {room} workers of {self.each}, {self.workers} were asked for: the "
                "rest wait until nodes join",
                stacklevel=4,
            )
        return self.workers or room

    def warn_of_no_room(self, ray: Any) -> bool:
        """Whether no living node could hold a worker, which is then said: the run waits for one."""
        if self.room(ray):
            return False
        warnings.warn(
            f"no living node of the Ray cluster has room for a worker of {self.each}; they have {_living(ray)}: the "
            "sweep waits until a node joins. It may be stopped: what was reported done is safe",
            stacklevel=5,
        )
        return True

    def options(self) -> dict[str, Any]:
        """Of an actor. The driver replaces lost ones: it knows what they had written."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "resources": dict(self.resources) or None,
            "max_restarts": 0,
            "max_task_retries": 0,
        }


def _living(ray: Any) -> list[dict[str, float]]:
    """What each node has in all that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
