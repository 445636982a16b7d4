-- What pipeline/user_events.sql reads, but only users that changed and events that were added since the last run. Use it
-- with QUERY_FILE=examples/changed_only.sql. Both times need an index, as in examples/schema.sql.
--
-- The job replaces :since by a text in UTC, such as '2026-01-13 08:45:12', and :since_unix by the seconds since 1970, such
-- as 1768293912. Trino needs the type as well: TIMESTAMP :since. The session is in UTC; SQL Server has none, so compare
-- with columns in UTC there.
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
LEFT JOIN user_events AS e ON e.user_id = u.id AND e.event_time >= :since
WHERE u.updated_at >= :since OR e.id IS NOT NULL
ORDER BY u.id, e.event_time, e.id
