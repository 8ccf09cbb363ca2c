"""Trajectories on disk: one Parquet file for each wave and rank, written before the update that uses them.

One row is one trajectory with everything that the losses eat, so that a step's updates can be replayed from the files alone, with any
number of ranks. float32 goes through Parquet bit for bit.

Legend: `B` trajectories, `T` their tokens.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from actors.algorithms.records import Experience, Trajectories, VersionSpan, cumulative
from actors.errors import PreceptorError
from actors.store import read_bytes, reason, write_whole
from actors.tasks import WrittenFile

TOKEN_COLUMNS = ("rewards", "old_logprobs", "reference_logprobs", "values", "advantages", "returns")
"""Fields of `Experience` with one float32 per token."""


def _lists(data: Tensor, cu_lengths: Tensor) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(cu_lengths.to(torch.int32).numpy()), pa.array(data.numpy()))


def write_experience(
    path: Path, indices: Sequence[int], experience: Experience, texts: Sequence[tuple[str, str]]
) -> WrittenFile:
    """Writes the trajectories, which are number `indices` of their wave, whole or not at all, and on disk when this
    returns. `texts`: prompt and response, for people.

    The file's name gets the digest of its content: another attempt at the same step never overwrites what a ledger entry names.
    """
    trajectories = experience.trajectories
    cu_lengths = trajectories.cu_lengths
    spans = [
        [{"start": s.start, "end": s.end, "policy_version": s.policy_version} for s in row]
        for row in trajectories.version_spans
    ]
    span_type = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("policy_version", pa.int32())]))
    columns = {
        "index": pa.array(indices, pa.int32()),
        "id": pa.array(trajectories.ids, pa.string()),
        "prompt_id": pa.array(trajectories.prompt_ids, pa.string()),
        "prompt": pa.array([prompt for prompt, _ in texts], pa.string()),
        "response": pa.array([response for _, response in texts], pa.string()),
        "score": pa.array(experience.scores.numpy()),
        "truncated": pa.array(trajectories.truncated.numpy()),
        "version_spans": pa.array(spans, span_type),
        "turn_offsets": pa.array([list(row) for row in trajectories.turn_offsets], pa.list_(pa.int32())),
        "tokens": _lists(trajectories.tokens, cu_lengths),
        "loss_mask": _lists(trajectories.loss_mask, cu_lengths),
        "rollout_logprobs": _lists(trajectories.rollout_logprobs, cu_lengths),
        **{name: _lists(getattr(experience, name), cu_lengths) for name in TOKEN_COLUMNS},
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    path = path.with_stem(f"{path.stem}-{sha256[:12]}")
    write_whole(path, data)
    return WrittenFile(name=path.name, sha256=sha256, num_bytes=len(data))


def check_files(folder: Path, files: Sequence[WrittenFile]) -> list[Path]:
    """Paths of the files, named under `folder`, all found to be as they were written.

    Raises:
        PreceptorError: naming a file that is missing or damaged.
    """
    paths = []
    for file in files:
        path = folder / file.name
        try:
            data = read_bytes(path)
        except OSError as error:
            raise PreceptorError(
                f"{path} can't be read ({reason(error)}): the step can't be replayed without its trajectories"
            ) from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise PreceptorError(
                f"{path} is damaged: its content is not what the ledger says; the step can't be replayed from it"
            )
        paths.append(path)
    return paths


def read_experience(paths: Sequence[Path], indices: Sequence[int]) -> Experience:
    """The trajectories `indices` of a wave, in that order, from all files of the wave.

    Raises:
        PreceptorError: where a trajectory is in none of them.
    """
    table = pa.concat_tables([pq.read_table(io.BytesIO(read_bytes(path))) for path in paths])
    places = {index: place for place, index in enumerate(table["index"].to_pylist())}
    if missing := [index for index in indices if index not in places]:
        raise PreceptorError(f"trajectories {missing} of the wave are in none of {[str(path) for path in paths]}")
    table = table.take([places[index] for index in indices]).combine_chunks()

    def tokens(name: str, dtype: torch.dtype) -> Tensor:
        values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return torch.tensor(values, dtype=dtype)

    lengths = [len(row) for row in table["tokens"].to_pylist()]
    trajectories = Trajectories(
        ids=tuple(table["id"].to_pylist()),
        prompt_ids=tuple(table["prompt_id"].to_pylist()),
        tokens=tokens("tokens", torch.int64),
        cu_lengths=cumulative(lengths),
        loss_mask=tokens("loss_mask", torch.bool),
        rollout_logprobs=tokens("rollout_logprobs", torch.float32),
        truncated=torch.tensor(table["truncated"].to_pylist(), dtype=torch.bool),
        version_spans=tuple(tuple(VersionSpan(**span) for span in row) for row in table["version_spans"].to_pylist()),
        turn_offsets=tuple(tuple(row) for row in table["turn_offsets"].to_pylist()),
    )
    return Experience(
        trajectories=trajectories,
        scores=torch.tensor(table["score"].to_pylist(), dtype=torch.float32),
        **{name: tokens(name, torch.float32) for name in TOKEN_COLUMNS},
    )
