"""The steps of a run, in order, from the settings to the report; and what may stop it before it sends. May import all
packages but `inspect`. Runs in the main thread; signals arrive there, too."""
