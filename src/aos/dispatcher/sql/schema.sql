-- The whole schema as the migrations make it; a test compares the two.
-- Times are Unix milliseconds where a signed statement or a deadline needs them, timestamptz where people read them.
-- Statements are kept as the canonical JSON that was signed. 32-byte values are bytea. What a model wrote is bytea (UTF-8),
-- because it may hold U+0000, which text may not.

CREATE TABLE network (
    only_row      boolean  PRIMARY KEY DEFAULT true CHECK (only_row),
    network       text     NOT NULL,
    address       text     NOT NULL,
    vrf_key       bytea    NOT NULL,
    genesis_ms    bigint   NOT NULL,
    epoch_ms      bigint   NOT NULL CHECK (epoch_ms > 0),
    max_range     bigint   NOT NULL CHECK (max_range > 0),
    range_width   bigint   NOT NULL CHECK (range_width > 0),
    beacon_anchor bytea    NOT NULL,
    beacon_length integer  NOT NULL
);

CREATE TABLE clock_state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    state    text    NOT NULL
);

-- A name is given once and never re-pointed.
CREATE TABLE model (
    name     text  PRIMARY KEY,
    model_id bytea NOT NULL CHECK (length(model_id) = 32),
    -- The canonical JSON that model_id is the hash of, where it was given.
    manifest bytea
);

