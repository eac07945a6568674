-- What is done about rows that are not back in time. Times are microseconds since 1970 UTC.

ALTER TABLE shard ADD COLUMN moving_us BIGINT;                            -- since when its unanswered lines go elsewhere
ALTER TABLE shard ADD COLUMN redo_micros BIGINT NOT NULL DEFAULT 0;       -- of what it holds: for those lines, there
ALTER TABLE shard ADD COLUMN redo_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE shard ADD COLUMN twice_micros BIGINT NOT NULL DEFAULT 0;     -- of the wasted: for lines that were asked again
ALTER TABLE shard ADD COLUMN unmoved TEXT;                                -- why it could not be moved, which is told once
ALTER TABLE job ADD COLUMN missed_us BIGINT;                              -- the last deadline it missed
ALTER TABLE job ADD COLUMN given_up TEXT;                                 -- what was done then: Fallback.at_deadline
CREATE INDEX shard_sent ON shard (provider, submitted_us);                -- the history of turnarounds
