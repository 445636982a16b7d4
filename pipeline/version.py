"""The version of this tool; the client names it in its User-Agent, so it is the client's."""

from iterable import __version__ as VERSION  # noqa: N812

__all__ = ["VERSION"]
