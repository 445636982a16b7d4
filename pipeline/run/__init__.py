"""The steps of a run, in order, from the settings to the report; and what may stop it before it sends. May import all
packages but `inspect`. Runs in the main thread; signals arrive there, too."""

from pipeline.run.account import Account, report
from pipeline.run.conclusion import conclude, conclude_after, refuse
from pipeline.run.interrupt import Interrupted, catch_signals
from pipeline.run.opening import open_run
from pipeline.run.reading import read_rows
from pipeline.run.remember import remember
from pipeline.run.since import ALL
from pipeline.run.steps import brake, deliver, introduce, make_plan

__all__ = [
    "ALL",
    "Account",
    "Interrupted",
    "brake",
    "catch_signals",
    "conclude",
    "conclude_after",
    "deliver",
    "introduce",
    "make_plan",
    "open_run",
    "read_rows",
    "refuse",
    "remember",
    "report",
]
