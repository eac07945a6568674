-- What is known of a batch while it is out. Times are microseconds since 1970 UTC.

ALTER TABLE shard ADD COLUMN progress TEXT;      -- JSON: what its polls counted, turnaround.Progress; NULL: nothing was counted
ALTER TABLE shard ADD COLUMN looked_us BIGINT;   -- when its provider last said that it is still out; NULL: never
ALTER TABLE alarm ADD COLUMN job TEXT;           -- whose it is; NULL: of no single job
ALTER TABLE job ADD COLUMN file TEXT;            -- the job file it was last run by; NULL: it has none
ALTER TABLE job ADD COLUMN load_to TEXT;         -- where that loads its rows
