"""A CloudFormation template as a value: parsed once, and looked at with its functions filled in.

Filling in is for looking, not for deploying: a parameter is its default, what only a deployment knows is a
plausible value (`AWS::AccountId`, the ARN of a role), and of an `Fn::If` the first branch that isn't
`AWS::NoValue`. What can't be filled in is the function's name in parentheses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import yaml

from necli.errors import InputError

ACCOUNT = "111122223333"
_PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::StackId": f"arn:aws:cloudformation:eu-central-1:{ACCOUNT}:stack/stack/00000000",
    "AWS::StackName": "stack",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::NoValue": None,
}
_ARNS = {
    "AWS::IAM::Role": f"arn:aws:iam::{ACCOUNT}:role/{{}}",
    "AWS::IAM::User": f"arn:aws:iam::{ACCOUNT}:user/{{}}",
    "AWS::KMS::Key": f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/{{}}",
}
_VARIABLE = re.compile(r"\$\{(!?)([^}]+)\}")
_MAX_SIZE = 1 << 20  # twenty times what CloudFormation takes as a text, and its own limit for one in S3


class InvalidTemplate(InputError):
    """The text isn't a CloudFormation template."""


@dataclass(frozen=True)
class Resource:
    """One resource, with its properties filled in; `body` is as written, functions in their long form."""

    name: str
    type: str
    properties: Mapping[str, Any]
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    document: Mapping[str, Any]
    """As written, functions in their long form."""
    text: str
    """What CloudFormation is given."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises InvalidTemplate: not YAML or JSON, or no resources in it."""
        if len(text) > _MAX_SIZE:
            raise InvalidTemplate("the template is larger than CloudFormation takes")
        try:
            document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, ValueError, RecursionError) as exc:
            raise InvalidTemplate(f"the template isn't valid YAML or JSON: {exc}") from exc
        resources = document.get("Resources") if isinstance(document, dict) else None
        if not isinstance(resources, dict) or not resources:
            raise InvalidTemplate("the template has no Resources")
        for name, body in resources.items():
            if not isinstance(body, dict) or not isinstance(body.get("Type"), str):
                raise InvalidTemplate(f"the template's resource {name} has no Type")
        return cls(document, text)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        # CloudFormation takes 51,200 bytes: no spaces.
        return cls.parse(json.dumps(document, separators=(",", ":")))

    def with_resource(self, name: str, body: Mapping[str, Any]) -> Self:
        """The template with this resource instead of its own of that name; itself where they are equal."""
        if self.document["Resources"].get(name) == body:
            return self
        resources = {**self.document["Resources"], name: body}
        return self.from_document({**self.document, "Resources": resources})

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        declared = mapping(self.document.get("Parameters"))
        return {name: mapping(each) for name, each in declared.items()}

    @cached_property
    def resources(self) -> Mapping[str, Resource]:
        return {
            str(name): Resource(str(name), body["Type"], mapping(self.fill(body.get("Properties"))), body)
            for name, body in self.document["Resources"].items()
        }

    def of_type(self, *types: str) -> list[Resource]:
        return [resource for resource in self.resources.values() if resource.type in types]

    def fill(self, value: Any) -> Any:
        """`value` with its functions filled in."""
        if isinstance(value, list):
            return [item for item in map(self.fill, value) if item is not None]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (function, argument), *_ = value.items()
            if function == "Ref" or str(function).startswith("Fn::"):
                return self._call(function, argument)
        filled = {key: self.fill(item) for key, item in value.items()}
        return {key: item for key, item in filled.items() if item is not None}

    def references(self, name: str) -> frozenset[str]:
        """The parameters and resources that a resource refers to or depends on."""
        return frozenset(_mentioned(self.document["Resources"][name]))

    def needs(self, name: str) -> frozenset[str]:
        """The resources that must exist before this one, at any distance."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for other in self.references(waiting.pop()):
                if other in self.document["Resources"] and other not in found:
                    found.add(other)
                    waiting.append(other)
        return frozenset(found)

    def _call(self, function: str, argument: Any) -> Any:
        match function, _argument(function, argument):
            case "Ref", str():
                return self._ref(argument)
            case "Fn::GetAtt", [str() as name, str() as attribute]:
                return self._attribute(name, attribute)
            case "Fn::Sub", str():
                return self._substitute(argument, {})
            case "Fn::Sub", [str() as text, dict() as names]:
                return self._substitute(text, names)
            case "Fn::Join", [str() as between, list() as parts]:
                return between.join(str(part) for part in self.fill(parts))
            case "Fn::If", [_, first, second]:
                chosen = self.fill(first)
                return self.fill(second) if chosen is None else chosen
            case "Fn::Base64", _:
                return self.fill(argument)
        return f"({function})"

    def _ref(self, name: str) -> Any:
        if name in _PSEUDO:
            return _PSEUDO[name]
        if name in self.parameters:
            return self._parameter(name)
        return name

    def _parameter(self, name: str) -> Any:
        """Its default; else, for a name that promises an ARN, one that no other parameter has."""
        default = self.parameters[name].get("Default")
        if default in (None, "") and name.lower().endswith("arn"):
            return _ARNS["AWS::IAM::Role"].format(name)
        return f"({name})" if default is None else default

    def _attribute(self, name: str, attribute: str) -> str:
        body = mapping(self.document["Resources"].get(name))
        if attribute == "Arn" and body.get("Type") in _ARNS:
            return _ARNS[body["Type"]].format(name)
        return f"{name}.{attribute}"

    def _substitute(self, text: str, names: Mapping[str, Any]) -> str:
        def value(match: re.Match[str]) -> str:
            literal, name = match[1], match[2].strip()
            if literal:
                return f"${{{name}}}"
            if name in names:
                return str(self.fill(names[name]))
            resource, dot, attribute = name.partition(".")
            return str(self._attribute(resource, attribute) if dot else self._ref(name))

        return _VARIABLE.sub(value, text)


def mapping(value: Any) -> Mapping[str, Any]:
    """`value`, or nothing where a template has something else than an object."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, or nothing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _mentioned(value: Any) -> Iterator[str]:
    """What a resource's body refers to, by whatever function."""
    if isinstance(value, list):
        for item in value:
            yield from _mentioned(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("Ref", "DependsOn") and isinstance(item, str):
                yield item
            elif key == "DependsOn" and isinstance(item, list):
                yield from map(str, item)
            elif key == "Fn::GetAtt":
                yield str(_argument(key, item)[0])
            elif key == "Fn::Sub":
                text = item[0] if isinstance(item, list) else item
                yield from (match[2].partition(".")[0] for match in _VARIABLE.finditer(str(text)))
                yield from _mentioned(item)
            else:
                yield from _mentioned(item)


def _argument(function: str, written: Any) -> Any:
    """`Fn::GetAtt` takes a list, or one string with a dot."""
    return written.split(".", 1) if function == "Fn::GetAtt" and isinstance(written, str) else written


class _Loader(yaml.SafeLoader):
    """YAML as CloudFormation reads it: its tags, no aliases, and dates are strings."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        # CloudFormation takes none, and without them a small file can't grow into a large value.
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("YAML aliases aren't supported in a template")
        return super().compose_node(parent, index)

    def construct_function(self, suffix: str, node: yaml.Node) -> Any:
        name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
        if isinstance(node, yaml.ScalarNode):
            return {name: _argument(name, self.construct_scalar(node))}
        if isinstance(node, yaml.SequenceNode):
            return {name: self.construct_sequence(node, deep=True)}
        assert isinstance(node, yaml.MappingNode)
        return {name: self.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _Loader.construct_function)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
