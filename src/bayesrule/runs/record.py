"""What is kept of a run that ended: `runs/<id>/record.json`, and its place in a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bayesrule.errors import CorruptFile

__all__ = ["SCHEMA", "STATUSES", "ArmRun", "RunRecord"]

SCHEMA = 1
STATUSES = ("done", "failed", "stopped")


@dataclass(frozen=True)
class RunRecord:
    """How a run ended.

    Attributes:
        id: The run's id (hash of its configuration).
        status: `done`, `failed` (an error ended it) or `stopped` (a signal did).
        metrics: Summary metrics, e.g. `{"test/nll@mean": 0.41}`; may hold NaN and infinities.
        error: Class name and message of what ended a failed run, else None.
        config: The resolved configuration.
        provenance: Commit, versions, machine, times; see `provenance.collect`.
        details: Further plain data.
        files: SHA-256 of the run's other files when it ended.
    """

    id: str
    status: str
    metrics: dict[str, float]
    error: tuple[str, str] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, for `files.write_json`."""
        error = self.error and {"kind": self.error[0], "message": self.error[1]}
        return {
            "schema": SCHEMA,
            "id": self.id,
            "status": self.status,
            "metrics": dict(sorted(self.metrics.items())),
            "error": error,
            "config": self.config,
            "provenance": self.provenance,
            "details": self.details,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, where: str = "record.json") -> RunRecord:
        """Build a record from stored data.

        Args:
            content: As `to_json` gives it.
            where: Name of the file, for errors.

        Raises:
            CorruptFile: If fields are missing or of the wrong kind, or a newer version wrote it.
        """
        schema = content.get("schema")
        if not isinstance(schema, int) or schema < 1:
            raise CorruptFile(f"{where} is no run record: it has no schema number")
        if schema > SCHEMA:
            raise CorruptFile(
                f"{where} has schema {schema}; this version of bayesrule reads up to {SCHEMA}: "
                "install a newer one"
            )
        try:
            error = content.get("error")
            return cls(
                id=str(content["id"]),
                status=str(content["status"]),
                metrics={str(k): float(v) for k, v in content["metrics"].items()},
                error=None if error is None else (str(error["kind"]), str(error["message"])),
                config=dict(content.get("config", {})),
                provenance=dict(content.get("provenance", {})),
                details=dict(content.get("details", {})),
                files=dict(content.get("files", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise CorruptFile(f"{where} is no whole run record: {cause!r}") from None


@dataclass(frozen=True)
class ArmRun:
    """One planned run of a study and what became of it.

    Attributes:
        study: The study's name.
        arm: The arm's name.
        seed: The seed.
        run: The run's id, or None if it is not known.
        status: `done`, `failed`, `stopped`, or `missing` (not run, or not to its end).
        metrics: Summary metrics.
        error: What ended it, as one line.
        provenance: See `provenance.collect`; not kept in result files run by run.
    """

    study: str
    arm: str
    seed: int
    run: str | None = None
    status: str = "missing"
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, study: str, arm: str, seed: int, run: str | None, record: RunRecord | None
    ) -> ArmRun:
        """Place a run's record (None: there is none) in a study."""
        if record is None:
            return cls(study, arm, seed, run)
        error = None if record.error is None else " ".join(": ".join(record.error).split())
        return cls(study, arm, seed, run, record.status, record.metrics, error, record.provenance)
