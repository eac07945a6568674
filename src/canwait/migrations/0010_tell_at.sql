-- Of which shares of a limit somebody is told.

ALTER TABLE budget ADD COLUMN tell_at TEXT;                               -- JSON: shares of it; NULL: 80 % and all of it
