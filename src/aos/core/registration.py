"""An operator's request to be entered in a registry (docs/spec/04-sortition.md)."""

from collections.abc import Sequence

from aos.core.signing import address_of
from aos.core.statements import JobType, Registration, Signed, sign
from aos.core.vrf import ecvrf_public_key, prove_possession


def make_registration(
    *,
    signer_key: bytes,
    vrf_seed: bytes,
    network: str,
    dispatcher: str,
    job_type: JobType,
    models: Sequence[bytes],
    time_ms: int,
) -> Signed[Registration]:
    """The signed request of the operator with these keys; ``models`` are model ids."""
    address = address_of(signer_key)
    return sign(
        signer_key,
        Registration(
            network=network,
            dispatcher=dispatcher,
            node_id=address,
            vrf_key=ecvrf_public_key(vrf_seed),
            possession=prove_possession(vrf_seed, network=network, address=address),
            job_types=(job_type,),
            models=tuple(models),
            time=time_ms,
        ),
    )
