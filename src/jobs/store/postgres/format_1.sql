-- A job that is uploaded or deleted is invisible.
CREATE TABLE jobs (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    owner text NOT NULL,
    spec text NOT NULL,
    -- The fields that all items share, as JSON.
    shared text,
    idempotency_key bytea,
    content bytea,
    state text NOT NULL CHECK (state IN
        ('uploading', 'queued', 'running', 'paused', 'completed', 'cancelled', 'deleting')),
    reason text,
    total bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    succeeded bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost bigint NOT NULL DEFAULT 0,
    rate_weighted double precision NOT NULL DEFAULT 0,
    rate_seconds double precision NOT NULL DEFAULT 0,
    rate_at bigint NOT NULL DEFAULT 0,
    -- Times by the clocks of the replicas, in milliseconds since 1970.
    created_at bigint NOT NULL,
    started_at bigint,
    ended_at bigint,
    has_webhook boolean NOT NULL,
    announce_at bigint,
    announcements bigint NOT NULL DEFAULT 0,
    -- The replica that uploads or deletes it, and until when it is taken for alive, by this clock.
    replica text,
    lease_until timestamptz
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (owner, idempotency_key)
    WHERE idempotency_key IS NOT NULL AND state NOT IN ('uploading', 'deleting');
CREATE INDEX jobs_by_owner ON jobs (owner, number);
CREATE INDEX open_jobs ON jobs (number) WHERE state IN ('queued', 'running', 'paused');
CREATE INDEX hidden_jobs ON jobs (number) WHERE state IN ('uploading', 'deleting');
CREATE INDEX ended_jobs ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX jobs_to_announce ON jobs (announce_at) WHERE announce_at IS NOT NULL;

-- No table refers to another by a constraint, which would take a query for each result. All changes lock
-- the row of the job first.
CREATE TABLE job_blocks (
    job bigint NOT NULL,
    first bigint NOT NULL,
    items integer NOT NULL,
    bytes bigint NOT NULL,
    -- How many of its items have a result.
    answered integer NOT NULL DEFAULT 0,
    is_done boolean NOT NULL DEFAULT false,
    -- Who holds it, by which claim, and until when by this clock.
    replica text,
    claim bigint,
    lease_until timestamptz,
    PRIMARY KEY (job, first)
) WITH (fillfactor = 50);

CREATE INDEX unfinished_job_blocks ON job_blocks (job, first) WHERE NOT is_done;
CREATE INDEX held_job_blocks ON job_blocks (job) WHERE replica IS NOT NULL;
CREATE INDEX job_blocks_by_holder ON job_blocks (replica, job, first) WHERE replica IS NOT NULL;

-- The lines of blocks, compressed with zstd. Apart from the blocks, which are rewritten with each result.
CREATE TABLE job_payloads (
    job bigint NOT NULL,
    first bigint NOT NULL,
    lines bytea NOT NULL,
    PRIMARY KEY (job, first)
);
ALTER TABLE job_payloads ALTER COLUMN lines SET STORAGE EXTERNAL;

CREATE TABLE job_results (
    -- Taken while the row of the job is locked: so a job's results become visible in this order.
    seq bigint GENERATED ALWAYS AS IDENTITY,
    job bigint NOT NULL,
    item bigint NOT NULL,
    line bytea NOT NULL,
    -- The error code, if the item failed.
    failure text,
    retryable boolean NOT NULL,
    PRIMARY KEY (job, item)
);

CREATE UNIQUE INDEX job_results_by_seq ON job_results (job, seq);
CREATE INDEX job_failures_by_seq ON job_results (job, seq) WHERE failure IS NOT NULL;
CREATE INDEX job_failures_by_item ON job_results (job, item) WHERE failure IS NOT NULL;

CREATE TABLE job_failures (
    job bigint NOT NULL,
    code text NOT NULL,
    count bigint NOT NULL,
    example bigint NOT NULL,
    PRIMARY KEY (job, code)
);
