"""The steps between the query and Iterable; main.py puts them together."""
