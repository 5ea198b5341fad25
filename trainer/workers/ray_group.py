"""`RayGroup`: ranks as Ray actors, on this machine or, by `RAY_ADDRESS`, on those of a cluster."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import re
import sys
import sysconfig
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...datums.errors import ModelError, WorkerError
from ...datums.extras import require
from .groups import GRACE, Group, client_state
from .rank import START, Answer, Rank

#: glibc keeps what all-gathers free, unless told: 5.3 times the weights in memory, against 0.98 times (4 ranks).
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
#: Variables of the client that workers get too.
_FORWARDED = (
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "LOSSBOOK_",
    "CUBLAS_WORKSPACE_CONFIG",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
)
#: Seconds that a cluster has to make room for a group: it may have to start machines.
ROOM = 600.0
#: A rank's share of a CPU in a Ray that runs on this machine alone, where it is a place and no promise.
_LOCAL_CPUS = 0.001


class RayGroup(Group):
    """One actor for each rank, on a GPU of its own where there are GPUs.

    device   "cpu" or "cuda"; None for GPUs where Ray knows any
    timeout  seconds that a call may take; a rank that waits so long for another in a collective gives up
    """

    def __init__(self, size: int, *, device: str | None = None, timeout: float) -> None:
        super().__init__(size, timeout)
        local = connect()
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        on_gpu = _on_gpu(device, size)
        bundle = {"CPU": _LOCAL_CPUS if local else 1.0, **({"GPU": 1.0} if on_gpu else {})}
        room = _room([bundle] * size)
        kind = ray.remote(Rank)
        self._actors: list[Any] = [
            kind.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0.0),
                max_restarts=0,
                runtime_env={"env_vars": environment(size, local=local)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(room, rank),
            ).remote(rank, size, device="cuda" if on_gpu else "cpu", timeout=timeout)
            for rank in range(size)
        ]
        self._end = weakref.finalize(self, _end, self._actors, room)
        self._meet()

    def end(self, why: str) -> None:
        """Kill all actors."""
        self.ended = self.ended or why
        self._end()

    def _meet(self) -> None:
        """Have the ranks join their process groups."""
        try:
            first, start = self._actors[0], "the start of the workers"
            host = self._each(start, [first.__ray_call__.remote(_address)], [0], START)[0]
            port = self._each(start, [first.listen.remote(host)], [0], START)[0]
            refs = [actor.start.remote(host, port) for actor in self._actors]
            places = self._each(start, refs, range(self.size), START)
            self.places = [places[rank] for rank in range(self.size)]
            self.call("seed", *client_state())
        except BaseException:
            self.end("the workers could not be started")
            raise

    def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
        import ray

        sent = ray.put(arguments)  # once, for all ranks
        refs = [actor.call.remote(name, sent) for actor in self._actors]
        return self._each(name, refs, range(self.size), self.timeout + GRACE)

    def _each(self, name: str, refs: Sequence[Any], ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        """What each rank returns; without those that do not answer after another answered with an error."""
        import ray
        from ray.exceptions import RayError

        waiting = dict(zip(refs, ranks, strict=True))
        deadline, failed = time.monotonic() + seconds, False
        answers: dict[int, Any] = {}
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready and failed:
                break
            if not ready:
                silent = ", ".join(self.who(rank) for rank in sorted(waiting.values()))
                self._die(name, f"no answer to {name} in {seconds:g} s from {silent}")
            rank = waiting.pop(ready[0])
            try:
                answers[rank] = ray.get(ready[0])
            except RayError as error:
                self._die(name, f"{self.who(rank)} died during {name}: {_reason(error)}", str(error))
            if isinstance(answers[rank], Answer) and answers[rank].error is not None and not failed:
                failed, deadline = True, min(deadline, time.monotonic() + GRACE)
        return answers


def connect() -> bool:
    """Connect this process to Ray; returns whether Ray runs on this machine alone, started here.

    Raises MissingExtraError without Ray, and WorkerError where a cluster does not let this process in.
    """
    global _is_local
    ray = require("ray", "workers", "ServiceClient(workers=...)")
    if ray.is_initialized():
        return _is_local
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    _is_local = address == "local"
    own = {"include_dashboard": False} if _is_local else {}

    def start() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)

    try:
        _on_a_lasting_thread(start)
    except Exception as error:
        raise _refused(address, error) from error
    return _is_local


_is_local = False


def _on_a_lasting_thread(start: Callable[[], None]) -> None:
    """Run it on a thread that lives as long as this process: the system ends Ray's processes with the thread that started them."""
    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(start())
        except BaseException as error:
            done.set_exception(error)
        else:
            threading.Event().wait()

    threading.Thread(target=run, name="lossbook-ray", daemon=True).start()
    done.result()


