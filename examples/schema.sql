-- The tables that pipeline/user_events.sql reads, with a few rows, for SQLite, PostgreSQL, DuckDB, MySQL and MariaDB.
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    email VARCHAR(320) NOT NULL,
    first_name VARCHAR(100),
    last_name VARCHAR(100),
    plan_type VARCHAR(20),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP -- in UTC; your application sets it with each change
);
CREATE TABLE user_events (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id),
    page VARCHAR(100),
    device VARCHAR(20),
    browser VARCHAR(20),
    location VARCHAR(100),
    event_time TIMESTAMP NOT NULL -- in UTC
);
CREATE INDEX users_updated_at ON users (updated_at);
CREATE INDEX user_events_user_id ON user_events (user_id);
CREATE INDEX user_events_event_time ON user_events (event_time);

INSERT INTO users (id, email, first_name, last_name, plan_type, updated_at) VALUES
    (1, 'ada@example.com', 'Ada', 'Lovelace', 'pro', '2026-01-12 09:00:00'),
    (2, 'grace@example.com', 'Grace', NULL, 'free', '2026-01-13 10:00:00'),
    (3, 'nobody@example.com', NULL, '', NULL, '2026-01-12 09:00:00');
INSERT INTO user_events (id, user_id, page, device, browser, location, event_time) VALUES
    (1, 1, 'home', 'desktop', 'Chrome', 'London', '2026-01-12 09:05:00'),
    (2, 1, 'pricing', 'desktop', 'Chrome', 'London', '2026-01-13 08:45:12');
