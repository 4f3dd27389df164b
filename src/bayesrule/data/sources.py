"""Which source serves a data set: local mirror, installed package, or hub, in this order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from bayesrule.data.bundle import Source
from bayesrule.data.catalogue import nearest
from bayesrule.data.packages import PACKAGE_SETS, PackageSet, load_package_set
from bayesrule.errors import ConfigError, CorruptFile, DataUnavailable

if TYPE_CHECKING:
    import datasets

__all__ = ["Found", "locate"]

MIRROR_VARIABLE = "BAYESRULE_DATA"
_CONVERTED = "refs/convert/parquet"  # the hub's own parquet copy of script-based repositories


@dataclass(frozen=True)
class Found:
    """A data set that some source can serve, not yet decoded.

    Attributes:
        source: Which source, and the hash of its content.
        package: The arrays, when a package serves it.
        tables: Opens the Hugging Face tables by split, when mirror or hub serves it; takes the
            configuration name (None: the default one) and a folder for the Arrow copy.
    """

    source: Source
    package: PackageSet | None = None
    tables: Callable[[str | None, Path | None], Mapping[str, datasets.Dataset]] | None = None


def locate(cfg: Mapping[str, Any], cache_dir: Path | None = None) -> Found:
    """Return the first source that serves a data set.

    Args:
        cfg: A complete data config: `name`, `package`, `hub`, `hub_config`, `revision`.
        cache_dir: Folder of prepared files; None: write nothing (to ask whether a set is there).

    Raises:
        ConfigError: `package` names a set that no package ships.
        DataUnavailable: No source serves it; the message lists the three ways and what failed.
    """
    reasons = []
    for look in (_mirror, _package, _hub):
        found = look(cfg, cache_dir)
        if isinstance(found, Found):
            return found
        reasons.append(found)
    steps = "".join(f"\n  {i}. {reason}" for i, reason in enumerate(reasons, start=1))
    raise DataUnavailable(f"data={cfg['name']}: none of the three sources can serve it.{steps}")


def mirror_splits(found: Found, scratch: Path) -> list[list[int]] | None:
    """Return the published test indices of a mirror folder's `splits` configuration.

    Args:
        found: A located data set.
        scratch: Folder for the Arrow copy.

    Returns:
        One list of test rows a split, ordered by split number; None when none are published.
    """
    if found.source.served_by != "mirror" or found.tables is None:
        return None
    try:
        table = found.tables("splits", scratch)["train"]
    except (ValueError, KeyError):  # datasets: no such configuration
        return None
    rows = sorted(zip(table["split"], table["test_index"]))
    return [list(test_index) for _, test_index in rows]


def _mirror(cfg: Mapping[str, Any], cache_dir: Path | None) -> Found | str:
    name, root = str(cfg["name"]), os.environ.get(MIRROR_VARIABLE)
    layout = f"{name}/ in Hugging Face parquet layout"
    if not root:
        return f"local mirror: set {MIRROR_VARIABLE} to a folder that holds {layout}."
    folder = Path(root).expanduser() / name
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not files:
        return f"local mirror: {MIRROR_VARIABLE}={root} does not hold {layout}."
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.file_digest(handle, "sha256").digest())

    def tables(
        config: str | None = None, scratch: Path | None = None
    ) -> Mapping[str, datasets.Dataset]:
        import datasets as hf
        import pyarrow as pa

        def opened(name: str | None) -> Mapping[str, datasets.Dataset]:
            where = str(scratch) if scratch else None
            found: Mapping[str, datasets.Dataset] = hf.load_dataset(
                str(folder), name, cache_dir=where
            )
            return found

        try:
            with _offline(), _quiet():
                try:
                    return opened(config)
                except ValueError:  # datasets: no such configuration
                    if config is None or config != cfg["hub_config"]:
                        raise
                    return opened(None)  # a folder of this one configuration
        except (hf.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
            raise CorruptFile(
                f"data={name}: the parquet files in {folder} cannot be read "
                f"({error.__cause__ or error}); copy the folder again."
            ) from error

    where = f"${MIRROR_VARIABLE}/{name}"
    return Found(Source("mirror", where, None, digest.hexdigest()), tables=tables)


def _package(cfg: Mapping[str, Any], cache_dir: Path | None) -> Found | str:
    name = cfg["package"]
    if name is None:
        return "package: no installed dependency ships this set."
    if name not in PACKAGE_SETS:
        raise ConfigError(f"data.package={name}: no such set; {nearest(name, PACKAGE_SETS)}")
    try:
        package = load_package_set(name, cache_dir)
    except ImportError as error:
        return f"package: install {PACKAGE_SETS[name][0]} ({error})."
    return Found(Source("package", package.where, None, package.sha256), package=package)


def _hub(cfg: Mapping[str, Any], cache_dir: Path | None) -> Found | str:
    hub_id = cfg["hub"]
    if hub_id is None:
        return "Hugging Face hub: it holds no official copy of this set."
    try:
        with _quiet(), contextlib.nullcontext() if _hub_reachable() else _offline():
            loaded, revision = _load_from_hub(hub_id, cfg["hub_config"], cfg["revision"])
    except Exception as error:  # network, gating and layout errors share no base class
        return (
            f"Hugging Face hub: {hub_id} could not be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]})."
        )
    content = hashlib.sha256(hub_id.encode())
    for split in sorted(loaded):
        checksums = loaded[split].info.download_checksums or {}
        for url in sorted(checksums):
            content.update(f"{split} {url} {checksums[url]}\n".encode())
            if match := re.search(r"@([0-9a-f]{40})/", url):
                revision = match[1]
        if not checksums:
            content.update(f"{split} {loaded[split]._fingerprint}\n".encode())

    def tables(
        config: str | None = None, scratch: Path | None = None
    ) -> Mapping[str, datasets.Dataset]:
        return loaded

    return Found(Source("hub", hub_id, revision, content.hexdigest()), tables=tables)


def _load_from_hub(
    hub_id: str, config: str | None, revision: str | None
) -> tuple[Mapping[str, datasets.Dataset], str | None]:
    """Load a hub data set; repositories with a script fall back to the hub's parquet copy."""
    import datasets as hf

    try:
        return hf.load_dataset(hub_id, config, revision=revision), revision
    except RuntimeError as error:
        if revision is not None or "scripts are no longer supported" not in str(error):
            raise
        return hf.load_dataset(hub_id, config, revision=_CONVERTED), _CONVERTED


def _hub_reachable() -> bool:
    """Say whether the hub's name resolves, so that a machine without network fails at once."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` use files and its cache only, whatever the environment says."""
    import datasets as hf
    import huggingface_hub as hub

    before = hf.config.HF_HUB_OFFLINE, hub.constants.HF_HUB_OFFLINE
    hf.config.HF_HUB_OFFLINE = hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hf.config.HF_HUB_OFFLINE, hub.constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of `datasets` (they would break up ours)."""
    import datasets as hf

    enabled = hf.utils.logging.is_progress_bar_enabled()
    hf.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            hf.enable_progress_bars()
