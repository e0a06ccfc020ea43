"""Labels of whole files of reports."""

import csv
import os
import tempfile
from pathlib import Path

from ..errors import DataError, InputError
from ..report_labels import FINDINGS, label_report
from .files import read_json_lines


def label_file(reports: str | os.PathLike, out: str | os.PathLike) -> tuple[int, list[str]]:
    """Labels every report of a JSONL file, one line in memory at a time, and writes `labels.csv` whole or not at all.

    Args:
        reports: lines of `{"id", "report"}`.
        out: a CSV with `id` and the 14 names of `FINDINGS`; 1, 0, -1 (uncertain) or empty.

    Returns:
        number of reports labelled, and a message for each line that could not be read or repeats an id.

    Raises:
        DataError: there is no report that can be labelled.
    """
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    seen: dict[str, int] = {}
    failures: list[str] = []
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *FINDINGS])
            for number, record in read_json_lines(reports, failures):
                fault = _fault(record, seen)
                if fault:
                    failures.append(f"{reports}, line {number}: {fault}")
                    continue
                seen[str(record["id"])] = number
                labels = label_report(record["report"])
                writer.writerow([record["id"], *("" if label is None else label for label in labels.values())])
            if not seen:
                first = f"; {failures[0]}" if failures else ""
                raise DataError(f"{reports}: no report to label; expected lines of id and report{first}")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return len(seen), failures


def _fault(record: dict, seen: dict[str, int]) -> str | None:
    """What is wrong with a line, or None."""
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        return f"'id' is {name!r}; expected text that names the report"
    if not isinstance(record.get("report"), str):
        return f"(id {name!r}) 'report' is {record.get('report')!r}; expected text"
    if str(name) in seen:
        return f"id {name!r} stands on line {seen[str(name)]} already; ids must differ"
    return None
