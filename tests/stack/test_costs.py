"""The estimate: whose prices it takes, what it adds up, and what it can't know."""

from __future__ import annotations

import pytest

from necli.costs import PriceTable

PRICES = {
    "as_of": "2026-01",
    "currency": "USD",
    "hours_a_month": 100,
    "regions": {
        "us-east-1": {
            "nat_gateway_hour": 0.05,
            "public_ipv4_hour": 0.01,
            "interface_endpoint_hour": 0.02,
            "gp3_gib_month": 0.1,
            "kms_key_month": 1.0,
            "instance_hour": {"m6i.xlarge": 0.2},
        }
    },
}
PARTS = {"instance_type": "m6i.xlarge", "volume_gib": 50, "endpoints": 5, "nat": True, "keys": 2}


def test_the_parts_add_up() -> None:
    estimate = PriceTable(PRICES).estimate("us-east-1", **PARTS)  # type: ignore[arg-type]
    assert [round(cost.per_hour or 0, 3) for cost in estimate.costs] == [0.2, 0.06, 0.05, 0.1, 0.02]
    assert estimate.per_hour == pytest.approx(0.43)
    assert estimate.complete


def test_without_nat_it_costs_less() -> None:
    estimate = PriceTable(PRICES).estimate("us-east-1", **{**PARTS, "nat": False})  # type: ignore[arg-type]
    assert estimate.per_hour == pytest.approx(0.37)


def test_a_type_without_a_price_is_told_and_not_guessed() -> None:
    parts = {**PARTS, "instance_type": "x9.large"}
    estimate = PriceTable(PRICES).estimate("us-east-1", **parts)  # type: ignore[arg-type]
    assert estimate.costs[0].per_hour is None
    assert not estimate.complete


def test_a_region_without_prices_gets_those_of_another_and_says_whose() -> None:
    estimate = PriceTable(PRICES).estimate("ap-south-1", **PARTS)  # type: ignore[arg-type]
    assert estimate.to_json()["prices_of"] == "us-east-1"
    assert estimate.to_json()["as_of"] == "2026-01"


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_the_shipped_table_knows_the_default_instance_type(region: str) -> None:
    estimate = PriceTable.load().estimate(region, **PARTS)  # type: ignore[arg-type]
    assert estimate.complete
    assert estimate.region == region
    assert 0.2 < estimate.per_hour < 1
