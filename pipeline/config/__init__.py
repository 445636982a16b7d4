"""Settings: `.env` and the environment, or every problem at once; which columns become which fields. May import
`model` and `iterable`. Used by the main thread only."""

from pipeline.config.fields import FieldMap, FieldType
from pipeline.config.load import SettingsError, load_settings
from pipeline.config.parsers import ROOT, MaxChanges, parse_moment
from pipeline.config.settings import SETTINGS, Settings

__all__ = [
    "ROOT",
    "SETTINGS",
    "FieldMap",
    "FieldType",
    "MaxChanges",
    "Settings",
    "SettingsError",
    "load_settings",
    "parse_moment",
]
