"""Model folders in, a model folder out: streamed, checked before, written whole or not at all.

The result has the tensors, types, shards and companion files (configuration, tokeniser) of the
first model. It is written into a hidden folder beside its place and renamed at the end, so that a
killed merge leaves no folder of that name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule import __version__
from bayesrule.errors import BayesruleError, ConfigError
from bayesrule.merging.adapters import AdapterMerge, check_adapters
from bayesrule.merging.curvature_file import GRAM, NAME, CurvatureFile
from bayesrule.merging.folders import INDEX, ModelFolder, check_same_architecture
from bayesrule.merging.methods import Method, check_usage
from bayesrule.merging.tensor_files import DTYPES, FLOATING, TensorSpec, write_tensors
from bayesrule.runs.files import sha256_file, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

    from bayesrule.merging.engine import MergeOptions, Merger, Source

__all__ = ["MergePlan", "merge_folders"]

_COMPANIONS = re.compile(r".*\.(json|txt|model|jinja|tiktoken|vocab)$")
_OWN = {"merge.json", "curvature.json", "gram.json", "posterior.json", "record.json"}
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.merging$")
_HEAD = 64
_CODES = {name: code for code, (name, _) in DTYPES.items() if code in FLOATING}


@dataclass
class MergePlan:
    """A merge of folders that was checked, and not begun; nothing of torch is needed for it.

    Attributes:
        method: The method.
        out: The folder to make.
        models: theta_1..theta_T.
        base: theta_0.
        curvatures: H_1..H_T.
        base_curvature: H_0.
        alphas: Scaling factors, one a model.
        dtype: Type of the merged tensors; None: that of the first model, tensor by tensor.
        factors: Adapters: ``cat`` or ``svd``.
        rank: Adapters: rank of the result for svd.
        notes: What a reader should know.
    """

    method: Method
    out: Path
    models: list[ModelFolder]
    base: ModelFolder | None
    curvatures: list[CurvatureFile]
    base_curvature: CurvatureFile | None
    alphas: list[float]
    dtype: str | None = None
    factors: str | None = None
    rank: int | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        method: Method,
        out: str | Path,
        models: Sequence[str | Path],
        *,
        base: str | Path | None = None,
        curvatures: Sequence[str | Path] | None = None,
        base_curvature: str | Path | None = None,
        alphas: Sequence[float] | None = None,
        dtype: str | None = None,
        factors: str | None = None,
        rank: int | None = None,
    ) -> MergePlan:
        """Check what a merge would do.

        Args:
            method: The method.
            out: The folder to make; it does not exist, or is empty.
            models: Folders.
            base: Folder of the base model.
            curvatures: A file for each model; None: the one in each model's folder.
            base_curvature: The base model's; None: the one in its folder.
            alphas: See `check_usage`.
            dtype: See the class.
            factors: See the class.
            rank: See the class.

        Raises:
            ConfigError: For the first thing that does not fit.
            CorruptFile: If a file is damaged.
        """
        out = Path(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} exists and is not an empty folder: choose another --out")
        if dtype is not None and dtype not in _CODES:
            raise ConfigError(f"dtype {dtype}: choose one of {', '.join(_CODES)}")
        folders = [ModelFolder(path) for path in models]
        is_adapter = any(folder.is_adapter for folder in folders)
        base_folder = None if base is None else ModelFolder(base)
        if base_folder is not None and is_adapter:
            raise ConfigError("adapters are merged about Delta W = 0: leave the base model out")
        check_same_architecture([*folders, *([base_folder] if base_folder else [])])
        held, H0 = _open_curvatures(method, folders, base_folder, curvatures, base_curvature)
        factor = check_usage(
            method,
            len(folders),
            base=base_folder is not None or is_adapter,
            curvatures=len(folders) if is_adapter else len(held),
            base_curvature=H0 is not None or is_adapter,
            alphas=alphas,
        )
        plan = cls(method, out, folders, base_folder, held, H0, factor, dtype, factors, rank)
        if is_adapter:
            check_adapters(folders, method, factors, rank)
        elif factors or rank:
            raise ConfigError("--factors and --rank are for adapters; these are whole models")
        plan._check_curvatures()
        plan._compare_configs()
        return plan

    @property
    def layout(self) -> ModelFolder:
        """The folder whose tensors, types and files the result has."""
        return self.models[0]

    def _check_curvatures(self) -> None:
        """Require that each curvature fits its model."""
        files = [*self.curvatures, *([self.base_curvature] if self.base_curvature else [])]
        for each in files:
            common = [name for name in each.file.specs if name in self.layout.specs]
            if not common:
                raise ConfigError(f"{each.file.path} has no tensor of {self.layout.path}")
            if each.kind == "gram":
                continue
            for name in common:
                here, there = each.file.specs[name].shape, self.layout.specs[name].shape
                if here != there:
                    raise ConfigError(
                        f"{each.file.path}: {name} has shape {list(here)}, the model's "
                        f"{list(there)}"
                    )
        for each in files[1:]:
            if each.kind != files[0].kind:
                self.notes.append(f"curvatures of different kinds: {files[0].kind}, {each.kind}")
            if set(each.file.specs) != set(files[0].file.specs) and each.kind != "gram":
                raise ConfigError(
                    f"{files[0].file.path} and {each.file.path} are of different parameters"
                )
        if files and (bare := [n for n in self._merged_names() if n not in files[0].file.specs]):
            kind = "averaged" if not self.method.base else "merged by task arithmetic"
            self.notes.append(f"{len(bare)} tensors without curvature were {kind}: {bare[0]}, ...")

    def _compare_configs(self) -> None:
        ignored = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
        if self.layout.is_adapter:  # the merged one has its own
            ignored |= {"r", "lora_alpha", "use_rslora", "rank_pattern", "peft_version"}
        first = self.layout.config()
        for other in self.models[1:]:
            config = other.config()
            keys = [k for k in {**first, **config} if first.get(k) != config.get(k)]
            if wrong := [key for key in keys if key not in ignored]:
                self.notes.append(
                    f"the configurations of {self.layout.path.name} and {other.path.name} differ "
                    f"in {', '.join(sorted(wrong))}; the first one's was kept"
                )

    def _merged_names(self) -> list[str]:
        return [name for name, spec in self.layout.specs.items() if spec.is_floating]


def _open_curvatures(
    method: Method,
    models: Sequence[ModelFolder],
    base: ModelFolder | None,
    curvatures: Sequence[str | Path] | None,
    base_curvature: str | Path | None,
) -> tuple[list[CurvatureFile], CurvatureFile | None]:
    """Open the curvatures that a method needs, as given or in the models' folders."""
    if method.curvature == "none":
        if curvatures or base_curvature:
            raise ConfigError(f"{method.name} uses no curvature: leave --curvature out")
        return [], None
    name = GRAM if method.curvature == "gram" else NAME
    if models[0].is_adapter:
        return [], None
    if curvatures is not None and len(curvatures) != len(models):
        raise ConfigError(f"{len(curvatures)} curvature files for {len(models)} models")
    found = curvatures or [folder.path / name for folder in models]
    held = [CurvatureFile.open(path) for path in found]
    if wrong := [c for c in held if (c.kind == "gram") != (method.curvature == "gram")]:
        raise ConfigError(f"{wrong[0].file.path} is of kind {wrong[0].kind}, not for {method.name}")
    if not method.base_curvature or base is None:
        return held, None
    return held, CurvatureFile.open(base_curvature or base.path / NAME)


