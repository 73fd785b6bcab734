ALTER TABLE nodes DROP COLUMN drain_requested;
ALTER TABLE rings DROP COLUMN paused;
DROP TABLE admin_log_head;
DROP TABLE admin_log;
DROP TABLE tokens;
