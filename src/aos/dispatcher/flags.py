"""What a flagged submission sets off (docs/spec/06-network.md, "Flags")."""

from typing import Any

from aos.dispatcher.submission import NewJob

BEFORE_JOBS = 10


async def rerun_earlier(
    db: Any, new: NewJob, job_id: str, expires_at: int, clock: str
) -> tuple[list[int], str]:
    """Send the user's earlier jobs out again as ``before``; mark the next one ``after``."""
    await db.execute(
        """INSERT INTO flag (project_id, user_id, tag) VALUES ($1, $2, $3)
           ON CONFLICT (project_id, user_id) DO UPDATE SET tag = excluded.tag""",
        new.project,
        new.user,
        new.tag,
    )
    earlier = await db.fetch(
        """SELECT j.job_id, r.min_operators FROM job j JOIN run r USING (job_id)
           WHERE j.project_id = $1 AND j.user_id = $2 AND j.job_id <> $3 AND r.position <> 'before'
           ORDER BY j.seq DESC LIMIT $4""",
        new.project,
        new.user,
        job_id,
        BEFORE_JOBS,
    )
    # One at a time in a project: two that count at once would both find the quota unused.
    quota = await db.fetchval(
        "SELECT rerun_quota FROM project WHERE project_id = $1 FOR NO KEY UPDATE", new.project
    )
    used = await db.fetchval(
        """SELECT count(*) FROM run r JOIN job j USING (job_id)
           WHERE j.project_id = $1 AND r.position = 'before' AND r.created_at > now() - interval '1 hour'""",
        new.project,
    )
    runs: list[int] = []
    for row in earlier:
        if used + len(runs) >= quota:
            return runs, "the project's quota of re-runs is used up for this hour"
        run_id = await _add_run(db, row["job_id"], new.tag, "before", row["min_operators"], expires_at, clock)
        if run_id is not None:
            runs.append(run_id)
    return runs, ""


async def _add_run(
    db: Any, job_id: str, tag: str, position: str, seats: int, expires_at: int, clock: str
) -> Any:
    return await db.fetchval(
        """INSERT INTO run (job_id, tag, position, state, min_operators, not_before, give_up_at, deadline,
                            expires_at, clock)
           VALUES ($1, $2, $3, 'created', $4, 0, $5, 0, $5, $6)
           ON CONFLICT (job_id, tag, position) DO NOTHING RETURNING run_id""",
        job_id,
        tag,
        position,
        seats,
        expires_at,
        clock,
    )
