// Writes schemas as zod and TypeBox make them, with valid instances.
//
//     npm install zod @sinclair/typebox
//     node tests/schemas/generate.mjs DIRECTORY
//
// The files are laid out as MaskBench's: {"schema": …, "tests": [{"data": …, "valid": true}]}.

import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

// The libraries are looked for where the command runs.
const require = createRequire(join(process.cwd(), "package.json"));
const { z } = require("zod");
const { Type } = require("@sinclair/typebox");

const directory = process.argv[2];
mkdirSync(directory, { recursive: true });

const words = Array.from({ length: 249 }, (_, index) => `word ${index}`);
const person = { name: "Ann", age: 30 };

// A type, and JSON that it takes.
const zods = {
  string: [z.string(), "text"],
  email: [z.email(), "ann@example.com"],
  url: [z.url(), "https://example.com/"],
  uuid: [z.uuid(), "123e4567-e89b-42d3-a456-426614174000"],
  datetime: [z.iso.datetime(), "2026-01-31T09:30:00Z"],
  date: [z.iso.date(), "2026-01-31"],
  ipv4: [z.ipv4(), "192.0.2.1"],
  regex: [z.string().regex(/^[a-z]+$/), "abc"],
  length: [z.string().min(1).max(5), "abc"],
  number: [z.number(), 0.5],
  int: [z.int(), 3],
  positive: [z.number().positive().lt(10), 3],
  multiple: [z.number().multipleOf(5), 15],
  boolean: [z.boolean(), true],
  null: [z.null(), null],
  any: [z.any(), [1]],
  unknown: [z.unknown(), { a: 1 }],
  literal: [z.literal("a"), "a"],
  literals: [z.literal(["a", 1, null]), 1],
  enum: [z.enum(["red", "green"]), "red"],
  "many-literals": [z.enum(words), "word 7"],
  object: [z.object({ name: z.string(), age: z.int().optional() }), person],
  strict: [z.strictObject({ name: z.string(), age: z.int() }), person],
  loose: [z.looseObject({ name: z.string() }), person],
  tuple: [z.tuple([z.string(), z.number()]), ["a", 1]],
  rest: [z.tuple([z.string()], z.number()), ["a", 1, 2]],
  union: [z.union([z.string(), z.number()]), 1],
  discriminated: [z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("a"), a: z.string() }),
    z.object({ kind: z.literal("b"), b: z.number() }),
  ]), { kind: "b", b: 1 }],
  intersection: [z.intersection(z.object({ a: z.string() }), z.object({ b: z.number() })), { a: "x", b: 1 }],
  record: [z.record(z.string(), z.number()), { a: 1 }],
  described: [z.string().describe("A text"), "text"],
  default: [z.string().default("a"), "b"],
  tree: [(() => {
    const tree = z.object({ name: z.string(), get children() { return z.array(tree); } });
    return tree;
  })(), { name: "a", children: [{ name: "b", children: [] }] }],
};

const typeboxes = {
  string: [Type.String(), "text"],
  email: [Type.String({ format: "email" }), "ann@example.com"],
  pattern: [Type.String({ pattern: "^[a-z]+$" }), "abc"],
  number: [Type.Number({ minimum: 0, exclusiveMaximum: 10 }), 0.5],
  integer: [Type.Integer(), 3],
  boolean: [Type.Boolean(), true],
  null: [Type.Null(), null],
  any: [Type.Any(), [1]],
  literal: [Type.Literal("a"), "a"],
  union: [Type.Union([Type.Literal("a"), Type.Literal("b")]), "a"],
  "many-literals": [Type.Union(words.map((word) => Type.Literal(word))), "word 7"],
  object: [Type.Object({ name: Type.String(), age: Type.Optional(Type.Integer()) }), person],
  closed: [Type.Object({ name: Type.String() }, { additionalProperties: false }), { name: "a" }],
  tuple: [Type.Tuple([Type.String(), Type.Number()]), ["a", 1]],
  record: [Type.Record(Type.String(), Type.Number()), { a: 1 }],
  intersect: [Type.Intersect([Type.Object({ a: Type.String() }), Type.Object({ b: Type.Number() })]), { a: "x", b: 1 }],
  partial: [Type.Partial(Type.Object({ a: Type.String(), b: Type.Number() })), { a: "x" }],
  template: [Type.TemplateLiteral("a-${string}"), "a-b"],
  not: [Type.Not(Type.String()), 1],
  recursive: [Type.Recursive((This) => Type.Object({ name: Type.String(), children: Type.Array(This) }), { $id: "Node" }),
    { name: "a", children: [{ name: "b", children: [] }] }],
  module: [Type.Module({
    Name: Type.String(),
    Person: Type.Object({ name: Type.Ref("Name"), friend: Type.Optional(Type.Ref("Person")) }),
  }).Import("Person"), { name: "a", friend: { name: "b" } }],
};

const libraries = {
  zod: [zods, (type) => z.toJSONSchema(type), {
    itself: (type, data) => [type, data],
    array: (type, data) => [z.array(type), [data, data]],
    nullable: (type) => [z.nullable(type), null],
    record: (type, data) => [z.record(z.string(), type), { a: data }],
    fields: (type, data) => [z.object({ first: type, second: z.array(type), third: z.nullable(type) }),
      { first: data, second: [data], third: null }],
  }],
  typebox: [typeboxes, (type) => type, {
    itself: (type, data) => [type, data],
    array: (type, data) => [Type.Array(type), [data, data]],
    nullable: (type) => [Type.Union([type, Type.Null()]), null],
    fields: (type, data) => [Type.Object({ first: type, second: Type.Array(type), third: Type.Optional(type) }),
      { first: data, second: [data] }],
  }],
};

for (const [library, [types, schemaOf, containers]] of Object.entries(libraries)) {
  for (const [name, [type, data]] of Object.entries(types)) {
    for (const [around, wrap] of Object.entries(containers)) {
      try {
        const [wrapped, instance] = wrap(type, data);
        const file = { schema: schemaOf(wrapped), tests: [{ data: instance, valid: true }] };
        writeFileSync(join(directory, `${library}-${around}-${name}.json`), JSON.stringify(file));
      } catch (error) {
        console.error(`left out ${library}-${around}-${name}: ${error.message}`);
      }
    }
  }
}