def make_source(plan: MergePlan) -> Source:
    """Return the plan's folders as what is merged."""
    from bayesrule.merging.engine import Piece, Source

    class FolderSource(Source):
        """Reads the same entries of all files."""

        n_models, has_base = len(plan.models), plan.base is not None
        n_curvatures = len(plan.curvatures)
        has_base_curvature = plan.base_curvature is not None

        def names(self) -> list[str]:
            return plan._merged_names()

        def numel(self, name: str) -> int:
            return plan.layout.specs[name].numel

        def piece(self, name: str, start: int, stop: int) -> Piece:
            base = None if plan.base is None else plan.base.read(name, start, stop).double()
            models = [folder.read(name, start, stop).double() for folder in plan.models]
            held = [_curvature(each, name, start, stop) for each in plan.curvatures]
            present = [H for H in held if H is not None]
            H0 = _curvature(plan.base_curvature, name, start, stop)
            whole = len(present) == len(models) and bool(present)
            return Piece(name, start, models, base, present if whole else None, H0)

    return FolderSource()


def _curvature(held: CurvatureFile | None, name: str, start: int, stop: int) -> Tensor | None:
    if held is None or name not in held.file.specs:
        return None
    if held.kind == "gram":
        return held.file.read(name).double()
    return held.file.read(name, start, stop).double()


