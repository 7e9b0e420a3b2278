"""One runner a folder: the kernel's lock on a local one, a lease that must be renewed on a remote one."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .places import FolderError, LocalPlace, Place

LOCK = "_lock"

# Seconds between two renewals of a lease, and after which it counts as left behind.
RENEWED_EVERY, EXPIRES_AFTER = 20.0, 90.0


class Lease:
    """A claim on a folder. `check` raises once it is lost."""

    def __init__(self) -> None:
        self.lost: str | None = None

    def check(self) -> None:
        if self.lost is not None:
            raise FolderError(self.lost)


@contextmanager
def only_runner(place: Place) -> Iterator[Lease]:
    """Hold a folder alone.

    Local: `flock` on the file `_lock`; the kernel lets go when the process ends, however it ends.
    Remote: the file `_lock` names its holder and is renewed every 20 s; one that has not been renewed
    for 90 s may be taken over (the machines' clocks must agree to within a minute). Should two runners
    still meet, the one that finds another's name in the file stops; results that both wrote are shown once.

    Raises:
        FolderError: somebody else has it; says who and since when.
    """
    if isinstance(place, LocalPlace):
        with _kernel_lock(place):
            yield Lease()
    else:
        with _lease(place) as lease:
            yield lease


def _me() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since}


def _refused(place: Place, holder: dict[str, Any]) -> FolderError:
    who = (
        f"process {holder['process']} on {holder['host']} since {holder['since']}"
        if "process" in holder
        else "another process"
    )
    return FolderError(
        f"{place} is being run by {who}; wait until it is done, stop it, or run into another folder "
        f"(status and report work meanwhile)"
    )


@contextmanager
def _kernel_lock(place: LocalPlace) -> Iterator[None]:
    import fcntl

    place.path.mkdir(parents=True, exist_ok=True)
    with open(place.path / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(place, _parsed((place.path / LOCK).read_bytes())) from None
        with suppress(OSError):  # a full disk must not hide what is already there
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
        yield


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _lease(place: Place) -> Iterator[Lease]:
    mine = {**_me(), "owner": uuid.uuid4().hex}
    holder = _holder(place)
    if holder and time.time() - holder.get("renewed", 0.0) < EXPIRES_AFTER:
        raise _refused(place, holder)

    def renew() -> None:
        place.write(LOCK, json.dumps({**mine, "renewed": time.time()}).encode())

    lease, over = Lease(), threading.Event()
    renew()
    if (now := _holder(place)).get("owner") != mine["owner"]:
        raise _refused(place, now)

    def keep() -> None:
        while not over.wait(RENEWED_EVERY):
            try:
                now = _holder(place)
                if now and now.get("owner") != mine["owner"]:
                    lease.lost = str(_refused(place, now))
                    return
                renew()
            except Exception:  # a network that comes back is not a lost lease
                continue

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        if _holder(place).get("owner") == mine["owner"]:
            place.delete(LOCK)


def _holder(place: Place) -> dict[str, Any]:
    try:
        return _parsed(place.read(LOCK))
    except FileNotFoundError:
        return {}
