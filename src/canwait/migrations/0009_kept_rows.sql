-- Which publications still have their rows.

ALTER TABLE publication ADD COLUMN rows_state TEXT NOT NULL DEFAULT 'kept';   -- kept, going: its file may be, gone
CREATE INDEX publication_blob ON publication (rows_blob);
DROP INDEX publication_once;
CREATE UNIQUE INDEX publication_once ON publication (job, content, as_of_us) WHERE refused IS NULL AND rows_state = 'kept';
