-- Every user, with each of their events: one row for each pair, and one row with empty event columns for a user
-- without events. Edit it, or name a query of your own with QUERY_FILE.
--
-- An e-mail address is needed (or id / user_id, with ITERABLE_IDENTIFIER=userId), and event_time for events.
-- Add event_id if your events have a key: it becomes the event's id in Iterable.
-- In MySQL, write CONCAT_WS(' ', u.first_name, u.last_name) for the full name; || means OR there.
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
