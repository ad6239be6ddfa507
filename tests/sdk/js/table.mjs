// What of the SDK there is, what of it is used, and a run of all rows.
//
// A name is `Class.method` or what the module exports. Methods that are inherited from a class of the package count for
// the class that inherits; those of node's own classes (EventEmitter, Error) do not.

import { EventEmitter } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { inspect } from 'node:util';

const ROW_MILLISECONDS = 60_000;
const WATCHED = Symbol('watched');

// Every public name of `module`, whose declarations are in `directory`.
export async function publicNames(module, directory) {
  const hidden = await privateNames(directory);
  const names = new Set(Object.keys(module));
  for (const [name, value] of Object.entries(module)) {
    for (const [owner, key] of isClass(value) ? members(value) : []) {
      if (!hidden.has(`${owner.constructor.name}.${key}`)) names.add(`${name}.${key}`);
    }
  }
  return names;
}

// `Class.member` of what declarations call private or protected.
async function privateNames(directory) {
  const found = new Set();
  for (const file of await readdir(directory)) {
    if (!file.endsWith('.d.ts')) continue;
    let kind;
    for (const line of (await readFile(`${directory}/${file}`, 'utf8')).split('\n')) {
      kind = /^(?:export )?declare class (\w+)/.exec(line)?.[1] ?? kind;
      const member = /^ +(?:private|protected) (?:static |readonly )*(\w+)/.exec(line)?.[1];
      if (member) found.add(`${kind}.${member}`);
    }
  }
  return found;
}

function isClass(value) {
  return typeof value === 'function' && /^class\b/.test(Function.prototype.toString.call(value));
}

// [the object that has it, its key] of each method and accessor of a class.
function* members(kind) {
  for (const key of Object.getOwnPropertyNames(kind)) {
    if (typeof kind[key] === 'function') yield [kind, key];
  }
  for (let each = kind.prototype; !isNodes(each); each = Object.getPrototypeOf(each)) {
    for (const key of Object.getOwnPropertyNames(each)) if (key !== 'constructor') yield [each, key];
  }
}

function isNodes(prototype) {
  return [Object.prototype, EventEmitter.prototype, Error.prototype].includes(prototype);
}

// From now on, methods of the module's classes that are called, and accessors that are read, are added to `used`.
export function watch(module, used) {
  const kinds = Object.entries(module).filter(([, value]) => isClass(value));
  for (const [owner, key] of kinds.flatMap(([, kind]) => [...members(kind)])) {
    const property = Object.getOwnPropertyDescriptor(owner, key);
    const part = property.get ? 'get' : 'value';
    const original = property[part];
    if (original[WATCHED]) continue; // of a class that several inherit
    const call = function (...args) {
      for (const [name, kind] of kinds) if (this === kind || this instanceof kind) used.add(`${name}.${key}`);
      return original.apply(this, args);
    };
    call[WATCHED] = true;
    Object.defineProperty(owner, key, { ...property, [part]: call });
  }
}

// Run `rows`, one after the other, and print a line of JSON for each, and for each name that has no row or two minds.
//
// A row is [names, async function]; it fails where it throws, takes too long, or does not use a method that it names.
export async function run(rows, { names, excepted, used, only }) {
  const say = line => process.stdout.write(`${JSON.stringify(line)}\n`);
  const named = new Set(rows.flatMap(([each]) => each));
  for (const name of new Set([...names, ...named, ...excepted])) {
    const error = !names.has(name) ? 'the SDK has no such name'
      : named.has(name) === excepted.has(name) ? 'it has no row, or both a row and an exception' : null;
    if (error) say({ name, ok: false, error });
  }
  for (const [each, row] of rows) {
    if (only && !row.name.includes(only)) continue;
    used.clear();
    let error = null;
    try {
      await within(ROW_MILLISECONDS, row());
      const unused = each.filter(name => name.includes('.') && !used.has(name));
      if (unused.length) error = `it does not use ${unused.join(', ')}`;
    } catch (caught) {
      error = caught?.stack ?? inspect(caught);
    }
    say({ name: row.name, ok: error === null, error });
  }
}

async function within(milliseconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`it takes longer than ${milliseconds} ms`)), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
