-- Lots whose answers another lot refuses after they were drawn.

ALTER TABLE lot ADD COLUMN known BIGINT;                       -- the journal's last event when its answers were looked at
ALTER TABLE lot ADD COLUMN decided BIGINT;                     -- the journal's last event before its verdict
