"""Rows of a dataset that the `datasets` library opens, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from furiosa_llm.dataset.record import RawRow
from furiosa_llm.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

HUB_PREFIX = "datasets:"

_FORM = "datasets:NAME[:[CONFIG:]SPLIT]"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A dataset by name, configuration and split."""

    name: str
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, source: str) -> HubDataset:
        """Reads `datasets:NAME`, `datasets:NAME:SPLIT` or `datasets:NAME:CONFIG:SPLIT`.

        Raises:
            DatasetError: There is no name, or more than a split.
        """
        name, _, rest = source.removeprefix(HUB_PREFIX).partition(":")
        if not name:
            raise DatasetError(f"{source}: no dataset is named; write {_FORM}")
        split, bracket, slice_ = rest.partition("[")  # a split may be `test[:10]`
        config, _, split = split.rpartition(":")
        if ":" in config:
            raise DatasetError(f"{source} has too many colons; write {_FORM}")
        return cls(name=name, config=config or None, split=f"{split}{bracket}{slice_}" or "train")

    @property
    def source(self) -> str:
        """The dataset as the user may write it."""
        config = "" if self.config is None else f"{self.config}:"
        return f"{HUB_PREFIX}{self.name}:{config}{self.split}"

    @property
    def num_rows(self) -> int | None:
        """Not known before the rows are read."""
        return None

    @property
    def schema(self) -> pa.Schema | None:
        """Not known before the rows are read."""
        return None

    def count_rows(self) -> int | None:
        """Counting would take downloading everything."""
        return None

    def rows(self, first_row_index: int) -> Iterator[RawRow]:
        """Yields the rows.

        Raises:
            DatasetError: The dataset cannot be found, downloaded or read.
        """
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise DatasetError(
                f"{self.source} needs the package {error.name!r}; install it"
            ) from error
        try:
            rows = datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
            for row_index, data in enumerate(rows, start=first_row_index):
                yield RawRow(row_index, dict(data), num_bytes=len(str(data)))
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            # The second line may name the configurations.
            reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__
            raise DatasetError(f"{self.source} cannot be read: {reason}") from error