def merge_folders(plan: MergePlan, options: MergeOptions | None = None) -> dict[str, Any]:
    """Do a planned merge, and return its description (``merge.json`` of the folder).

    Args:
        plan: What to merge.
        options: Numbers of the method; their `alphas` are the plan's.

    Raises:
        BayesruleError: If the disk takes no more, or integer tensors differ between the models.
    """
    from bayesrule.merging.engine import MergeOptions, Merger

    options = replace(options or MergeOptions(), alphas=tuple(plan.alphas))
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(plan.out)
    hidden = plan.out.with_name(f".{plan.out.name}.{os.getpid()}.merging")
    hidden.mkdir()
    started = time.monotonic()
    try:
        if plan.layout.is_adapter:
            merger, files = _write_adapter(plan, options, hidden)
        else:
            source = make_source(plan)
            merger = Merger.of(plan.method.name, options, source)
            merger.prepare(source)
            files = _write_weights(plan, merger, source, hidden)
        _copy_companions(plan, hidden)
        about = _describe(plan, options, merger, files, time.monotonic() - started)
        (hidden / "merge.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (hidden / "MERGE.md").write_text(_card(about), encoding="utf-8")
        sync_folder(hidden)
        if plan.out.is_dir():
            plan.out.rmdir()  # empty, as the plan saw; fails if it no longer is
        hidden.rename(plan.out)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise BayesruleError(f"cannot write {plan.out}: {error}; nothing was left there") from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync_folder(plan.out.parent)
    return about


def _remove_leftovers(out: Path) -> None:
    """Remove what killed merges into the same folder left: hidden folders of dead processes."""
    for path in out.parent.glob(f".{out.name}.*.merging"):
        match = _HIDDEN.match(path.name)
        if match is None or match["name"] != out.name:
            continue
        try:
            os.kill(int(match["pid"]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            continue


def _write_weights(plan: MergePlan, merger: Merger, source: Source, folder: Path) -> dict[str, str]:
    """Write all shards; return their checksums."""
    from bayesrule.merging.engine import merge_pieces

    twins = _tied(plan)
    target = None if plan.dtype is None else _CODES[plan.dtype]

    def pieces(name: str) -> Iterator[Tensor]:
        spec = specs[name]
        if not spec.is_floating:
            yield _constant(plan, name)
            return
        for values in merge_pieces(merger, source, twins.get(name, name)):
            yield values.to(_torch_dtype(spec.dtype))

    specs: dict[str, TensorSpec] = {}
    sums, weight_map = {}, {}
    for file_name, file in plan.layout.files.items():
        here = []
        for name, spec in file.specs.items():
            made = replace(spec, dtype=target) if target and spec.is_floating else spec
            specs[name] = made
            weight_map[name] = file_name
            here.append(made)
        sums[file_name] = write_tensors(
            folder / file_name, here, pieces, file.metadata or {"format": "pt"}
        )
    if plan.layout.sharded:
        total = sum(spec.nbytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sums


def _torch_dtype(code: str) -> Any:
    import torch

    return getattr(torch, DTYPES[code][0])


def _constant(plan: MergePlan, name: str) -> Tensor:
    """Return a tensor of integers, which must be that of all models.

    Raises:
        ConfigError: If it differs (a count of batches may).
    """
    import torch

    first = plan.layout.read(name)
    for other in plan.models[1:]:
        if not torch.equal(first, other.read(name)) and not name.endswith("num_batches_tracked"):
            raise ConfigError(
                f"{name} holds integers that differ between {plan.layout.path} and {other.path}: "
                "quantised weights cannot be merged; convert the models to real numbers first"
            )
    return first


def _tied(plan: MergePlan) -> dict[str, str]:
    """Return tensors that are copies of an earlier one in every model, by name.

    Methods that act by name or at random must not make two of what was one. Candidates share shape
    and first bytes; then all of it is compared.
    """
    import torch

    folders = [*plan.models, *([plan.base] if plan.base else [])]
    seen: dict[Any, list[str]] = {}
    twins: dict[str, str] = {}
    for name, spec in plan.layout.specs.items():
        if not spec.is_floating or len(spec.shape) < 2 or spec.numel == 0:
            continue
        head = plan.layout.read(name, 0, min(_HEAD, spec.numel)).reshape(-1)
        key = (spec.shape, spec.dtype, tuple(head.tolist()))
        for earlier in seen.setdefault(key, []):
            if all(
                torch.equal(part(f, earlier), part(f, name))
                for f in folders
                for part in _parts(spec.numel)
            ):
                twins[name] = earlier
                break
        else:
            seen[key].append(name)
    return twins


def _parts(numel: int) -> Iterator[Any]:
    """Yield readers of a tensor's pieces."""
    from bayesrule.merging.engine import PIECE

    for start in range(0, numel, PIECE):
        stop = min(start + PIECE, numel)
        yield lambda folder, name, a=start, b=stop: folder.read(name, a, b).reshape(-1)


def _write_adapter(
    plan: MergePlan, options: MergeOptions, folder: Path
) -> tuple[Merger, dict[str, str]]:
    """Write the merged adapter and its configuration."""
    from bayesrule.merging.adapters import make_source as delta_source
    from bayesrule.merging.engine import Merger

    adapters = check_adapters(plan.models, plan.method, plan.factors, plan.rank)
    merger = Merger.of(plan.method.name, options, delta_source(adapters))
    merged = AdapterMerge(adapters, merger, plan.factors, plan.rank)
    target = None if plan.dtype is None else _CODES[plan.dtype]
    specs = {spec.name: replace(spec, dtype=target) if target else spec for spec in merged.specs()}

    def pieces(name: str) -> Iterator[Tensor]:
        yield merged.tensor(name).to(_torch_dtype(specs[name].dtype))

    (file_name,) = plan.layout.files
    sums = {file_name: write_tensors(folder / file_name, specs.values(), pieces, {"format": "pt"})}
    text = json.dumps(merged.config(), indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    merger.report |= {"factors": merged.how, "rank": merged.rank}
    if merged.errors:
        merger.report["relative_error"] = max(merged.errors.values())
    if adapters[0].others:
        plan.notes.append(f"{len(adapters[0].others)} whole tensors beside the adapter: averaged")
    return merger, sums


def _copy_companions(plan: MergePlan, folder: Path) -> None:
    """Copy configuration and tokeniser of the first model; no weights, no code."""
    for path in sorted(plan.layout.path.iterdir()):
        own = path.name in _OWN or path.name.endswith(".index.json")
        wanted = path.is_file() and _COMPANIONS.match(path.name) and not own
        if wanted and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    config = folder / "config.json"
    if plan.dtype is not None and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        for key in ("dtype", "torch_dtype"):
            if key in content:
                content[key] = plan.dtype
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _describe(
    plan: MergePlan, options: MergeOptions, merger: Merger, files: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    def of(folder: ModelFolder) -> dict[str, Any]:
        sums = {name: sha256_file(file.path) for name, file in folder.files.items()}
        return {"folder": str(folder.path), "sha256": sums}

    def curvature(held: CurvatureFile) -> dict[str, Any]:
        about = {"file": str(held.file.path), "sha256": sha256_file(held.file.path)}
        return about | {"kind": held.kind, "n_used": held.n_used, "n_data": held.n_data}

    return {
        "schema": 1,
        "bayesrule": __version__,
        "method": plan.method.name,
        "rule": plan.method.summary,
        "alphas": list(merger.alphas),
        "options": {k: v for k, v in asdict(options).items() if k != "alphas"},
        "dtype": plan.dtype,
        "models": [of(folder) for folder in plan.models],
        "base": None if plan.base is None else of(plan.base),
        "curvatures": [curvature(held) for held in plan.curvatures],
        "base_curvature": None if plan.base_curvature is None else curvature(plan.base_curvature),
        "report": merger.report,
        "notes": plan.notes,
        "files": dict(files),
        "seconds": round(seconds, 1),
    }


def _card(about: Mapping[str, Any]) -> str:
    """Return what was merged how, for people."""
    lines = ["# A merged model", "", f"`{about['method']}`: {about['rule']}", ""]
    lines += ["| model | factor | sha256 of the weights |", "|---|---|---|"]
    for model, alpha in zip(about["models"], about["alphas"], strict=True):
        lines.append(f"| {model['folder']} | {alpha:g} | {_short(model)} |")
    if about["base"]:
        lines.append(f"| {about['base']['folder']} | base | {_short(about['base'])} |")
    lines.append("")
    for held in about["curvatures"]:
        lines.append(
            f"- curvature `{held['file']}`: {held['kind']}, {held['n_used']} items for "
            f"{held['n_data']}"
        )
    lines += [f"- {name}: {value}" for name, value in about["report"].items()]
    lines += [f"- note: {note}" for note in about["notes"]]
    lines += ["", f"Made by `bayesrule merge` {about['bayesrule']}; all options: `merge.json`.", ""]
    return "\n".join(lines)


def _short(model: Mapping[str, Any]) -> str:
    return ", ".join(value[:12] for value in model["sha256"].values())
