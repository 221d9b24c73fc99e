"""A template as a value: read as CloudFormation reads it, with its functions filled in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from necli.template_check import Template

TEXT = """
Parameters:
  Size: {Type: Number, Default: 64}
  OwnerArn: {Type: String}
  Other: {Type: String}
Conditions:
  IsBig: !Equals [!Ref Size, 64]
Resources:
  Role: {Type: "AWS::IAM::Role"}
  Key: {Type: "AWS::KMS::Key"}
  First: {Type: "AWS::EC2::Route", DependsOn: [Role]}
  Second:
    Type: AWS::EC2::Instance
    DependsOn: First
    Metadata: {After: !If [IsBig, !Ref Key, !Ref "AWS::NoValue"]}
    Properties:
      Version: 2012-10-17
"""


@pytest.fixture
def template() -> Template:
    return Template.parse(TEXT)


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ({"Ref": "Size"}, 64),
        ({"Ref": "AWS::AccountId"}, "111122223333"),
        ({"Ref": "Role"}, "Role"),
        ({"Ref": "OwnerArn"}, "arn:aws:iam::111122223333:role/OwnerArn"),
        ({"Ref": "Other"}, "(Other)"),
        ({"Fn::GetAtt": ["Role", "Arn"]}, "arn:aws:iam::111122223333:role/Role"),
        ({"Fn::GetAtt": "Key.Arn"}, "arn:aws:kms:eu-central-1:111122223333:key/Key"),
        ({"Fn::GetAtt": ["First", "Nested.Name"]}, "First.Nested.Name"),
        ({"Fn::Sub": "${AWS::StackName}-${Size} ${!Size} ${Role.Arn}"},
         "stack-64 ${Size} arn:aws:iam::111122223333:role/Role"),
        ({"Fn::Sub": ["${a}-b", {"a": {"Ref": "Size"}}]}, "64-b"),
        ({"Fn::Join": ["-", ["a", {"Ref": "Size"}]]}, "a-64"),
        ({"Fn::If": ["IsBig", {"Ref": "AWS::NoValue"}, "small"]}, "small"),
        ({"Fn::If": ["IsBig", "big", "small"]}, "big"),
        ({"Fn::Base64": {"Fn::Sub": "x${Size}"}}, "x64"),
        ({"Fn::ImportValue": "x"}, "(Fn::ImportValue)"),
        ({"a": {"Ref": "AWS::NoValue"}, "b": [{"Ref": "AWS::NoValue"}, 1]}, {"b": [1]}),
    ],
)  # fmt: skip
def test_a_function_is_filled_in(template: Template, written: Any, filled: Any) -> None:
    assert template.fill(written) == filled


def test_short_and_long_forms_are_the_same() -> None:
    short = (
        "Resources: {A: {Type: X, Properties: {P: !GetAtt B.Arn, Q: !Sub [a, {b: !Ref C}], R: !Cidr {a: 1}}}}"
    )
    properties = Template.parse(short).document["Resources"]["A"]["Properties"]
    assert properties == {
        "P": {"Fn::GetAtt": ["B", "Arn"]},
        "Q": {"Fn::Sub": ["a", {"b": {"Ref": "C"}}]},
        "R": {"Fn::Cidr": {"a": 1}},
    }


def test_a_date_stays_the_text_that_a_policy_version_is(template: Template) -> None:
    assert template.resources["Second"].properties == {"Version": "2012-10-17"}


def test_what_must_exist_before_is_found_at_any_distance(template: Template) -> None:
    assert template.needs("Second") == {"First", "Role", "Key"}
    assert template.references("Second") == {"First", "Key", "AWS::NoValue"}


def test_a_circle_of_references_ends() -> None:
    circle = {"A": {"Type": "X", "DependsOn": "B"}, "B": {"Type": "X", "DependsOn": "A"}}
    assert Template.from_document({"Resources": circle}).needs("A") == {"A", "B"}


def test_the_text_stays_as_written_unless_a_resource_is_exchanged(template: Template) -> None:
    same = {"Type": "AWS::KMS::Key"}
    assert template.with_resource("Key", same).text == TEXT
    changed = template.with_resource("Key", {**same, "DeletionPolicy": "Retain"})
    assert json.loads(changed.text)["Resources"]["Key"] == {**same, "DeletionPolicy": "Retain"}
    assert json.loads(changed.text)["Conditions"] == {"IsBig": {"Fn::Equals": [{"Ref": "Size"}, 64]}}
