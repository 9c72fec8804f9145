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
    -- The salt of its leaf: the dispatcher knows it before the job is stored, because it promises the leaf.
    log_salt         bytea       CHECK (length(log_salt) = 32),
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

-- Claims at a court on a chain (docs/spec/16-chain-disputes.md), of receipts that came with one: checked before they were stored.
-- `claim` is the name that the court gives it, `expires` in Unix seconds, `signed` the canonical JSON of aos.chain_claim.
CREATE TABLE chain_claim (
    receipt_id text   PRIMARY KEY REFERENCES receipt,
    claim      bytea  NOT NULL UNIQUE CHECK (length(claim) = 32),
    expires    bigint NOT NULL,
    signed     text   NOT NULL
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

-- The transparency log (docs/spec/15-log.md). A fact and its leaf are one transaction: triggers write the leaf, so that no statement
-- that stores a fact can forget it, and none takes a further round trip.

-- `seq` is the order in which facts came; `leaf_index` their place in the tree, once the sequencer has put them there.
-- `digest` is the salted hash of the fact, `leaf` the hash of the entry over it. The salt goes to those who may read the fact.
CREATE TABLE log_leaf (
    seq        bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       smallint NOT NULL CHECK (kind BETWEEN 1 AND 14),
    subject    text     NOT NULL,
    salt       bytea    NOT NULL CHECK (length(salt) = 32),
    digest     bytea    NOT NULL CHECK (length(digest) = 32),
    leaf       bytea    NOT NULL CHECK (length(leaf) = 32),
    leaf_index bigint   UNIQUE CHECK (leaf_index >= 0),
    UNIQUE (kind, subject)
);
CREATE INDEX log_leaf_pending ON log_leaf (seq) WHERE leaf_index IS NULL;
CREATE INDEX log_leaf_hash ON log_leaf (leaf);

-- Tiles as c2sp.org/tlog-tiles has them: up to 256 hashes, one after the other; the last of a level may grow.
CREATE TABLE log_tile (
    level  smallint NOT NULL,
    index  bigint   NOT NULL,
    hashes bytea    NOT NULL CHECK (length(hashes) BETWEEN 32 AND 8192 AND length(hashes) % 32 = 0),
    PRIMARY KEY (level, index)
);

-- One row for each size that was signed; `note` is as the log signed it first, `cosigned` how many witnesses have.
CREATE TABLE log_checkpoint (
    size     bigint  PRIMARY KEY CHECK (size > 0),
    root     bytea   NOT NULL CHECK (length(root) = 32),
    time_s   bigint  NOT NULL,
    note     text    NOT NULL,
    cosigned integer NOT NULL DEFAULT 0
);
CREATE INDEX log_checkpoint_cosigned ON log_checkpoint (cosigned, size) WHERE cosigned > 0;

CREATE TABLE log_cosignature (
    size    bigint NOT NULL REFERENCES log_checkpoint,
    witness text   NOT NULL,
    line    text   NOT NULL,
    PRIMARY KEY (size, witness)
);

-- What is signed last: the tree of the greatest size, dated anew from time to time. The sequencer holds this row's lock.
CREATE TABLE log_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    log_key  text    NOT NULL,
    size     bigint  NOT NULL,
    time_s   bigint  NOT NULL,
    note     text    NOT NULL
);

