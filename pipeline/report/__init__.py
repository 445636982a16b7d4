"""What a run says: results JSON, rejected rows, summary, log, console, progress; and what of it is kept how long. May
import `model`. The log takes lines from any thread; progress has a thread of its own."""

from pipeline.report.log import Console, open_log
from pipeline.report.progress import DeliveryProgress

__all__ = ["Console", "DeliveryProgress", "open_log"]
