-- pipeline/user_events.sql for MySQL and MariaDB, where || means OR. Use it with QUERY_FILE=examples/mysql.sql.
--
-- To read only what changed since the last run, replace the LEFT JOIN with these two lines. FROM_UNIXTIME fits TIMESTAMP
-- columns whatever the server's time zone is; for DATETIME columns in UTC, write :since instead.
--     LEFT JOIN user_events AS e ON e.user_id = u.id AND e.event_time >= FROM_UNIXTIME(:since_unix)
--     WHERE u.updated_at >= FROM_UNIXTIME(:since_unix) OR e.id IS NOT NULL
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
