"""A rolling upgrade: the next image's measurement set beside the one in force, then without it."""

from __future__ import annotations

from collections.abc import Mapping

from necli.errors import InputError, NotReady
from necli.keypolicy.document import KeyPolicy
from necli.keypolicy.measurement_set import MeasurementSet
from necli.keypolicy.plan import PolicyChange, live_sets, plan_measurements


def stage(policy: KeyPolicy, added: MeasurementSet, *, parent_arn: str) -> PolicyChange:
    """Accept one more set, and all that were accepted before."""
    return plan_measurements(policy, [*live_sets(policy), added], parent_arn=parent_arn)


def retire(policy: KeyPolicy, image: str, *, parent_arn: str) -> PolicyChange:
    """Accept one set less: the one whose PCR0 begins with `image`.

    :raises InputError: no set begins so, or more than one, or it is the only one.
    """
    live = live_sets(policy)
    found = [one for one in live if one.image.startswith(image.lower())]
    if len(found) != 1:
        raise InputError(
            f"{len(found) or 'no'} measurement set{'s' * (len(found) != 1)} in force with a PCR0 that begins "
            f"with {image!r}",
            hint="necli policy show lists them",
        )
    if len(live) == 1:
        raise InputError(
            "that is the only measurement set in force: no enclave could decrypt without it",
            hint="run necli policy stage first, or necli policy update to replace it",
        )
    return plan_measurements(policy, [one for one in live if one != found[0]], parent_arn=parent_arn)


def retire_others(policy: KeyPolicy, attested: Mapping[str, str], *, parent_arn: str) -> PolicyChange:
    """Accept nothing but the sets of the image that attests these registers.

    :raises NotReady: it has none.
    """
    kept = [one for one in live_sets(policy) if one.accepts(attested)]
    if not kept:
        raise NotReady(
            "the built image is in no measurement set in force: without the others nothing could decrypt",
            hint="run necli policy stage first",
        )
    return plan_measurements(policy, kept, parent_arn=parent_arn)
