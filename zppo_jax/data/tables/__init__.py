"""Random access to rows: tables of parquet files, of lines of JSON, of ArrayRecord and of the Hugging Face hub.

A table knows nothing about questions. Its rows are plain values by the name of their column; `data.questions` reads
them. Tables are picklable (they go to Grain's worker processes, which open the files again) and safe to read from many
threads.
"""

from __future__ import annotations

from zppo_jax.data.tables.files import find_files
from zppo_jax.data.tables.jsonl import JsonlTable
from zppo_jax.data.tables.parquet import ParquetTable
from zppo_jax.data.tables.table import RowError, Table

__all__ = ["JsonlTable", "ParquetTable", "RowError", "Table", "find_files"]
