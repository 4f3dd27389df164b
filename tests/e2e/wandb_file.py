"""Reads an offline wandb file back: 7 header bytes, then records in blocks of 32 KiB."""

import json
import struct
from dataclasses import dataclass, field

BLOCK = 32768


@dataclass
class WandbFile:
    """What `wandb sync` would send."""

    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    step_metrics: dict = field(default_factory=dict)
    run: object = None
    finished: bool = False


def _payloads(data):
    """Yield whole records; a record that a kill cut short ends the file."""
    parts, at = b"", 7
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _items(items):
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def read_wandb(path):
    from wandb.proto import wandb_internal_pb2 as pb

    found, data = WandbFile(), path.read_bytes()
    assert data[:4] == b":W&B"
    for payload in _payloads(data):
        record = pb.Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _items(record.run.config.update)
        elif kind == "config":
            found.config |= _items(record.config.update)
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "metric":
            name = record.metric.glob_name or record.metric.name
            found.step_metrics[name] = record.metric.step_metric
        elif kind == "exit":
            found.finished = True
    return found
