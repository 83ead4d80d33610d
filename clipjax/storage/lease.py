"""A lock in a bucket: an object that its holder renews, and that another may take when nobody has for a while.

Who holds it is decided by the server alone: a write counts only if it replaces the version that the writer has seen
(GCS: ifGenerationMatch; S3: If-Match, If-None-Match), and the age of a version is the difference of two times that the
server tells, so that no two machines' clocks are compared.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from absl import logging

from clipjax import signals
from clipjax.storage.errors import StorageError
from clipjax.storage.versions import ChangedError, Version, knows_conditions, read_version, write_version

SECONDS = 60.0  # without renewal, after which a lease may be taken
PATIENCE = 300.0  # seconds that a holder waits for a server that does not answer, before it gives up
SKEW = 30.0  # seconds between this machine's clock and the server's from which on one line says so


class LeaseHeldError(Exception):
    """Somebody else holds the lease. owner: what it says about them."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


class LeaseLostError(Exception):
    """The lease is no longer this holder's. owner: who has it now; "": the object was removed."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner or "removed")
        self.owner = owner


@dataclass(frozen=True)
class Clock:
    """Time as a lease reads it; tests have their own. now: this machine's, compared with the server's for SKEW only."""

    elapsed: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)  # counts while it is suspended
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@contextmanager
def lease(path: str, *, seconds: float = 0, clock: Clock = Clock(), renew: bool = True) -> Iterator[Lease]:
    """Holds the lease at `path` and releases it at the end, or before a signal ends the process.

    seconds: 0: SECONDS. renew: in a thread, four times in `seconds`.

    A lease that is not renewed is waited for, at most its `seconds`, and taken then; one that is renewed in this time
    has a living holder, as has one of a living process of this machine. Raises LeaseHeldError, StorageError.
    """
    held = Lease(path, seconds or SECONDS, clock)
    held.acquire()
    thread = threading.Thread(target=held.keep, name="lease", daemon=True) if renew else None
    if thread:
        thread.start()
    try:
        with signals.tidying(lambda _: held.release()):
            yield held
    finally:
        held.release()
        if thread:
            thread.join(timeout=5)


def owner_of(path: str) -> str:
    """Who holds the lease at `path`, as it says; "" where nobody does. Raises StorageError."""
    found = read_version(path)
    return "" if found is None or is_free(found) else describe(found)


def is_free(found: Version) -> bool:
    """Whether a lease may be taken: released, expired by the server's clock, or of a dead process of this machine."""
    return bool(found.value.get("released")) or found.age > seconds_of(found) or _lives(found) is False


def seconds_of(found: Version) -> float:
    """After how many seconds without renewal a lease expires: what its holder has written in it, or SECONDS."""
    limit = found.value.get("seconds")
    return float(limit) if type(limit) in (int, float) and 0 < limit < 86_400 else SECONDS


def describe(found: Version) -> str:
    """What a lease says about its holder, as run.lock does on a disk."""
    owner = {key: found.value[key] for key in ("host", "pid", "started") if key in found.value}
    return str(owner).replace("'", '"') if owner else "unknown"


