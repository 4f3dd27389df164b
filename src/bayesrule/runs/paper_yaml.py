"""Reading and checking `experiments/<key>/paper.yaml`.

Every error names the file, the key and, for a name that does not exist, the nearest that does.
The form, with every key (`?`: may be left out)::

    paper: {title:, authors:, year:, venue?:, arxiv?:, official_code?:, task?:, posteriors?: [],
            note?:}
    studies:
      <study>:
        experiment: <key>/<name>
        title?: ..  note?: ..
        arms: {<arm>: [overrides]}
        scales: {<scale>: {seeds: 10-14, overrides?: [], arms?: [names],
                           arm_overrides?: {<arm>: [overrides]}, experiment?: ..}}
        metrics?: [columns of the table]
        reported?: {source: Table 1, values: {<arm>: {<metric>: number}}}
    claims:
      - id: ..  statement: ..  headline?: C1  note?: ..
        study: <study>            # or {<scale>: <study>}
        kind: ordering | value | trend | identity
        scale?: cpu               # the lowest at which it means something
        test?: ..                 # see paper.TESTS
        paper?: {source: Table 1, <name>: number, ...}
        # sides:    left: {arm:, metric:} and right: {arm:, metric:}; or metric: with arm: or with
        #           arms: [left, right]; or arm: with metrics: [left, right]
        # ordering: direction: lower | higher, margin?: 0
        # value:    band: [low or null, high or null], relation?: difference | ratio
        # identity: tolerance: .., relation?: difference | ratio
        # trend:    direction: decreasing | increasing, margin?: 0, log_x?: false, and either
        #           points: [{x:, arm:, metric:}] or x?: [..] with metrics:/arm: or metric:/arms:
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayesrule.errors import ConfigError
from bayesrule.runs.claim_yaml import read_claim, read_metrics
from bayesrule.runs.paper import SCALES, Claim, Paper, ScaleSpec, Study
from bayesrule.runs.seeds import parse_seeds
from bayesrule.runs.yaml_node import (
    NAME,
    Node,
    load_yaml,
    nearest,
    one_of,
    read_list,
    read_mapping,
    read_number,
    read_text,
    read_texts,
    some_of,
)

__all__ = ["find_papers", "load_paper", "parse_paper"]

_FIRST_JUDGED_SEED = 10


def _year(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1900 < value < 2200:
        raise ValueError(f"must be a year, got {value!r}")
    return value


def _overrides(value: Any) -> tuple[str, ...]:
    for one in read_list(value):
        if not isinstance(one, str) or "=" not in one.lstrip("+~"):
            raise ValueError(f"{one!r} is no override (key=value)")
        if one.startswith(("+", "~")):
            raise ValueError(f"{one!r}: overrides may not add or remove keys")
        if re.match(r"(seed|experiment|scale)=", one):
            raise ValueError(f"{one!r}: the study sets experiment, scale and seed itself")
    return tuple(value)


def _authors(value: Any) -> str:
    return read_text(value) if isinstance(value, str) else ", ".join(read_texts(value))


def _scale_spec(node: Node, scale: str, arms: Mapping[str, Any]) -> ScaleSpec:
    seeds = node.take(
        "seeds", lambda value: parse_seeds(value, where=f"{node.file}: {node.key}.seeds")
    )
    tuned = [seed for seed in seeds if seed < _FIRST_JUDGED_SEED]
    if scale == "cpu" and tuned:
        raise node.error(
            "seeds",
            f"seed {tuned[0]} was used for tuning; the cpu scale is judged on seeds "
            f"{_FIRST_JUDGED_SEED} and above only",
        )
    per_arm = node.take("arm_overrides", read_mapping, {})
    arm_overrides = {}
    for arm, overrides in per_arm.items():
        try:
            arm_overrides[one_of(arms)(arm)] = _overrides(overrides)
        except ValueError as cause:
            raise node.error(f"arm_overrides.{arm}", str(cause)) from None
    spec = ScaleSpec(
        seeds=seeds,
        overrides=node.take("overrides", _overrides, ()),
        arms=node.take("arms", some_of(arms), None),
        arm_overrides=arm_overrides,
        experiment=node.take("experiment", read_text, None),
    )
    node.done()
    return spec


def _study(node: Node, name: str) -> Study:
    arms: dict[str, tuple[str, ...]] = {}
    for arm, overrides in node.take("arms", read_mapping).items():
        if not NAME.fullmatch(str(arm)):
            raise node.error("arms", f"{arm!r} is no name (letters, digits, _ . + -)")
        try:
            arms[str(arm)] = _overrides([] if overrides is None else overrides)
        except ValueError as cause:
            raise node.error(f"arms.{arm}", str(cause)) from None
    if not arms:
        raise node.error("arms", "a study needs at least one arm")
    scales = {}
    for scale, child in node.children("scales").items():
        if scale not in SCALES:
            raise node.error(f"scales.{scale}", f"unknown scale{nearest(scale, SCALES)}")
        scales[scale] = _scale_spec(child, scale, arms)
    if not scales:
        raise node.error("scales", "a study needs at least one scale")
    source, reported = None, {}
    if node.take("reported", read_mapping, None) is not None:
        inner = Node(node.value["reported"], node.file, f"{node.key}.reported")
        source = inner.take("source", read_text)
        for arm, child in inner.children("values").items():
            if arm not in arms:
                raise inner.error(f"values.{arm}", f"unknown arm{nearest(arm, arms)}")
            reported[arm] = {
                metric: child.take(metric, read_number)
                for metric in list(child.value)
                if child.value[metric] is not None
            }
        inner.done()
    study = Study(
        name=name,
        title=node.take("title", read_text, name),
        experiment=node.take("experiment", read_text),
        arms=arms,
        scales=scales,
        metrics=node.take("metrics", read_metrics, ()),
        reported=reported,
        source=source,
        note=node.take("note", read_text, None),
    )
    node.done()
    return study


def parse_paper(content: Any, key: str, file: str) -> Paper:
    """Build a paper from the content of a paper.yaml.

    Args:
        content: What the YAML holds.
        key: The paper's key.
        file: Name of the file, for errors.

    Returns:
        The checked paper.

    Raises:
        ConfigError: For unknown or missing keys, names that do not exist, values that do not fit,
            ids given twice, claims that no study could decide.
    """
    top = Node(content, file, "")
    block = Node(top.take("paper", read_mapping), file, "paper")
    studies = {name: _study(node, name) for name, node in top.children("studies").items()}
    if not studies:
        raise ConfigError(f"{file}: studies: there is no study")
    claims: list[Claim] = []
    for index, value in enumerate(top.take("claims", read_list)):
        claim = read_claim(value, file, index, studies)
        if any(claim.id == other.id for other in claims):
            raise ConfigError(f"{file}: claims[{index}].id: {claim.id!r} is given twice")
        claims.append(claim)
    top.done()
    paper = Paper(
        key=key,
        title=block.take("title", read_text),
        authors=block.take("authors", _authors),
        year=block.take("year", _year),
        venue=block.take("venue", read_text, None),
        arxiv=block.take("arxiv", lambda value: read_text(str(value)), None),
        official_code=block.take("official_code", read_text, None),
        task=block.take("task", read_text, None),
        posteriors=block.take("posteriors", read_texts, ()),
        studies=studies,
        claims=tuple(claims),
        note=block.take("note", read_text, None),
    )
    block.done()
    return paper


def load_paper(folder: str | Path) -> Paper:
    """Read and check `<folder>/paper.yaml`; the folder's name is the paper's key.

    Raises:
        ConfigError: If there is none, or something in it is wrong; see `parse_paper`.
    """
    folder = Path(folder)
    path = folder / "paper.yaml"
    if not path.is_file():
        known = find_papers(folder.parent)
        raise ConfigError(
            f"no paper {folder.name!r} ({path} does not exist)" + nearest(folder.name, known)
        )
    return parse_paper(load_yaml(path), folder.name, str(path))


def find_papers(experiments: str | Path) -> list[str]:
    """Return the keys of all papers: the folders of `experiments` that hold a paper.yaml."""
    root = Path(experiments)
    if not root.is_dir():
        return []
    return sorted(path.parent.name for path in root.glob("*/paper.yaml"))
