"""Pending records -> requests, concurrently -> one outcome for each record.

One thread, that of `Delivery.run`, decides and keeps the ledger; workers only send, and meet in the breaker. May import
`ledger`, `stage` and `model`, and the client.
"""

from pipeline.delivery.breaker import Breaker
from pipeline.delivery.delivery import GRACE_S, Delivered, Delivery
from pipeline.delivery.failure_history import note_omitted, note_refusals, report_rejections
from pipeline.delivery.modes import Mode, choose_mode, single_mode
from pipeline.delivery.senders import BulkSender, SingleSender

__all__ = [
    "GRACE_S",
    "Breaker",
    "BulkSender",
    "Delivered",
    "Delivery",
    "Mode",
    "SingleSender",
    "choose_mode",
    "note_omitted",
    "note_refusals",
    "report_rejections",
    "single_mode",
]
