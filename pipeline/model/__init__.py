"""The words that all steps share: records and outcomes, exit codes, what a failure does, text for a terminal, SQL. It
has no face: name the module. Imports only `iterable`."""
