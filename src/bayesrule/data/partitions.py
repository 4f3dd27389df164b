"""Who holds what: partitions of a training set over clients, as pure functions of labels.

Each takes labels (or any other column) of shape (N,) and returns one array of positions a client;
no position is used twice.

* `iid`: a random permutation, cut into K nearly equal parts.
* `dirichlet_clients`: client sizes s ~ Dir(size) and a class mix c_k ~ Dir(mix) of each client; of
  class c, client k gets the share u_kc / sum_k u_kc with u_kc = s_k c_kc (Swaroop et al., 2025, and
  Moellenhoff et al., 2026, with size = 1, mix = 0.5; a share of one item is made two).
* `dirichlet_classes`: of each class, client k gets a share drawn from Dir(mix) (Hsu et al., 2019).
* `shards`: the pathological split; every client holds a fixed number of items of each of a few
  classes, the first of them the least used so far.
* `by_value`: one client for every value of a column (a hospital, a writer).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from bayesrule.errors import ConfigError
from bayesrule.seeding import numpy_generator

__all__ = [
    "by_value",
    "dirichlet_classes",
    "dirichlet_clients",
    "iid",
    "label_mix",
    "partition_fingerprint",
    "shards",
]

Parts = list[np.ndarray]


def iid(labels: np.ndarray, clients: int, *, seed: int) -> Parts:
    """Return K random parts of nearly equal size.

    Args:
        labels: Labels, (N,).
        clients: K.
        seed: Seed of the partition.

    Raises:
        ConfigError: There are fewer items than clients.
    """
    _enough(len(labels), clients)
    order = numpy_generator(seed, "partition", "iid").permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet_clients(
    labels: np.ndarray,
    clients: int,
    *,
    seed: int,
    mix: float = 0.5,
    size: float = 1.0,
    even: float = 0.0,
) -> Parts:
    """Return parts with a Dirichlet size and a Dirichlet class mix of every client.

    ::

        s ~ Dir(size 1_K);   c_k ~ Dir(mix 1_C);   u_kc = s_k c_kc
        n_kc = round(n_c u_kc / sum_k u_kc)

    Args:
        labels: Labels, (N,).
        clients: K.
        seed: Seed of the partition.
        mix: Concentration of class mixes; small: few classes a client.
        size: Concentration of client sizes.
        even: Sizes are (1 - even) s + even/K, which avoids nearly empty clients.

    Raises:
        ConfigError: There are fewer items than clients, or a client would have no item.
    """
    _enough(len(labels), clients)
    rng = numpy_generator(seed, "partition", "dirichlet_clients")
    classes = np.unique(labels)
    s = rng.dirichlet(np.full(clients, size))
    s = (1.0 - even) * s + even / clients
    c = rng.dirichlet(np.full(len(classes), mix), size=clients)
    u = s[:, None] * c
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for j, one in enumerate(classes):
        rows = rng.permutation(np.flatnonzero(labels == one))
        counts = np.rint(len(rows) * u[:, j] / u[:, j].sum()).astype(int)
        counts[counts == 1] = 2
        for k, stop in enumerate(np.minimum(np.cumsum(counts), len(rows))):
            start = min(int(counts[:k].sum()), len(rows))
            parts[k].append(rows[start:stop])
    return _sorted(parts)


def dirichlet_classes(labels: np.ndarray, clients: int, *, seed: int, mix: float = 0.5) -> Parts:
    """Return parts in which each class is spread over clients by its own Dirichlet draw.

    Args:
        labels: Labels, (N,).
        clients: K.
        seed: Seed of the partition.
        mix: Concentration.

    Raises:
        ConfigError: There are fewer items than clients, or a client would have no item.
    """
    _enough(len(labels), clients)
    rng = numpy_generator(seed, "partition", "dirichlet_classes")
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for one in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == one))
        cuts = np.cumsum(rng.dirichlet(np.full(clients, mix)))[:-1]
        for k, piece in enumerate(np.split(rows, np.rint(cuts * len(rows)).astype(int))):
            parts[k].append(piece)
    return _sorted(parts)


def shards(
    labels: np.ndarray,
    clients: int,
    *,
    seed: int,
    classes_per_client: int = 2,
    items_per_class: int | None = None,
) -> Parts:
    """Return the pathological split: a few classes a client, the same number of items of each.

    The first class of a client is the one used least so far, the others are drawn from the least
    used ones that it lacks, so that every class is used about K classes_per_client / C times.

    Args:
        labels: Labels, (N,).
        clients: K.
        seed: Seed of the partition.
        classes_per_client: Classes that a client sees.
        items_per_class: Items of each; None: as many as there are for all.

    Raises:
        ConfigError: A class has too few items, or there are too few classes.
    """
    rng = numpy_generator(seed, "partition", "shards")
    classes = np.unique(labels)
    C = len(classes)
    if classes_per_client > C:
        raise ConfigError(f"{classes_per_client} classes a client, and there are {C} classes")
    used = np.zeros(C, dtype=int)
    chosen: list[list[int]] = []
    for _ in range(clients):
        mine: list[int] = []
        for _ in range(classes_per_client):
            free = np.array([j for j in range(C) if j not in mine])
            least = free[used[free] == used[free].min()]
            j = int(rng.choice(least))
            mine.append(j)
            used[j] += 1
        chosen.append(mine)
    rows = [rng.permutation(np.flatnonzero(labels == one)) for one in classes]
    available = min(len(rows[j]) // int(used[j]) for j in range(C) if used[j])
    n = available if items_per_class is None else items_per_class
    if n > available or n < 1:
        raise ConfigError(
            f"task.items_per_class={items_per_class}: with {clients} clients of "
            f"{classes_per_client} classes each there are {available} items of a class for a client"
        )
    taken = np.zeros(C, dtype=int)
    parts: list[list[np.ndarray]] = []
    for mine in chosen:
        pieces = []
        for j in mine:
            pieces.append(rows[j][taken[j] : taken[j] + n])
            taken[j] += n
        parts.append(pieces)
    return _sorted(parts)


def by_value(column: np.ndarray) -> Parts:
    """Return one client for every value of a column, in the order of the values."""
    return [np.flatnonzero(column == value) for value in np.unique(column)]


def label_mix(labels: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the number of items of each class that each client holds, (K, C)."""
    classes = np.unique(labels)
    return np.stack([[int((labels[part] == c).sum()) for c in classes] for part in parts])


def partition_fingerprint(parts: Sequence[np.ndarray]) -> str:
    """Return a SHA-256 over the positions of all clients, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _enough(n: int, clients: int) -> None:
    if n < clients:
        raise ConfigError(f"task.clients={clients}: there are {n} training items only")


def _sorted(parts: Sequence[Sequence[np.ndarray]]) -> Parts:
    found = [np.sort(np.concatenate(pieces)) for pieces in parts]
    empty = [k for k, part in enumerate(found) if not len(part)]
    if empty:
        raise ConfigError(
            f"client {empty[0]} of {len(found)} would hold no item: use fewer clients, a larger "
            "concentration, or task.even above 0"
        )
    return found
