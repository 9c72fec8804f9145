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
