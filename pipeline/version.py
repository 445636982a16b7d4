"""The version of this program, as --version, the log and the results JSON tell it."""

VERSION = "1.0.0"