class Lease:
    """One holder's side of a lease; see lease()."""

    def __init__(self, path: str, seconds: float, clock: Clock) -> None:
        self.path, self.seconds, self.clock = path, seconds, clock
        self._token, self._renewals = uuid.uuid4().hex, 0
        self._started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._version, self._renewed = "", (0.0, 0.0)
        self._conditional = True
        self._lost: LeaseLostError | None = None
        self._lock, self._end = threading.RLock(), threading.Event()

    def acquire(self) -> None:
        """Takes the lease, waiting for a holder that may be dead. Raises LeaseHeldError, StorageError."""
        first, seen = None, self.clock.elapsed()
        while True:
            found = read_version(self.path)
            unchanged = first is not None and found is not None and first.name == found.name
            waited = unchanged and self.clock.elapsed() - seen > seconds_of(found)  # whatever the server's clock says
            if found is None or is_free(found) or waited:
                if self._take(found):
                    return
                continue
            if (first is not None and not unchanged) or (_lives(found) and found.age < seconds_of(found) / 2):
                raise LeaseHeldError(describe(found))
            if first is None:
                self._say_waiting(found)
            first = found
            self.clock.sleep(min(seconds_of(found) / 12, 5.0))

    def _take(self, found: Version | None) -> bool:
        """Writes the lease over the version `found`; False where somebody else was first."""
        before = self._times()
        try:
            self._version = write_version(self.path, self._value(), found.name if found else None)
        except ChangedError:
            if not self._adopt():
                return False
        self._renewed = before
        mine = read_version(self.path)
        if mine is None or mine.value.get("token") != self._token:
            return False
        self._say_skew(mine.now)
        self._check_conditions()
        return True

    def _check_conditions(self) -> None:
        """Warns where a server takes every write: a second holder would not be refused there."""
        if knows_conditions(self.path):
            return
        try:
            self._version = write_version(self.path, self._value(), None)
        except ChangedError:
            return
        self._conditional = False
        logging.warning(
            "%s: this server has no conditional writes, so a second run there would not be refused.", self.path
        )

    def keep(self) -> None:
        """Renews the lease until it is released or lost; what the server does not answer is tried again."""
        failed = False
        while not self._end.wait(self.seconds / 4):
            try:
                self.renew()
                failed = False
            except LeaseLostError:
                return
            except OSError as error:
                if not failed:
                    logging.warning("%s could not be renewed; trying again: %s", self.path, error)
                failed = True

    def renew(self) -> None:
        """Writes the lease anew. Raises LeaseLostError where it has been taken or removed; StorageError."""
        with self._lock:
            if self._lost:
                raise self._lost
            if self._end.is_set():
                return
            before = self._times()
            self._renewals += 1
            try:
                if not self._conditional and not self._adopt():
                    raise ChangedError
                self._version = write_version(self.path, self._value(), self._version)
            except ChangedError as error:
                if not self._adopt():
                    found = read_version(self.path)
                    self._lost = LeaseLostError(describe(found) if found else "")
                    raise self._lost from error
            self._renewed = before

    def check(self) -> None:
        """Raises LeaseLostError unless the lease is held. Asks the server only if the last renewal is long ago.

        While the server does not answer, it waits, at most PATIENCE seconds; then it raises StorageError.
        """
        with self._lock:
            if self._lost:
                raise self._lost
            ages = [now - then for now, then in zip(self._times(), self._renewed, strict=True)]
            if max(ages) <= self.seconds / 2 and min(ages) >= 0:
                return
            started, pause = self.clock.elapsed(), 1.0
            while True:
                try:
                    return self.renew()
                except StorageError as error:
                    if error.kind != "server" or self.clock.elapsed() - started > PATIENCE:
                        raise
                    logging.warning("Nothing is written until %s can be renewed: %s", self.path, error)
                self.clock.sleep(pause)
                pause = min(2 * pause, 30.0)

    def release(self) -> None:
        """Lets the next one in at once, unless the lease was lost. Where the server fails, the lease expires."""
        if self._end.is_set():
            return
        self._end.set()
        if not self._lock.acquire(timeout=10):  # held by a renewal that gets no answer
            return
        try:
            if not self._lost and (self._conditional or self._adopt()):
                self._version = write_version(self.path, self._value() | {"released": True}, self._version)
        except (ChangedError, OSError):
            pass
        finally:
            self._lock.release()

    def _adopt(self) -> bool:
        """Whether the object's version is this holder's own, written by a request whose answer was lost."""
        found = read_version(self.path)
        if found is None or found.value.get("token") != self._token:
            return False
        self._version = found.name
        return True

    def _times(self) -> tuple[float, float]:
        """Of this machine: the first counts while it is suspended, the second after a stop that the first missed."""
        return self.clock.elapsed(), self.clock.now()

    def _value(self) -> dict[str, Any]:
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "seconds": self.seconds,
            "renewals": self._renewals,
            "machine": _machine(),
            "token": self._token,
        }

    def _say_waiting(self, found: Version) -> None:
        left = max(seconds_of(found) - found.age, 0) + 1
        logging.warning(
            "%s is held by %s, renewed %.0f s ago. Waiting up to %.0f s. If its holder is alive, it renews the lease "
            "in that time, and this process ends; otherwise the lease expires, and this process takes it.",
            self.path,
            describe(found),
            found.age,
            left,
        )

    def _say_skew(self, server: float) -> None:
        ahead = self.clock.now() - server
        if abs(ahead) > SKEW:
            logging.warning(
                "This machine's clock is %.0f s %s the storage server's. The lease uses the server's clock and is "
                "not affected, but credentials fail if the clock is minutes off: set it.",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
            )


def _machine() -> str:
    """Names the kernel and the process namespace in which a pid means something; "" where they are not told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _lives(found: Version) -> bool | None:
    """Whether the holder's process is there, for one of this machine; None for another machine's."""
    pid = found.value.get("pid")
    if not _machine() or found.value.get("machine") != _machine() or not isinstance(pid, int) or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
