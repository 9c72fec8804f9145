-- An operator's own state (docs/spec/06-network.md, "Operator's order of work"). Statements are kept as the JSON text
-- that was signed: one version of each, for ever. Columns that may hold a prompt or an answer are erased after the
-- configured time; they are marked (erased).

CREATE TABLE node_state (
    only_row           boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    node_id            text    NOT NULL,
    dispatcher         text    NOT NULL,
    owner              bytea   NOT NULL,           -- the process that runs it: an earlier one notices at its next write
    clock_state        text,                       -- null until the dispatcher has told the node number
    network            text,
    dispatcher_vrf_key bytea,
    network_file       text
);

CREATE TABLE snapshot (
    root      bytea  PRIMARY KEY,
    epoch     bigint NOT NULL,
    max_range bigint NOT NULL,
    entry     text,                                -- this operator's own; null where it is not in the snapshot
    stored_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE draw (
    job_ref    bytea   NOT NULL,
    attempt    integer NOT NULL,
    call_hash  bytea   NOT NULL,
    draw_call  text    NOT NULL,
    claim      text    NOT NULL,
    claim_hash bytea   NOT NULL,
    answer     text    NOT NULL CHECK (answer IN ('claim', 'decline')),
    reason     text    NOT NULL,
    sent       boolean NOT NULL DEFAULT false,     -- the dispatcher has acknowledged the claim
    stored_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_ref, attempt)
);
CREATE INDEX draw_unsent ON draw (stored_at) WHERE NOT sent;

CREATE TABLE assignment (
    job_ref           bytea   NOT NULL,
    attempt           integer NOT NULL,
    state             text    NOT NULL
                      CHECK (state IN ('stored', 'executed', 'committed', 'revealing', 'done', 'failed', 'cancelled')),
    job_id            text    NOT NULL,
    role              text    NOT NULL CHECK (role IN ('executor', 'checker', 'blind')),
    seat              integer NOT NULL,
    model_id          bytea   NOT NULL,
    request           bytea,                       -- (erased)
    nonce             bytea   NOT NULL,
    sampling_seed     text    NOT NULL,
    seed_source       text    NOT NULL CHECK (seed_source IN ('request', 'draw')),
    deadline          bigint  NOT NULL,
    draw_record       text    NOT NULL,
    draw_record_hash  bytea   NOT NULL,
    stream            text,                        -- (erased) what a checker replays
    queue_entry       text,                        -- where it is on the Redis stream
    worker            text,
    started_at        bigint,
    finished_at       bigint,
    chunks_held       integer NOT NULL DEFAULT 0,  -- the dispatcher holds chunks 0 to chunks_held - 1
    result            text,                        -- (erased) the worker's answer
    commit_salt       bytea,
    commit_statement  text,
    commit_hash       bytea,
    commit_ack        text,
    commit_set        text,
    commit_set_hash   bytea,
    receipt           text,
    receipt_signature text,
    failure_code      text,
    failure_message   text,
    failure_sent      boolean NOT NULL DEFAULT false,
    erased            boolean NOT NULL DEFAULT false,
    stored_at         timestamptz NOT NULL DEFAULT now(),
    changed_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_ref, attempt),
    FOREIGN KEY (job_ref, attempt) REFERENCES draw (job_ref, attempt),
    CHECK (state NOT IN ('executed', 'committed', 'revealing') OR (commit_statement IS NOT NULL AND result IS NOT NULL)),
    CHECK (state NOT IN ('revealing', 'done') OR (commit_set IS NOT NULL AND receipt IS NOT NULL)),
    CHECK (state <> 'failed' OR failure_code IS NOT NULL)
);
CREATE INDEX assignment_open ON assignment (state) WHERE state NOT IN ('done', 'cancelled');
CREATE INDEX assignment_recent ON assignment (stored_at DESC);

CREATE TABLE chunk (
    job_ref   bytea   NOT NULL,
    attempt   integer NOT NULL,
    index     integer NOT NULL,
    chunk     text    NOT NULL,                    -- (erased, with its row)
    hash      bytea   NOT NULL,
    PRIMARY KEY (job_ref, attempt, index),
    FOREIGN KEY (job_ref, attempt) REFERENCES assignment (job_ref, attempt)
);

CREATE TABLE evidence (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     text    NOT NULL,
    job_ref  bytea,
    attempt  integer,
    held     text    NOT NULL,
    received text    NOT NULL,
    digest   bytea   NOT NULL UNIQUE,              -- the same contradiction is kept once
    found_at timestamptz NOT NULL DEFAULT now()
);
