"""What lies beneath `iterable_client`. Imports nothing else of this project, so both can be copied into another.

bodies: payload -> JSON. answers: an HTTP answer -> success or Failure. pacing: rate limits. transport: the hardened
session. connection: the pool beneath it. redaction: no secrets and no people in logs. export: rows -> a harmless CSV.
"""

VERSION = "1.2.0"
__version__ = VERSION
