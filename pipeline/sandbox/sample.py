"""Sample users and what they did on a website, for a first run without your own database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_TABLES = """
CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, first_name TEXT, last_name TEXT, plan_type TEXT);
CREATE TABLE user_events (
    id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users(id),
    page TEXT, device TEXT, browser TEXT, location TEXT, event_time TEXT
);
"""
_USERS = (  # id, email, first_name, last_name, plan_type
    (1, "alex.moreau@example.com", "Alex", "Moreau", "pro"),
    (2, "priya.raman@example.com", "Priya", "Raman", "enterprise"),
    (3, "jose.calderon@example.com", "José", "Calderón", "free"),
    (4, "zoe.lindqvist@example.com", "Zoë", "Lindqvist", "pro"),
    (5, "misaki.arai@example.com", "美咲", "新井", "pro"),
    (6, "tunde.bakare@example.com", "Tunde", "Bakare", "free"),
    (7, "hannah.oconnor@example.com", "Hannah", "O'Connor", "enterprise"),
    (8, "lukas.hofer@example.com", "Lukas", "Höfer", None),  # never chose a plan
    (9, "mei.tanaka-ross@example.com", "Mei", "Tanaka-Ross", "free"),
    (10, "samir.haddad@example.com", "Samir", "Haddad", "pro"),
    (11, "olga.wisniewska@example.com", "Olga", "Wiśniewska", "enterprise"),
    (12, "grace.whitfield@example.com", "Grace", "Whitfield", "free"),  # has done nothing yet
)
_EVENTS = (  # user_id, page, device, browser, location, event_time
    (1, "home", "desktop", "Chrome", "San Francisco CA", "2026-01-05 17:02:10"),
    (1, "pricing", "desktop", "Chrome", "San Francisco CA", "2026-01-13 08:45:12"),
    (1, "checkout", "desktop", "Chrome", "San Francisco CA", "2026-01-13 08:52:40"),
    (1, "docs", "mobile", "Safari", "Oakland CA", "2026-01-19 21:14:03"),
    (2, "home", "desktop", "Edge", "Bengaluru", "2026-01-06 04:30:00"),
    (2, "features", "desktop", "Edge", "Bengaluru", "2026-01-06 04:33:27"),
    (2, "security", "desktop", "Edge", "Bengaluru", "2026-01-08 05:10:51"),
    (2, "contact-sales", "desktop", "Edge", "Bengaluru", "2026-01-08 05:18:09"),
    (3, "home", "mobile", "Chrome", "Bogotá", "2026-01-07 13:20:44"),
    (3, "pricing", "mobile", "Chrome", "Bogotá", "2026-01-07 13:22:02"),
    (3, "signup", "mobile", "Chrome", "Bogotá", "2026-01-07 13:25:30"),
    (4, "home", "tablet", "Safari", "Malmö", "2026-01-09 19:41:15"),
    (4, "blog", "tablet", "Safari", "Malmö", "2026-01-09 19:43:58"),
    (4, "pricing", "desktop", "Firefox", "Malmö", "2026-01-12 09:05:36"),
    (4, "account", "desktop", "Firefox", "Malmö", "2026-01-26 10:11:12"),
    (5, "features", "desktop", "Safari", "東京", "2026-01-10 01:15:00"),
    (5, "docs", "desktop", "Safari", "東京", "2026-01-10 01:19:47"),
    (5, "account", "mobile", "Safari", "東京", "2026-01-22 23:59:59"),
    (6, "home", "mobile", "Opera", "Lagos", "2026-01-11 06:48:20"),
    (6, "blog", "mobile", "Opera", None, "2026-01-11 06:55:01"),  # location switched off
    (6, "signup", "mobile", "Opera", "Lagos", "2026-01-11 07:02:39"),
    (7, "security", "desktop", "Chrome", "Cork", "2026-01-12 11:30:05"),
    (7, "contact-sales", "desktop", "Chrome", "Cork", "2026-01-12 11:37:42"),
    (7, "account", "desktop", "Chrome", "Cork", "2026-01-28 15:20:18"),
    (8, "home", "desktop", "Firefox", "Graz", "2026-01-14 16:04:33"),
    (8, "pricing", "desktop", "Firefox", "Graz", "2026-01-14 16:06:10"),
    (9, "blog", "mobile", "Safari", "Vancouver BC", "2026-01-15 22:47:55"),
    (9, "home", "mobile", "Safari", "Vancouver BC", "2026-01-15 22:49:08"),
    (9, "signup", "mobile", "Safari", "Vancouver BC", "2026-01-16 03:12:26"),
    (10, "features", "desktop", "Chrome", "Amman", "2026-01-17 09:33:14"),
    (10, "pricing", "desktop", "Chrome", "Amman", "2026-01-17 09:35:49"),
    (10, "checkout", "desktop", "Chrome", "Amman", "2026-01-17 09:40:27"),
    (10, "account", "tablet", "Chrome", "Amman", "2026-01-30 18:25:00"),
    (11, "docs", "desktop", "Firefox", "Kraków", "2026-01-20 07:55:31"),
    (11, "security", "desktop", "Firefox", "Kraków", "2026-01-20 08:01:16"),
    (11, "contact-sales", "desktop", "Firefox", "Kraków", "2026-01-21 12:44:50"),
)


def create_sample_database(path: str | Path) -> None:
    """Creates a SQLite file with twelve invented users and their events of January 2026. All of them can be sent."""
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(_TABLES)
        database.executemany("INSERT INTO users VALUES (?, ?, ?, ?, ?)", _USERS)
        database.executemany("INSERT INTO user_events VALUES (NULL, ?, ?, ?, ?, ?, ?)", _EVENTS)