def environment(size: int, *, local: bool) -> dict[str, str]:
    """The environment variables that a worker gets: memory, threads, and where the client imports from."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    variables |= _MALLOC | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(own_paths())}
    threads = os.environ.get("OMP_NUM_THREADS") or (str(max(1, (os.cpu_count() or 1) // size)) if local else None)
    return variables | ({} if threads is None else {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})


def own_paths() -> list[str]:
    """Where this process imports from, beside Python's own folders and installed packages."""
    installed = [os.path.realpath(path) for path in {*sysconfig.get_paths().values(), sys.base_prefix, sys.prefix}]
    paths = [os.path.realpath(path or os.getcwd()) for path in sys.path]
    own = [path for path in paths if not any(path == one or path.startswith(f"{one}{os.sep}") for one in installed)]
    return list(dict.fromkeys(own))


def _on_gpu(device: str | None, size: int) -> bool:
    """Whether ranks get GPUs. Raises ModelError where there are not enough, and for a device that is no kind."""
    import ray

    if device not in (None, "cpu", "cuda"):
        raise ModelError(f"device={device!r} with workers: each worker has a device of its own, so say 'cpu' or 'cuda'")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "cpu" or (device is None and not gpus):
        return False
    if gpus < size:
        raise ModelError(f"{size} workers want a GPU each, but Ray knows of {gpus}: ask for fewer, or device='cpu'")
    return True


def _room(bundles: list[dict[str, float]]) -> Any:
    """A placement group of these resources. Raises WorkerError where there is no room."""
    import ray
    from ray.util import placement_group, remove_placement_group

    room = placement_group(bundles, strategy="PACK")
    if not room.wait(ROOM):
        remove_placement_group(room)
        free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
        raise WorkerError(
            f"Ray has no room for {len(bundles)} workers of {bundles[0]} each after {ROOM:g} s; free are {free}"
        )
    return room


def _address(rank: Rank) -> str:
    """Runs on rank 0: the address by which other nodes reach its own."""
    import ray

    return ray.util.get_node_ip_address()


def _end(actors: Sequence[Any], room: Any) -> None:
    import ray

    if not ray.is_initialized():
        return
    for actor in actors:
        ray.kill(actor)
    ray.util.remove_placement_group(room)


def _reason(error: Exception) -> str:
    """What Ray's message says about why."""
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    return (detail[1] if detail else text or type(error).__name__)[-300:]


def _refused(address: str, error: BaseException) -> WorkerError:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    text = " ".join(str(error).split())[:300]
    if any("InvalidAuthToken" in str(cause) or "AuthenticationError" in repr(cause) for cause in causes):
        return WorkerError(
            f"Ray at {address} refused this process's token. `ray start` asks for one: give the head, the nodes and this process "
            "the same RAY_AUTH_MODE ('token' or 'disabled'), and with 'token' the same token, in ~/.ray/auth_token or "
            "RAY_AUTH_TOKEN"
        )
    return WorkerError(f"Ray at {address} cannot be reached: {text}")
