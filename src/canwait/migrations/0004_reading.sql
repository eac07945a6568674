-- What was accepted, who reads it, and how old it may be. Times are microseconds since 1970 UTC.

CREATE TABLE publication (
    job TEXT NOT NULL REFERENCES job (name),
    version BIGINT NOT NULL,                  -- 1, 2, ... of its job
    content TEXT NOT NULL,                    -- digest of its answers and of the verdict on them
    plan TEXT NOT NULL,
    tier TEXT NOT NULL,
    as_of_us BIGINT NOT NULL,                 -- when its input was read
    produced_us BIGINT NOT NULL,
    until_us BIGINT,                          -- when its input is known to change; NULL: not known
    components TEXT NOT NULL,                 -- JSON: the digest of each part that decides the answers
    n_rows BIGINT NOT NULL,
    n_failed BIGINT NOT NULL,
    cost_micros BIGINT NOT NULL,              -- what the job was billed since the publication before it
    verdict TEXT NOT NULL,
    rows_blob TEXT NOT NULL,                  -- Parquet
    key_column TEXT NOT NULL,
    PRIMARY KEY (job, version)
);
CREATE UNIQUE INDEX publication_once ON publication (job, content, as_of_us);
CREATE INDEX publication_newest ON publication (job, as_of_us, version);

CREATE TABLE input_read (                     -- when a plan's input was last seen to be what the plan was made of
    job TEXT NOT NULL,
    plan TEXT NOT NULL,
    as_of_us BIGINT NOT NULL,
    components TEXT NOT NULL,                 -- JSON: the digest of each part that decides the answers, as planned
    PRIMARY KEY (job, plan)
);

CREATE TABLE cadence (                        -- how often, how and how fast a job runs, as of its latest opening
    job TEXT PRIMARY KEY,
    schedule TEXT,                            -- cron; NULL: none is stated
    tier TEXT NOT NULL,
    window_s BIGINT NOT NULL,                 -- the tier's window, or the deadline where that is shorter
    at_us BIGINT NOT NULL
);

CREATE TABLE contract (                       -- every one ever stated; the last of a job and reader counts
    seq {serial},
    job TEXT NOT NULL,                        -- which may not have run yet
    reader TEXT NOT NULL,
    max_age_s BIGINT NOT NULL,
    on_stale TEXT NOT NULL,
    missed_runs BIGINT NOT NULL,
    said TEXT NOT NULL,                       -- declared: by the reader; revised, withdrawn: by a person
    who TEXT NOT NULL,
    at_us BIGINT NOT NULL
);
CREATE INDEX contract_of ON contract (job, reader, seq);

CREATE TABLE reading (                        -- who read what, when and how old; never what stood in it
    seq {serial},
    job TEXT NOT NULL,
    version BIGINT NOT NULL,
    reader TEXT NOT NULL,
    at_us BIGINT NOT NULL,                    -- of the last one counted here
    n_reads BIGINT NOT NULL,
    n_rows BIGINT NOT NULL,
    age_us BIGINT NOT NULL,                   -- the highest
    n_stale BIGINT NOT NULL
);
CREATE INDEX reading_of ON reading (job, reader, seq);

CREATE TABLE refresh (                        -- who is making the next publication, so that nobody else begins
    job TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    lease_us BIGINT NOT NULL
);