CREATE FUNCTION log_fact(kind integer, subject text, fact text, salt bytea DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    -- Two random UUIDs are 244 random bits.
    salted bytea := coalesce(salt, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
    -- SHA-256("AOS/log-fact/v1\0" || salt || fact), under the entry "AOS/log-entry/v1\0" || kind || that hash, under a leaf's 0x00.
    hashed bytea := sha256('\x414f532f6c6f672d666163742f763100'::bytea || salted || convert_to(fact, 'UTF8'));
    entry  bytea := '\x414f532f6c6f672d656e7472792f763100'::bytea || substring(int2send(kind::smallint) FROM 2) || hashed;
BEGIN
    INSERT INTO log_leaf (kind, subject, salt, digest, leaf)
    VALUES (kind, subject, salted, hashed, sha256('\x00'::bytea || entry)) ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION log_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(1, NEW.job_id, NEW.acceptance, NEW.log_salt);
    RETURN NULL;
END $$;
CREATE TRIGGER log_job AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION log_job();

CREATE FUNCTION log_draw_call() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(2, NEW.job_id || '/' || NEW.attempt, NEW.draw_call);
    RETURN NULL;
END $$;
CREATE TRIGGER log_draw_call AFTER INSERT ON attempt FOR EACH ROW EXECUTE FUNCTION log_draw_call();

CREATE FUNCTION log_draw_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(3, NEW.job_id || '/' || NEW.attempt, NEW.draw_record);
    RETURN NULL;
END $$;
CREATE TRIGGER log_draw_record AFTER UPDATE OF draw_record ON attempt FOR EACH ROW
    WHEN (OLD.draw_record IS DISTINCT FROM NEW.draw_record) EXECUTE FUNCTION log_draw_record();

CREATE FUNCTION log_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(4, NEW.job_id || '/' || NEW.attempt || '/' || NEW.node_id, NEW.commit);
    RETURN NULL;
END $$;
CREATE TRIGGER log_commit AFTER UPDATE OF commit ON seat FOR EACH ROW
    WHEN (OLD.commit IS DISTINCT FROM NEW.commit) EXECUTE FUNCTION log_commit();

CREATE FUNCTION log_commit_set() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(5, NEW.job_id || '/' || NEW.attempt, NEW.commit_set);
    RETURN NULL;
END $$;
CREATE TRIGGER log_commit_set AFTER UPDATE OF commit_set ON attempt FOR EACH ROW
    WHEN (OLD.commit_set IS DISTINCT FROM NEW.commit_set) EXECUTE FUNCTION log_commit_set();

CREATE FUNCTION log_result() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(6, NEW.receipt_id, NEW.core);
    RETURN NULL;
END $$;
CREATE TRIGGER log_result AFTER INSERT ON receipt FOR EACH ROW EXECUTE FUNCTION log_result();

CREATE FUNCTION log_receipt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(7, NEW.receipt_id, NEW.countersign);
    RETURN NULL;
END $$;
CREATE TRIGGER log_receipt AFTER UPDATE OF countersign ON receipt FOR EACH ROW
    WHEN (OLD.countersign IS DISTINCT FROM NEW.countersign) EXECUTE FUNCTION log_receipt();

-- A verdict by the clock may be cured: each that a game came to is a fact of its own.
CREATE FUNCTION log_verdict() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    game text := rtrim(translate(encode(NEW.game, 'base64'), '+/', '-_'), '=');
BEGIN
    PERFORM log_fact(8, game || '/' || NEW.state || '/' || NEW.against || '/' || NEW.code,
        '{"against":"' || NEW.against || '","code":"' || NEW.code || '","game":"' || game || '","state":"' || NEW.state || '"}');
    RETURN NULL;
END $$;
CREATE TRIGGER log_verdict AFTER UPDATE OF state ON dispute_game FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION log_verdict();

CREATE FUNCTION log_resolution() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(9, NEW.run_id::text, NEW.resolution);
    RETURN NULL;
END $$;
CREATE TRIGGER log_resolution AFTER UPDATE OF resolution ON dispute_run FOR EACH ROW
    WHEN (NEW.resolution IS NOT NULL AND OLD.resolution IS DISTINCT FROM NEW.resolution) EXECUTE FUNCTION log_resolution();

CREATE FUNCTION log_evidence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(10, NEW.job_id || '/' || NEW.attempt || '/' || NEW.node_id || '/' || NEW.code, NEW.statement);
    RETURN NULL;
END $$;
CREATE TRIGGER log_evidence AFTER INSERT ON evidence FOR EACH ROW EXECUTE FUNCTION log_evidence();

CREATE FUNCTION log_snapshot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(11, NEW.epoch::text, NEW.signed);
    RETURN NULL;
END $$;
CREATE TRIGGER log_snapshot AFTER INSERT ON snapshot FOR EACH ROW EXECUTE FUNCTION log_snapshot();

CREATE FUNCTION log_boot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(12, encode(NEW.boot_hash, 'hex'), NEW.evidence);
    RETURN NULL;
END $$;
CREATE TRIGGER log_boot AFTER INSERT ON tee_boot FOR EACH ROW EXECUTE FUNCTION log_boot();

CREATE FUNCTION log_audit_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(13, encode(NEW.audit, 'hex'), NEW.ordered);
    RETURN NULL;
END $$;
CREATE TRIGGER log_audit_order AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION log_audit_order();

CREATE FUNCTION log_audit_report() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(14, encode(NEW.audit, 'hex'), NEW.report);
    RETURN NULL;
END $$;
CREATE TRIGGER log_audit_report AFTER UPDATE OF report ON audit FOR EACH ROW
    WHEN (NEW.report IS NOT NULL AND OLD.report IS DISTINCT FROM NEW.report) EXECUTE FUNCTION log_audit_report();
