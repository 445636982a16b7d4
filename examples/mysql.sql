-- pipeline/user_events.sql for MySQL and MariaDB, where || means OR. Use it with QUERY_FILE=examples/mysql.sql.
--
-- To read only what changed since the last run, replace the LEFT JOIN with these two lines. The session is in UTC,
-- whatever the server's time zone is, so :since fits TIMESTAMP columns, and DATETIME columns that are in UTC.
--     LEFT JOIN user_events AS e ON e.user_id = u.id AND e.event_time >= :since
--     WHERE u.updated_at >= :since OR e.id IS NOT NULL
SELECT
    u.id,
    u.email,
    u.first_name,
    u.last_name,
    u.plan_type,
    NULLIF(CONCAT_WS(' ', NULLIF(u.first_name, ''), NULLIF(u.last_name, '')), '') AS candidate,
    e.page,
    e.device,
    e.browser,
    e.location,
    e.event_time
FROM users AS u
LEFT JOIN user_events AS e ON e.user_id = u.id
ORDER BY u.id, e.event_time, e.id
