"""Rows to user updates and events, by rules that come from the settings and the query's columns. Knows neither
network nor clock. May import `config`, `ledger`, `stage` and `model`. Used by the main thread only."""
