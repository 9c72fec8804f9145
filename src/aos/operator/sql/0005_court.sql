-- The court on a chain (docs/spec/16-chain-disputes.md): what this operator signed for it, and the games about that.

-- One claim of each receipt and court. `claim` is the name that a court gives it, `signed` the canonical JSON of aos.chain_claim.
-- Until `expires` anybody may challenge it; so long, and while a game runs, the run that it is about is kept. Unix seconds.
CREATE TABLE chain_claim (
    chain_id  bigint  NOT NULL,
    court     text    NOT NULL,
    claim     bytea   NOT NULL CHECK (length(claim) = 32),
    job_ref   bytea   NOT NULL,
    attempt   integer NOT NULL,
    signed_at bigint  NOT NULL,
    expires   bigint  NOT NULL,
    signed    text    NOT NULL,
    PRIMARY KEY (chain_id, court, claim),
    UNIQUE (job_ref, attempt, chain_id, court),
    FOREIGN KEY (job_ref, attempt) REFERENCES assignment
);

-- Games that were opened about these claims. `block` is where it was opened, `over` how it ended (empty while it runs). `asked` is a
-- digest of the game as it stood when the last move was made, `purpose` that move's in the journal, `problem` why none can be made.
CREATE TABLE court_game (
    chain_id bigint NOT NULL,
    court    text   NOT NULL,
    game     bytea  NOT NULL CHECK (length(game) = 32),
    claim    bytea  NOT NULL,
    block    bigint NOT NULL,
    over     text   NOT NULL DEFAULT '' CHECK (over IN ('', 'refuted', 'convicted', 'settled', 'gone')),
    asked    bytea,
    purpose  text   NOT NULL DEFAULT '',
    problem  text   NOT NULL DEFAULT '',
    PRIMARY KEY (chain_id, court, game),
    FOREIGN KEY (chain_id, court, claim) REFERENCES chain_claim
);
CREATE INDEX court_game_claim ON court_game (chain_id, court, claim);

-- How far a court's events were read: up to this block, which was final, and its time (Unix seconds).
CREATE TABLE court_read (
    chain_id bigint NOT NULL,
    court    text   NOT NULL,
    block    bigint NOT NULL,
    time_s   bigint NOT NULL,
    PRIMARY KEY (chain_id, court)
);
