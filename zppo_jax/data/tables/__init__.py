"""Random access to rows: tables of parquet files, of lines of JSON, of ArrayRecord and of the Hugging Face hub.

A table knows nothing about questions. Its rows are plain values by the name of their column; `data.questions` reads
them. Tables are picklable (they go to Grain's worker processes, which open the files again) and safe to read from many
threads. Each kind is a module, which is imported when it is needed: together their libraries take a second.
"""

from __future__ import annotations

from zppo_jax.data.tables.table import RowError, Table

__all__ = ["RowError", "Table"]
