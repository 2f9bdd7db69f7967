"""Writes schemas as pydantic and msgspec make them, with valid instances.

    pip install 'pydantic[email]' msgspec
    python tests/schemas/generate.py DIRECTORY

The files are laid out as MaskBench's: {"schema": …, "tests": [{"data": …, "valid": true}]}.
"""

import datetime
import decimal
import enum
import ipaddress
import itertools
import json
import pathlib
import sys
import typing
import uuid

import msgspec
import pydantic


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Address(pydantic.BaseModel):
    """Where someone lives."""

    street: str = pydantic.Field(min_length=1, description="With the number")
    city: str
    zip_code: str | None = pydantic.Field(default=None, pattern=r"^\d{5}$")


class Cat(pydantic.BaseModel):
    kind: typing.Literal["cat"]
    lives: int = pydantic.Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    kind: typing.Literal["dog"]
    breed: str


class Tree(pydantic.BaseModel):
    name: str
    children: list["Tree"]


class Linked(pydantic.BaseModel):
    value: int
    next: typing.Optional["Linked"]


class Closed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", title="A closed one")
    name: str


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str


Pet = typing.Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
Item = typing.TypeVar("Item")


class Page(pydantic.BaseModel, typing.Generic[Item]):
    items: list[Item]
    total: int


CAT, DOG = {"kind": "cat", "lives": 9}, {"kind": "dog", "breed": "Collie"}
ADDRESS = {"street": "Main Street 1", "city": "Berlin", "zip_code": None}

# A type, and JSON that it takes.
PYDANTIC = {
    "str": (str, "text"),
    "int": (int, 3),
    "float": (float, 0.5),
    "bool": (bool, True),
    "none": (None, None),
    "any": (typing.Any, {"a": [1]}),
    "bytes": (bytes, "abc"),
    "decimal": (decimal.Decimal, "1.5"),
    "date": (datetime.date, "2026-01-31"),
    "datetime": (datetime.datetime, "2026-01-31T09:30:00Z"),
    "time": (datetime.time, "09:30:00Z"),
    "timedelta": (datetime.timedelta, "PT1H"),
    "uuid": (uuid.UUID, "123e4567-e89b-12d3-a456-426614174000"),
    "ipv4": (ipaddress.IPv4Address, "192.0.2.1"),
    "ipv6": (ipaddress.IPv6Address, "2001:db8::1"),
    "url": (pydantic.AnyUrl, "https://example.com/"),
    "email": (pydantic.EmailStr, "ann@example.com"),
    "enum": (Colour, "red"),
    "int-enum": (Size, 2),
    "literal": (typing.Literal["a", "b", 3, None], 3),
    "literal-one": (typing.Literal["a"], "a"),
    "bounded-int": (typing.Annotated[int, pydantic.Field(gt=0, lt=10)], 5),
    "bounded-str": (typing.Annotated[str, pydantic.Field(max_length=5, pattern="^[a-z]+$")], "abc"),
    "multiple": (typing.Annotated[int, pydantic.Field(multiple_of=5)], 15),
    "model": (Address, ADDRESS),
    "closed": (Closed, {"name": "a"}),
    "open": (Open, {"name": "a", "more": 1}),
    "tree": (Tree, {"name": "a", "children": [{"name": "b", "children": []}]}),
    "linked": (Linked, {"value": 1, "next": {"value": 2, "next": None}}),
    "pet": (Pet, CAT),
    "union-of-models": (Cat | Dog, DOG),
    "page": (Page[Address], {"items": [ADDRESS], "total": 1}),
    "object": (dict, {"a": 1}),
    "many-literals": (typing.Literal[tuple(f"value {i}" for i in range(120))], "value 7"),
}

MSGSPEC = {
    name: PYDANTIC[name]
    for name in ["str", "int", "float", "bool", "none", "any", "bytes", "decimal", "date", "datetime",
                 "time", "timedelta", "uuid", "enum", "int-enum", "literal", "literal-one", "object",
                 "many-literals"]
} | {
    "bounded-int": (typing.Annotated[int, msgspec.Meta(gt=0, lt=10)], 5),
    "bounded-str": (typing.Annotated[str, msgspec.Meta(max_length=5, pattern="^[a-z]+$")], "abc"),
    "struct": (msgspec.defstruct("Point", [("x", int), ("y", int, 0)]), {"x": 1, "y": 2}),
    "tagged": (
        msgspec.defstruct("Get", [("key", str)], tag=True)
        | msgspec.defstruct("Put", [("key", str), ("value", int)], tag=True),
        {"type": "Put", "key": "a", "value": 1},
    ),
    "array-like": (msgspec.defstruct("Pair", [("a", int), ("b", str)], array_like=True), [1, "a"]),
}

# What types are put into; each as a function of a type and its JSON.
CONTAINERS = {
    "itself": lambda kind, data: (kind, data),
    "list": lambda kind, data: (list[kind], [data, data]),
    "optional": lambda kind, data: (kind | None if kind is not None else None, data),
    "dict": lambda kind, data: (dict[str, kind], {"a": data}),
    "tuple": lambda kind, data: (tuple[kind, int], [data, 1]),
    "list-of-lists": lambda kind, data: (list[list[kind]], [[data], []]),
}


def fields(define, kind, data):
    """A class with the type in a required, an optional and a nullable field."""
    nullable = typing.Optional[kind]
    made = define("Holder", {"first": kind, "second": list[kind], "third": nullable})
    return made, {"first": data, "second": [data], "third": None}


def pydantic_class(name, annotations):
    return pydantic.create_model(name, **{field: (kind, ...) for field, kind in annotations.items()})


def msgspec_class(name, annotations):
    return msgspec.defstruct(name, list(annotations.items()))


def written(directory, name, make):
    try:
        schema, data = make()
    except Exception as error:  # Some combinations are none that the library takes.
        print(f"left out {name}: {error}", file=sys.stderr)
        return
    case = {"schema": schema, "tests": [{"data": data, "valid": True}]}
    (directory / f"{name}.json").write_text(json.dumps(case))


def main():
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    of_pydantic = lambda kind: pydantic.TypeAdapter(kind).json_schema()
    libraries = {
        "pydantic": (PYDANTIC, pydantic_class, of_pydantic),
        "msgspec": (MSGSPEC, msgspec_class, msgspec.json.schema),
    }
    for library, (kinds, define, schema_of) in libraries.items():
        containers = CONTAINERS | {"fields": lambda kind, data, define=define: fields(define, kind, data)}
        for (name, (kind, data)), (around, wrap) in itertools.product(kinds.items(), containers.items()):
            def make():
                wrapped, instance = wrap(kind, data)
                return schema_of(wrapped), instance

            written(directory, f"{library}-{around}-{name}", make)


if __name__ == "__main__":
    main()
