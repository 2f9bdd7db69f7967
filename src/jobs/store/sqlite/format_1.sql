-- A job that is uploaded or deleted is invisible.
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    spec TEXT NOT NULL,
    idempotency_key BLOB,
    content BLOB,
    state TEXT NOT NULL CHECK (state IN
        ('uploading', 'queued', 'running', 'paused', 'completed', 'cancelled', 'deleting')),
    reason TEXT,
    total INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost INTEGER NOT NULL DEFAULT 0,
    rate_weighted REAL NOT NULL DEFAULT 0,
    rate_seconds REAL NOT NULL DEFAULT 0,
    rate_at INTEGER NOT NULL DEFAULT 0,
    -- Times are in milliseconds since 1970.
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    has_webhook INTEGER NOT NULL,
    announce_at INTEGER,
    announcements INTEGER NOT NULL DEFAULT 0
);

CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (owner, idempotency_key)
    WHERE idempotency_key IS NOT NULL AND state NOT IN ('uploading', 'deleting');
CREATE INDEX jobs_by_owner ON jobs (owner, number);
CREATE INDEX open_jobs ON jobs (number) WHERE state IN ('queued', 'running', 'paused');
CREATE INDEX hidden_jobs ON jobs (number) WHERE state IN ('uploading', 'deleting');
CREATE INDEX ended_jobs ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_to_announce ON jobs (announce_at) WHERE announce_at IS NOT NULL;

-- The fields that all items of a job share, as JSON. Apart from the jobs, which are rewritten with each result.
CREATE TABLE shared_fields (
    job INTEGER PRIMARY KEY REFERENCES jobs (number),
    fields TEXT NOT NULL
);

-- Which process holds a block is in the memory of the only process that may use this file.
CREATE TABLE blocks (
    number INTEGER PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs (number),
    first INTEGER NOT NULL,
    items INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    -- How many of its items have a result.
    answered INTEGER NOT NULL DEFAULT 0,
    UNIQUE (job, first)
);

CREATE INDEX unfinished_blocks ON blocks (job, first) WHERE answered < items;

-- The lines of blocks, compressed with zstd. Apart from the blocks, which are rewritten with each result.
CREATE TABLE payloads (
    block INTEGER PRIMARY KEY REFERENCES blocks (number),
    lines BLOB NOT NULL
);

CREATE TABLE results (
    -- Never used twice, so that a reader in this order misses nothing.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (number),
    item INTEGER NOT NULL,
    line BLOB NOT NULL,
    -- The error code, if the item failed.
    failure TEXT,
    retryable INTEGER NOT NULL,
    -- Of the item and the line: SQLite does not notice that a disk changed them.
    checksum INTEGER NOT NULL,
    UNIQUE (job, item)
);

-- An index of SQLite's ends with the primary key, so these are in the order of seq within a job.
CREATE INDEX results_by_seq ON results (job);
CREATE INDEX failures_by_seq ON results (job) WHERE failure IS NOT NULL;
CREATE INDEX failures_by_item ON results (job, item) WHERE failure IS NOT NULL;

CREATE TABLE failures (
    job INTEGER NOT NULL REFERENCES jobs (number),
    code TEXT NOT NULL,
    count INTEGER NOT NULL,
    example INTEGER NOT NULL,
    PRIMARY KEY (job, code)
) WITHOUT ROWID;
