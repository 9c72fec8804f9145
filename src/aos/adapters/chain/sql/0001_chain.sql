-- Of one account on one chain: what it wants to have done there. Written before anything is sent.
CREATE TABLE chain_transaction (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id   bigint      NOT NULL,
    sender     text        NOT NULL,
    -- What it is for, in words of the caller; the same is not done twice.
    purpose    text        NOT NULL,
    target     text,
    data       bytea       NOT NULL,
    value      numeric(39) NOT NULL CHECK (value >= 0),
    state      text        NOT NULL DEFAULT 'wanted' CHECK (state IN ('wanted', 'sent', 'done', 'failed')),
    nonce      bigint,
    -- The final transaction, or the last one sent.
    hash       bytea       CHECK (length(hash) = 32),
    block      bigint,
    created    text,
    error      text        NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (chain_id, sender, purpose),
    CHECK (state <> 'sent' OR (nonce IS NOT NULL AND hash IS NOT NULL))
);
CREATE UNIQUE INDEX chain_transaction_nonce ON chain_transaction (chain_id, sender, nonce) WHERE state = 'sent';
CREATE INDEX chain_transaction_open ON chain_transaction (chain_id, sender, id) WHERE state IN ('wanted', 'sent');

-- Everything that was ever signed for it: the same nonce with rising fees. Any of them may be mined.
CREATE TABLE chain_attempt (
    hash     bytea       PRIMARY KEY CHECK (length(hash) = 32),
    id       bigint      NOT NULL REFERENCES chain_transaction,
    raw      bytea       NOT NULL,
    nonce    bigint      NOT NULL,
    gas      bigint      NOT NULL,
    max_fee  numeric(39) NOT NULL,
    tip      numeric(39) NOT NULL,
    made_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX chain_attempt_id ON chain_attempt (id);

-- The newest final block that a node has shown: none may ever contradict it.
CREATE TABLE chain_final (
    chain_id bigint PRIMARY KEY,
    number   bigint NOT NULL,
    hash     bytea  NOT NULL CHECK (length(hash) = 32)
);
