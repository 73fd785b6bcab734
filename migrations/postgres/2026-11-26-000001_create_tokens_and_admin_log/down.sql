ALTER TABLE nodes DROP COLUMN drain_requested;
ALTER TABLE rings DROP COLUMN paused;
DROP TABLE admin_log_head;
DROP TABLE admin_log;
DROP TABLE tokens;
DROP FUNCTION chancery_admin_log_head_guard();
DROP FUNCTION chancery_tokens_guard();
