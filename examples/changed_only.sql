-- What pipeline/user_events.sql reads, but only users that changed and events that were added since the last run. Use it
-- with QUERY_FILE=examples/changed_only.sql. Both times need an index, as in examples/schema.sql.
--
-- The job puts a text in UTC in the place of :since, such as '2026-01-13 08:45:12', and a whole number of seconds since
-- 1970 in that of :since_unix. BigQuery, Databricks and Trino need a type before it: TIMESTAMP :since.
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
