-- Every user with each of their events: one row per event, and one row with empty event columns for a user without
-- events. Edit it, or name your own query with QUERY_FILE. The tables are those of examples/schema.sql.
--
-- Each row needs an email address (or id / user_id, with ITERABLE_IDENTIFIER=userId), and event_time if it has an event.
-- Add event_id if your events have a key: it becomes the event's id in Iterable.
--
-- This runs as it is on SQLite, DuckDB, PostgreSQL, Redshift, Snowflake, BigQuery, Databricks and Trino. MySQL and
-- MariaDB read || as OR: use examples/mysql.sql there.
--
-- To read only what changed since the last run, replace the LEFT JOIN with these two lines (examples/changed_only.sql):
--     LEFT JOIN user_events AS e ON e.user_id = u.id AND e.event_time >= :since
--     WHERE u.updated_at >= :since OR e.id IS NOT NULL
SELECT
    u.id,
    u.email,
    u.first_name,
    u.last_name,
    u.plan_type,
    NULLIF(TRIM(COALESCE(u.first_name, '') || ' ' || COALESCE(u.last_name, '')), '') AS candidate,
    e.page,
    e.device,
    e.browser,
    e.location,
    e.event_time
FROM users AS u
LEFT JOIN user_events AS e ON e.user_id = u.id
ORDER BY u.id, e.event_time, e.id
