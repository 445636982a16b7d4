"""LOG_FORMAT=json: one JSON object a line, for the log and for stderr. Loaded only where it is set.

{"timestamp": "2026-01-13T14:31:22.123456+00:00", "level": "INFO", "logger": "main", "message": "...", "run_id": "..."}
"""

from __future__ import annotations

from typing import Any

from pythonjsonlogger.json import JsonFormatter

from iterable.redaction import Redactor

FIELDS = ("timestamp", "level", "logger", "message", "run_id")


class JsonLines(JsonFormatter):
    """Redacted like the text. A bug's traceback is a list of lines, `exc_info`. run_id: None outside of runs."""

    def __init__(self, redactor: Redactor, run_id: str | None) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"run_id": run_id},
            timestamp=True,
            exc_info_as_array=True,
        )
        self._redactor = redactor

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The fields of every line, in their order, whatever else a library has put into its record."""
        shown = {name: log_data[name] for name in FIELDS}
        shown["message"] = self._redactor.line(str(shown["message"]))
        if log_data.get("exc_info"):
            shown["exc_info"] = [self._redactor.line(line) for line in log_data["exc_info"]]
        return shown
