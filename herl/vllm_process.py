"""A vLLM server as a separate process on this machine."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from herl.errors import SamplerError

_STARTER = ThreadPoolExecutor(1, "server_starter")
"""Starts all servers: they end with the thread that started them, so it must last as long as this process."""


class ServerProcess:
    """Starts a server on a free port of the loopback interface, and stops it at exit at the latest.

    On Linux the server also ends if this process is killed.

    Args:
        path: The model's folder or name.
        log: File for the server's output.
        gpus: CUDA_VISIBLE_DEVICES of the server; None inherits it.
        arguments: Extra arguments for the server.
        key_env: Name of the environment variable that holds the server's key; None for no key.
    """

    def __init__(
        self,
        path: str,
        log: Path,
        gpus: str | int | None = None,
        arguments: Sequence[str] = (),
        key_env: str | None = None,
    ) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}  # enables reloading weights
        for name, value in (
            ("VLLM_LOGGING_LEVEL", "WARNING"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ):
            environment.setdefault(name, value)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpus)
        environment.pop("VLLM_API_KEY", None)
        if key_env is not None:
            environment["VLLM_API_KEY"] = os.environ[key_env]  # not an argument, which all users could see
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK",
            "TORCHELASTIC_USE_AGENT_STORE"):  # fmt: skip
            environment.pop(name, None)  # these describe the trainer
        # `vllm serve` fails if the installed package is vllm-cpu
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
        command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn-log-level", "warning"]
        command += ["--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"]
        command += ["--worker-extension-cls", "herl.sampler.vllm_worker.WorkerExtension"]
        if not torch.cuda.is_available():  # see herl.sampler.vllm
            command += ["--no-enable-chunked-prefill"]
        command += arguments
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = _STARTER.submit(
                subprocess.Popen,
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            ).result()
        atexit.register(self.stop)

    def wait(self, timeout_seconds: float) -> None:
        """Waits until the server answers.

        Raises:
            SamplerError: the server ended or took too long; the message shows the end of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                late = f"did not answer within {timeout_seconds:g} s"
                problem = late if code is None else f"ended with code {code}"
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise SamplerError(f"the vLLM server {problem}; its log {self.log} ends with:\n{tail}")
            with contextlib.suppress(httpx.HTTPError):  # not up yet
                if httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).is_success:
                    return
            time.sleep(0.5)

    @property
    def ended(self) -> bool:
        """Whether the server has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kills the server and its engine immediately."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Stops the server, by force after ten seconds. Safe to call twice."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Signals the server and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, number)


def _end_with_parent() -> None:
    """Asks Linux to end this process when its parent ends, even if the parent is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