CREATE TABLE project (
    project_id   text        PRIMARY KEY,
    name         text        NOT NULL,
    rerun_quota  integer     NOT NULL CHECK (rerun_quota >= 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- What it may have under way at once; null: what the configuration says.
    most_requests integer    CHECK (most_requests > 0),
    most_tokens   bigint     CHECK (most_tokens > 0)
);

-- A project has any number of tokens, each for what it may do.
CREATE TABLE token (
    token_hash bytea       PRIMARY KEY CHECK (length(token_hash) = 32),
    project_id text        NOT NULL REFERENCES project,
    scopes     text[]      NOT NULL CHECK (scopes <@ ARRAY['submit', 'read', 'flag', 'challenge'] AND cardinality(scopes) > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE operator (
    node_id       text        PRIMARY KEY,
    node          integer     UNIQUE CHECK (node >= 2),
    vrf_key       bytea       NOT NULL UNIQUE,
    range_start   bigint,
    range_end     bigint      CHECK (range_end > range_start),
    stake         bigint      NOT NULL DEFAULT 0,
    job_types     text[]      NOT NULL,
    models        bytea[]     NOT NULL,
    since_epoch   bigint      NOT NULL,
    admitted      boolean     NOT NULL,
    registration  text        NOT NULL,
    time_ms       bigint      NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT operator_admitted_whole
        CHECK (NOT admitted OR (node IS NOT NULL AND range_start IS NOT NULL AND range_end IS NOT NULL))
);

CREATE TABLE snapshot (
    epoch   bigint PRIMARY KEY,
    root    bytea  NOT NULL,
    signed  text   NOT NULL,
    entries text   NOT NULL
);
CREATE INDEX snapshot_root ON snapshot (root);

CREATE TABLE job (
    job_id           text        PRIMARY KEY,
    seq              bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    job_ref          bytea       NOT NULL UNIQUE,
    project_id       text        NOT NULL REFERENCES project,
    user_id          text        NOT NULL,
    job_type         text        NOT NULL,
    model            text        NOT NULL,
    model_id         bytea       NOT NULL,
    request          bytea       NOT NULL,
    request_hash     bytea       NOT NULL,
    nonce            bytea       NOT NULL,
    acceptance       text        NOT NULL,
    blind            boolean     NOT NULL,
    private          boolean     NOT NULL,
    warning          text        NOT NULL DEFAULT '',
    idempotency_key  text,
    idempotency_hash bytea,
    events           bigint      NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL,
    max_tokens       integer     NOT NULL,
    UNIQUE (project_id, idempotency_key)
);
CREATE INDEX job_user ON job (project_id, user_id, seq DESC);
CREATE INDEX job_created ON job (created_at);

-- One result set for each (job, tag, position).
CREATE TABLE run (
    run_id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id        text        NOT NULL REFERENCES job,
    tag           text        NOT NULL,
    position      text        NOT NULL,
    state         text        NOT NULL,
    attempt       integer     NOT NULL DEFAULT 0,
    executions    integer     NOT NULL DEFAULT 0,
    min_operators integer     NOT NULL,
    not_before    bigint      NOT NULL,
    give_up_at    bigint      NOT NULL,
    deadline      bigint      NOT NULL,
    expires_at    bigint      NOT NULL,
    error_code    text        NOT NULL DEFAULT '',
    error_message text        NOT NULL DEFAULT '',
    clock         text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (job_id, tag, position)
);
CREATE INDEX run_open ON run (run_id)
    WHERE state IN ('created', 'drawing', 'drawn', 'running', 'checking', 'committed');
CREATE INDEX run_first ON run (state, run_id DESC) WHERE position <> 'before';
CREATE INDEX run_reruns ON run (created_at) WHERE position = 'before';

-- Attempts are numbered within the job, whatever run they belong to: a draw is about (job, attempt).
CREATE TABLE attempt (
    job_id          text    NOT NULL REFERENCES job,
    attempt         integer NOT NULL,
    run_id          bigint  NOT NULL REFERENCES run,
    snapshot_epoch  bigint  NOT NULL REFERENCES snapshot,
    tag_salt        bytea   NOT NULL,
    draw_call       text    NOT NULL,
    draw_record     text,
    entries         text,
    commit_set      text,
    failure         text    NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, attempt)
);
CREATE INDEX attempt_run ON attempt (run_id);

CREATE TABLE claim (
    job_id  text    NOT NULL,
    attempt integer NOT NULL,
    node_id text    NOT NULL,
    claim   text    NOT NULL,
    beta    bytea   NOT NULL,
    PRIMARY KEY (job_id, attempt, node_id),
    FOREIGN KEY (job_id, attempt) REFERENCES attempt
);

CREATE TABLE seat (
    job_id   text    NOT NULL,
    attempt  integer NOT NULL,
    node_id  text    NOT NULL,
    seat     integer NOT NULL,
    role     text    NOT NULL,
    standing text    NOT NULL DEFAULT 'seated'
             CHECK (standing IN ('seated', 'failed', 'committed', 'revealed', 'withheld', 'broken')),
    commit   text,
    ack      text,
    evidence text    NOT NULL DEFAULT '',
    committed_at timestamptz,
    PRIMARY KEY (job_id, attempt, node_id),
    UNIQUE (job_id, attempt, seat),
    FOREIGN KEY (job_id, attempt) REFERENCES attempt
);

CREATE TABLE chunk (
    job_id  text    NOT NULL,
    attempt integer NOT NULL,
    index   integer NOT NULL,
    chunk   text    NOT NULL,
    hash    bytea   NOT NULL,
    PRIMARY KEY (job_id, attempt, index),
    FOREIGN KEY (job_id, attempt) REFERENCES attempt
);

CREATE TABLE receipt (
    receipt_id  text        PRIMARY KEY,
    job_id      text        NOT NULL,
    attempt     integer     NOT NULL,
    node_id     text        NOT NULL,
    core        text        NOT NULL,
    commit_salt bytea       NOT NULL,
    answer      bytea       NOT NULL,
    tokens      bytea       NOT NULL,
    evidence    text,
    countersign text,
    received_at timestamptz NOT NULL,
    UNIQUE (job_id, attempt, node_id),
    FOREIGN KEY (job_id, attempt, node_id) REFERENCES seat
);
CREATE INDEX receipt_operator ON receipt (node_id, received_at DESC);
CREATE INDEX receipt_evidence ON receipt (received_at DESC) WHERE evidence IS NOT NULL;

CREATE TABLE result (
    job_id     text        NOT NULL,
    tag        text        NOT NULL,
    position   text        NOT NULL,
    node_id    text        NOT NULL,
    seat       integer     NOT NULL,
    attempt    integer     NOT NULL,
    receipt_id text        NOT NULL UNIQUE REFERENCES receipt,
    outcome    text        NOT NULL,
    clock      text        NOT NULL,
    created_at timestamptz NOT NULL,
    project_id text        NOT NULL,
    user_id    text        NOT NULL,
    seq        bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (job_id, tag, position, node_id),
    UNIQUE (job_id, tag, position, seat),
    FOREIGN KEY (job_id, tag, position) REFERENCES run (job_id, tag, position)
);
CREATE INDEX result_user ON result (project_id, user_id, seq DESC);

-- Users whose next job runs with position 'after'.
CREATE TABLE flag (
    project_id text NOT NULL REFERENCES project,
    user_id    text NOT NULL,
    tag        text NOT NULL,
    PRIMARY KEY (project_id, user_id)
);

-- What GET /v1/aos/jobs/{id}/events replays; numbered within the job, in commit order.
CREATE TABLE event (
    job_id text   NOT NULL REFERENCES job,
    seq    bigint NOT NULL,
    kind   text   NOT NULL,
    data   text   NOT NULL,
    PRIMARY KEY (job_id, seq)
);

-- Signed statements that contradict an earlier one of the same operator, or do not open its commitment; the first of each kind.
CREATE TABLE evidence (
    job_id      text        NOT NULL,
    attempt     integer     NOT NULL,
    node_id     text        NOT NULL,
    code        text        NOT NULL,
    statement   text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, attempt, node_id, code),
    FOREIGN KEY (job_id, attempt) REFERENCES attempt
);

-- Disputes (docs/spec/13-dispute.md). A claim is a receipt; its name is receipt_id (base64url) or its 32 bytes.

-- Of each model that was ever disputed: what a referee needs beside openings. Checked against model_id before it is stored.
CREATE TABLE dispute_model (
    model_id  bytea PRIMARY KEY,
    manifest  text  NOT NULL,
    tokenizer bytea NOT NULL
);

-- A claim whose leaves somebody entitled wants, and what its claimant served: data, no move.
CREATE TABLE dispute_claim (
    receipt_id    text   PRIMARY KEY REFERENCES receipt,
    wanted_at     bigint NOT NULL,
    closes_at     bigint NOT NULL,
    header        bytea,
    units         bytea[],
    prompt_tokens bytea,
    served_at     bigint,
    CHECK ((served_at IS NULL) = (header IS NULL) AND (served_at IS NULL) = (units IS NULL)
           AND (served_at IS NULL) = (prompt_tokens IS NULL))
);

CREATE TABLE dispute_game (
    game       bytea   PRIMARY KEY,
    seq        bigint  GENERATED ALWAYS AS IDENTITY UNIQUE,
    receipt_id text    NOT NULL REFERENCES dispute_claim,
    claimant   text    NOT NULL,
    challenger text    NOT NULL,
    rules      text    NOT NULL,
    opened_at  bigint  NOT NULL,
    closes_at  bigint  NOT NULL,
    mover      text    NOT NULL DEFAULT '',  -- the address that is to move; empty where the game is over
    deadline   bigint,
    state      text    NOT NULL CHECK (state IN ('open', 'proven', 'defaulted')),
    against    text    NOT NULL DEFAULT '' CHECK (against IN ('', 'claimant', 'challenger')),
    code       text    NOT NULL DEFAULT '',
    settled    boolean NOT NULL DEFAULT false -- nothing more can come of it: the bond's end is in the ledger
);
CREATE INDEX dispute_game_claim ON dispute_game (receipt_id);
CREATE INDEX dispute_game_unsettled ON dispute_game (mover) WHERE NOT settled;

-- The transcript: of one party one move a turn. What is not the first of its turn is evidence, not a move.
CREATE TABLE dispute_move (
    game   bytea   NOT NULL REFERENCES dispute_game,
    turn   integer NOT NULL,
    author text    NOT NULL,
    at     bigint  NOT NULL,
    hash   bytea   NOT NULL,
    move   text    NOT NULL,
    PRIMARY KEY (game, turn, author),
    UNIQUE (game, turn)
);

CREATE TABLE dispute_evidence (
    game      bytea NOT NULL REFERENCES dispute_game,
    at        bigint NOT NULL,
    hash      bytea NOT NULL,
    statement text  NOT NULL,
    PRIMARY KEY (game, hash)
);

-- The ledger of bonds: an entry is written once. Units of the local registry; no chain holds them.
CREATE TABLE bond_event (
    game  bytea  NOT NULL REFERENCES dispute_game,
    event text   NOT NULL CHECK (event IN ('locked', 'returned', 'forfeited', 'burnt')),
    party text   NOT NULL,
    units bigint NOT NULL CHECK (units >= 0),
    at    bigint NOT NULL,
    PRIMARY KEY (game, event)
);

-- Who is convicted, by which file: `aos referee` judges it again.
CREATE TABLE conviction (
    node_id    text   NOT NULL,
    game       bytea  NOT NULL REFERENCES dispute_game,
    job_ref    bytea  NOT NULL,
    code       text   NOT NULL,
    digest     bytea  NOT NULL,
    transcript bytea  NOT NULL,
    at         bigint NOT NULL,
    PRIMARY KEY (node_id, game)
);

-- Runs whose revealed roots differ, and what became of them.
CREATE TABLE dispute_run (
    run_id     bigint  PRIMARY KEY REFERENCES run,
    began_at   bigint  NOT NULL,
    closes_at  bigint  NOT NULL,
    ended      boolean NOT NULL DEFAULT false,
    resolution text
);
CREATE INDEX dispute_run_open ON dispute_run (run_id) WHERE NOT ended;
-- Who is told when a job is over. `event` is written in the transaction that ends the job.
CREATE TABLE webhook (
    job_id     text    PRIMARY KEY REFERENCES job,
    message_id text    NOT NULL UNIQUE,
    url        text    NOT NULL,
    state      text    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'due', 'delivered', 'given_up')),
    event      text,
    tries      integer NOT NULL DEFAULT 0,
    next_at    bigint  NOT NULL DEFAULT 0,
    CHECK (state = 'waiting' OR event IS NOT NULL)
);
CREATE INDEX webhook_due ON webhook (next_at) WHERE state = 'due';

