-- What stands before a reader: lots of answers, and what people said of their samples.

CREATE TABLE lot (
    id TEXT PRIMARY KEY,                      -- a digest over the answers: others are another lot
    job TEXT NOT NULL REFERENCES job (name),
    plan TEXT NOT NULL,                       -- whose gate it stands before
    n_rows BIGINT NOT NULL,                   -- rows with a usable answer
    broken TEXT NOT NULL,                     -- JSON: of them by rule, those that break it; nothing loads them
    parts TEXT NOT NULL,                      -- JSON: its strata, each with its plan of inspection
    sample_blob TEXT NOT NULL,                -- JSON lines: the rows to judge, by place
    rows_blob TEXT NOT NULL,                  -- Parquet: the part of every such row in source order, or its broken rule
    drawn_us BIGINT NOT NULL,
    verdict TEXT,                             -- accepted, refused; NULL: not yet
    reason TEXT NOT NULL,
    taken TEXT NOT NULL DEFAULT '[]'          -- JSON: names of the strata that were accepted
);
CREATE INDEX lot_plan ON lot (job, plan);

CREATE TABLE judgement (
    lot TEXT NOT NULL REFERENCES lot (id),
    place BIGINT NOT NULL,                    -- in the order of inspection, from 0
    word TEXT NOT NULL,                       -- good, bad, unsure
    cause TEXT,                               -- of a bad one
    who TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    seq BIGINT NOT NULL,                      -- the order in which they were given, for undoing
    PRIMARY KEY (lot, place)
);
