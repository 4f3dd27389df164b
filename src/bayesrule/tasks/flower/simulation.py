"""Flower's simulation on Ray, kept for several runs.

Flower starts Ray for one ServerApp and ends it with that app, which costs half a minute. Here the
ServerApp is a host: it gives away its grid and stays until the simulation is closed, so that all
runs of one command (of a paper, of a sweep) with the same number of clients share the processes.
It lives in a thread, where Ray leaves Python's signal handlers alone; its core takes SIGTERM all
the same when it is up (it prints where it was, and aborts three seconds later), so that whoever
listens to signals has to listen again once the first client's process has answered.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any

from bayesrule.errors import BayesruleError

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

__all__ = ["Simulation"]


class Simulation:
    """Client processes on a Ray cluster of their own, on this machine.

    Args:
        clients: K, the number of nodes.
        workers: Processes; None: one per core.
        gpus: Part of a GPU for each process.
        client_app: Instead of the usual one, for tests.
    """

    def __init__(
        self,
        clients: int,
        *,
        workers: int | None = None,
        gpus: float = 0.0,
        client_app: ClientApp | None = None,
    ) -> None:
        self.clients, self.workers, self.gpus = clients, workers or _cores(), gpus
        self._app = client_app
        self._grids: queue.Queue[Grid] = queue.Queue()
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._path = os.environ.get("PYTHONPATH")  # Flower changes it for its processes
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)
        self._thread.start()
        try:
            self.grid = self._await_grid()
        except BaseException:  # nobody else can close it, and its ServerApp would wait for ever
            self.close()
            raise

    def check(self) -> None:
        """Raise if the simulation has come to an end.

        Raises:
            BayesruleError: With the reason.
        """
        if not self._thread.is_alive():
            raise BayesruleError(f"Flower's simulation ended: {self._failure or 'no reason given'}")

    def close(self) -> None:
        """End the client processes and Ray."""
        self._over.set()
        self._thread.join(60.0)
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # back from Ray's core
        if self._path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = self._path

    def _run(self) -> None:
        from flwr.simulation import run_simulation

        from bayesrule.tasks.flower import client_app, server_app

        def host(grid: Grid, context: Any) -> None:
            self._grids.put(grid)
            self._over.wait()

        try:
            run_simulation(
                server_app.server_app(host),
                self._app or client_app.app,
                num_supernodes=self.clients,
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": self.gpus},
                    "init_args": {
                        "num_cpus": self.workers,
                        "include_dashboard": False,
                        "logging_level": "error",
                        "log_to_driver": False,
                    },
                },
            )
        except BaseException as error:
            self._failure = error
            self._over.set()

    def _await_grid(self) -> Grid:
        while True:
            try:
                return self._grids.get(timeout=0.1)
            except queue.Empty:
                self.check()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
