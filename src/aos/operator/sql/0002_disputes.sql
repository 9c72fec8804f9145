-- Disputes (docs/spec/13-dispute.md): what this operator signed, stored before it is sent. One move a turn, one unit root a
-- place, for ever: a second, different one would convict it.

CREATE TABLE dispute_move (
    game      bytea       NOT NULL,
    turn      integer     NOT NULL,
    claim     bytea       NOT NULL,
    move      text        NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (game, turn)
);

CREATE TABLE dispute_unit_root (
    claim     bytea  NOT NULL,
    position  bigint NOT NULL,
    unit      bigint NOT NULL,
    unit_root bytea  NOT NULL,
    PRIMARY KEY (claim, position, unit)
);
