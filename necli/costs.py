"""What a stack costs an hour, roughly: from a table of list prices that says how old it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from necli.resources import resource_folder

_NEAREST = "us-east-1"


@dataclass(frozen=True)
class Cost:
    what: str
    per_hour: float | None
    """None where the table has no price."""


@dataclass(frozen=True)
class Estimate:
    costs: Sequence[Cost]
    currency: str
    region: str
    """Whose prices these are; the table doesn't have every region."""
    as_of: str

    @property
    def per_hour(self) -> float:
        return sum(cost.per_hour or 0 for cost in self.costs)

    @property
    def complete(self) -> bool:
        return all(cost.per_hour is not None for cost in self.costs)

    def to_json(self) -> dict[str, Any]:
        return {
            "per_hour": round(self.per_hour, 4),
            "complete": self.complete,
            "currency": self.currency,
            "prices_of": self.region,
            "as_of": self.as_of,
            "costs": [{"what": cost.what, "per_hour": cost.per_hour} for cost in self.costs],
        }


@dataclass(frozen=True)
class PriceTable:
    """List prices by region, as `cloudformation/prices.json` has them."""

    document: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path | None = None) -> PriceTable:
        path = path or resource_folder("cloudformation") / "prices.json"
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def estimate(
        self, region: str, *, instance_type: str, volume_gib: int, endpoints: int, nat: bool, keys: int
    ) -> Estimate:
        """What a stack of these parts costs; in a region without prices, at those of us-east-1."""
        region = region if region in self.document["regions"] else _NEAREST
        prices = self.document["regions"][region]
        month = self.document["hours_a_month"]
        costs = [
            Cost(f"instance {instance_type}", prices["instance_hour"].get(instance_type)),
            Cost(f"volume, {volume_gib} GiB gp3", volume_gib * prices["gp3_gib_month"] / month),
            Cost(f"{endpoints} interface endpoints", endpoints * prices["interface_endpoint_hour"]),
            Cost(f"{keys} KMS keys", keys * prices["kms_key_month"] / month),
        ]
        if nat:
            hour = prices["nat_gateway_hour"] + prices["public_ipv4_hour"]
            costs.insert(1, Cost("NAT gateway and its address", hour))
        return Estimate(costs, self.document["currency"], region, self.document["as_of"])