-- Boot evidence of enclaves that was appraised and accepted, before anything of theirs was seated.
CREATE TABLE tee_boot (
    boot_hash   bytea       PRIMARY KEY CHECK (length(boot_hash) = 32),
    node_id     text        NOT NULL REFERENCES operator,
    model_id    bytea       NOT NULL,
    evidence    text        NOT NULL,
    not_after   bigint      NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now(),
    device      text        NOT NULL DEFAULT ''
);
CREATE INDEX tee_boot_node ON tee_boot (node_id, not_after);
CREATE INDEX tee_boot_device ON tee_boot (not_after, device);

-- Audits over the network (docs/spec/14-audit.md, "Over the network"). A row stays; the bundle's chunks, which show tokens, go
-- when closes_at has passed.
CREATE TABLE audit (
    audit      bytea  PRIMARY KEY,           -- the request's hash
    seq        bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    receipt_id text   NOT NULL REFERENCES receipt,
    request    text   NOT NULL,
    ordered    text   NOT NULL,
    asked_at   bigint NOT NULL,
    due_at     bigint NOT NULL,
    closes_at  bigint NOT NULL,
    opening    text,
    hashes     bytea[],                      -- of the chunks
    opened_at  bigint,                       -- all chunks are there and lead to the claim's state root
    refused    text   NOT NULL DEFAULT '',   -- why the last bundle was none
    report     text,
    erased     boolean NOT NULL DEFAULT false,
    CHECK ((opening IS NULL) = (hashes IS NULL)),
    CHECK (opened_at IS NULL OR opening IS NOT NULL),
    CHECK (report IS NULL OR opened_at IS NOT NULL)
);
CREATE INDEX audit_claim ON audit (receipt_id);
CREATE INDEX audit_waiting ON audit (closes_at) WHERE opened_at IS NULL;
CREATE INDEX audit_held ON audit (closes_at) WHERE NOT erased;

CREATE TABLE audit_chunk (
    audit bytea   NOT NULL REFERENCES audit,
    index integer NOT NULL,
    data  bytea   NOT NULL,
    PRIMARY KEY (audit, index)
);
